"""Builds what lab hosts boot, under var/lab, each part again only when its inputs have changed.

    base    the host's root file system and kernel, from Debian's packages (a minute and a half)
    boot    kernel, initrd and the read-only root image that all hosts share
    deps    the agent's locked dependencies, for the host's Python
    code    an image with the project's wheel and its dependencies: all that a change of the code builds anew
    guests  an image with the guest images of var/images, and one called "lab" that boots fast

It must be run as root, and never changes the machine outside of its folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from .bzimage import vmlinux

REPO = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
LAB = REPO / "var" / "lab"
GUESTS = REPO / "var" / "images"
GUEST, LAB_GUEST = "debian-numpy", "lab"
HOST_PYTHON = "3.13"  # Debian trixie's
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_FROM_DEBIAN = frozenset({"libvirt-python"})
_STAMP = ".inputs"

Tell = Callable[[str], None]


class BuildError(Exception):
    """A part could not be built. The message says which, and ends with what the tool said."""


@dataclass(frozen=True, slots=True)
class Images:
    """Where the parts are."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The hosts' kernel."""
        return self.folder / "boot/vmlinuz"

    @property
    def initrd(self) -> Path:
        """The hosts' initrd."""
        return self.folder / "boot/initrd.img"

    @property
    def disks(self) -> tuple[tuple[str, Path], ...]:
        """Serial and file of each read-only disk."""
        return (
            ("root", self.folder / "boot/root.ext4"),
            ("code", self.folder / "code/code.ext4"),
            ("images", self.folder / "guests/guests.ext4"),
        )

    @property
    def qemu(self) -> tuple[str, ...]:
        """The command of the QEMU that runs the hosts: the one that they have themselves."""
        root = self.folder / "base/root"
        return (*self.program("qemu-system-x86_64"), "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios")

    @property
    def qemu_environment(self) -> dict[str, str]:
        """What that QEMU needs in its environment."""
        return {"QEMU_MODULE_DIR": str(self.folder / "base/root" / _LIBRARIES / "qemu")}

    def program(self, name: str) -> tuple[str, ...]:
        """A command for a program of the hosts' root file system: it brings its own libraries and loader."""
        root = self.folder / "base/root"
        loader = root / "usr/lib64/ld-linux-x86-64.so.2"
        return (str(loader), "--library-path", f"{root}/{_LIBRARIES}", f"{root}/usr/bin/{name}")


def build(tell: Tell = lambda _: None, folder: Path = LAB) -> Images:
    """Build what is missing or out of date. Raises BuildError."""
    if os.geteuid() != 0:
        raise BuildError("building the lab's images needs root")
    folder.mkdir(parents=True, exist_ok=True)
    images = Images(folder)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run([str(HERE / "system-packages.sh")])
        parts = _Parts(images, tell)
        parts.build()
    return images


class _Parts:
    """The build, with the digests of what was built before."""

    def __init__(self, images: Images, tell: Tell) -> None:
        self._images = images
        self._folder = images.folder
        self._tell = tell

    def build(self) -> None:
        base = self._part("base", _digest_of(HERE / "l1" / name for name in ("rootfs.sh", "packages")), self._base)
        l1 = (HERE / "l1" / name for name in ("boot.sh", "init", "initrd-init", "execd.py"))
        self._part("boot", _digest(base, _digest_of(l1)), self._boot)
        names = sorted(_dependencies("gpupool[agent]") - _FROM_DEBIAN)
        locked = "".join(_locked((REPO / "requirements.lock").read_text(), names))
        deps = self._part("deps", _digest(base, locked), lambda out: self._deps(out, locked))
        self._part("code", _digest(deps, _digest_of(_sources())), self._code)
        made_by = [HERE / "l2/image.sh", HERE / "bzimage.py", *sorted(GUESTS.glob("*/manifest.json"))]
        self._part("guests", _digest_of(made_by), self._guests)

    def _part(self, name: str, digest: str, make: Callable[[Path], None]) -> str:
        """Build one part unless it is there, and put it in place at once when it is whole."""
        place = self._folder / name
        stamp = place / _STAMP
        if stamp.exists() and stamp.read_text() == digest:
            return digest
        self._tell(f"lab: building {name}")
        for left in self._folder.glob(f"{name}.build-*"):
            shutil.rmtree(left)
        work = Path(tempfile.mkdtemp(prefix=f"{name}.build-", dir=self._folder))
        work.chmod(0o755)
        make(work)
        (work / _STAMP).write_text(digest)
        if place.exists():
            old = place.rename(work.with_name(f"{name}.build-old"))
            work.rename(place)
            shutil.rmtree(old)
        else:
            work.rename(place)
        return digest

    def _base(self, out: Path) -> None:
        _run([str(HERE / "l1/rootfs.sh"), str(out)])

    def _boot(self, out: Path) -> None:
        _run([str(HERE / "l1/boot.sh"), str(self._folder / "base"), str(out)])

    def _deps(self, out: Path, locked: str) -> None:
        (out / "requirements").write_text(locked)
        platform = ("--python-version", HOST_PYTHON, "--implementation", "cp", "--only-binary", ":all:")
        abis = [word for abi in (f"cp{HOST_PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
        site = out / "site"
        _pip(
            "--target", str(site), *platform, *abis, "--no-compile", "--require-hashes", "-r", str(out / "requirements")
        )  # fmt: skip
        shutil.rmtree(site / "bin", ignore_errors=True)
        self._compile(site, site)

    def _code(self, out: Path) -> None:
        wheels, stage = out / "wheels", out / "stage"
        site = stage / "site"
        _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)])
        shutil.copytree(self._folder / "deps/site", site, copy_function=os.link)
        _pip("--target", str(site), "--no-compile", *map(str, wheels.glob("*.whl")))
        self._compile(site, site / "gpupool")
        shutil.rmtree(site / "bin", ignore_errors=True)
        (stage / "bin").mkdir()
        for name in ("cli", "agent", "scheduler"):
            command = stage / "bin" / ("gpupool" if name == "cli" else f"gpupool-{name}")
            command.write_text(f'#!/bin/sh\nexec python3 -m gpupool.{name} "$@"\n')
            command.chmod(0o755)
        _pack(stage, out / "code.ext4")
        shutil.rmtree(stage)

    def _guests(self, out: Path) -> None:
        if not (GUESTS / GUEST / "manifest.json").exists():
            raise BuildError(f"there is no guest image {GUEST} in {GUESTS}; run: make image")
        stage = out / "stage"
        shutil.copytree(GUESTS, stage, copy_function=os.link)
        kernel = out / "vmlinux"
        kernel.write_bytes(vmlinux((GUESTS / GUEST / "vmlinuz").read_bytes()))
        _run([str(HERE / "l2/image.sh"), str(stage / GUEST), str(kernel), str(stage / LAB_GUEST)])
        _pack(stage, out / "guests.ext4")
        shutil.rmtree(stage)

    def _compile(self, site: Path, what: Path) -> None:
        """Compile with the hosts' own Python; unchecked, since the disk is read-only and looking costs time there."""
        program = [*self._images.program(f"python{HOST_PYTHON}"), "-S", "-m", "compileall", "-q"]
        where = ["-s", str(site), "-p", "/opt/gpupool/site", "--invalidation-mode", "unchecked-hash", str(what)]
        _run([*program, *where], {"PYTHONHOME": str(self._folder / "base/root/usr")})


def _dependencies(requirement: str) -> set[str]:
    """Names of all distributions that it needs, itself left out, as the installed ones say it."""
    found: set[str] = set()
    todo = [Requirement(requirement)]
    seen: set[str] = set()
    while todo:
        wanted = todo.pop()
        for text in () if str(wanted) in seen else requires(wanted.name) or ():
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
                found.add(needed.name.lower())
        seen.add(str(wanted))
    return found - {"gpupool"}


def _locked(lock: str, names: Iterable[str]) -> Iterator[str]:
    """The entries of requirements.lock for these names, hashes and all. Raises BuildError."""
    for name in names:
        match = re.search(rf"^{re.escape(name)}==.*\n(?:    .*\n?)*", lock, re.MULTILINE)
        if match is None:
            raise BuildError(f"requirements.lock has no {name}; run: make lock")
        yield match[0]


def _sources() -> Iterator[Path]:
    """What the wheel is made of."""
    yield REPO / "pyproject.toml"
    for package in ("gpupool", "scheduler", "agent"):
        yield from sorted(path for path in (REPO / package).rglob("*") if path.is_file() and path.suffix != ".pyc")


def _digest_of(files: Iterable[Path]) -> str:
    return _digest(*(f"{file.relative_to(REPO)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _pack(tree: Path, image: Path) -> None:
    """A read-only file system of a folder."""
    size = int(_run(["du", "-sk", "--apparent-size", str(tree)]).split()[0])
    features = ["-O", "^has_journal", "-m", "0", "-b", "4096", "-N", "20000"]
    _run(["mke2fs", "-q", "-t", "ext4", *features, "-d", str(tree), str(image), f"{size * 13 // 10 + 16384}k"])


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    _run([*command, "--root-user-action", "ignore", *arguments])


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Its standard output. Raises BuildError."""
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, cwd=REPO, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise BuildError(f"{' '.join(command[:6])} ended with {done.returncode}:\n{said}")
    return done.stdout
