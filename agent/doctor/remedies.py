"""What a remedy comes to on one family of systems: files and commands. Pure; `fixes` does what this says.

Sources: the kernel's command line through /etc/default/grub.d on Debian and Ubuntu (their grub-mkconfig reads it),
grubby(8) on RHEL and Fedora; modules-load.d(5), modprobe.d(5), sysctl.d(5), tmpfiles.d(5), systemd.exec(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .model import (
    DEBIAN,
    RHEL,
    Blacklist,
    EarlyBinding,
    KernelParameters,
    LoadModules,
    Memlock,
    Remedy,
    SetHugepages,
    Sysctl,
)

Command = tuple[str, ...]
Read = Callable[[str], str | None]

GRUB, GRUB_DROP_IN, GRUBBY = "etc/default/grub", "etc/default/grub.d/gpupool.cfg", "usr/sbin/grubby"
HEADER = "# Written by gpupool doctor --fix.\n"
INITRAMFS: dict[str, Command] = {
    DEBIAN: ("update-initramfs", "-u", "-k", "all"),
    RHEL: ("dracut", "--force", "--regenerate-all"),
}
_STANDARD_FOLDERS = frozenset({"etc/modules-load.d", "etc/modprobe.d", "etc/sysctl.d", "etc/tmpfiles.d"})
_GRUB_WORDS = re.compile(r'^GRUB_CMDLINE_LINUX="\$GRUB_CMDLINE_LINUX ([^"]*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Put:
    """A file that must have this text; `then`: commands owed once it has changed."""

    path: str  # below the root
    content: str
    then: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A command that harms nothing if it is run again."""

    command: Command


Part = Put | Run


def parts(remedy: Remedy, system: str, read: Read) -> list[Part]:
    """Files and commands. `read` gives the files that are there, to add to ours rather than forget what they say."""
    match remedy:
        case LoadModules(purpose, modules):
            path = f"etc/modules-load.d/gpupool-{purpose}.conf"
            return [Put(path, _lines(read(path), modules)), Run(("modprobe", "-a", *modules))]
        case KernelParameters(words):
            return _kernel_parameters(words, system, read)
        case EarlyBinding(files):
            return [Put(path, content, _initramfs(system)) for path, content in files]
        case Blacklist(drivers):
            path = "etc/modprobe.d/gpupool-blacklist.conf"
            return [Put(path, _lines(read(path), [f"blacklist {driver}" for driver in drivers]), _initramfs(system))]
        case Sysctl(name, value):
            path = "etc/sysctl.d/90-gpupool.conf"
            return [Put(path, _lines(read(path), [f"{name} = {value}"])), Run(("sysctl", "-w", f"{name}={value}"))]
        case Memlock(service, pid):
            path = f"etc/systemd/system/{service}.service.d/gpupool.conf"
            drop_in = Put(path, f"{HEADER}[Service]\nLimitMEMLOCK=infinity\n", (("systemctl", "daemon-reload"),))
            return [drop_in, Run(("prlimit", f"--pid={pid}", "--memlock=unlimited:unlimited"))]
        case SetHugepages(size_kib, count, nodes):
            return _hugepages(size_kib, count, nodes)


def possible(remedy: Remedy, system: str, read: Read) -> bool:
    """Whether `--fix` knows the way on this system."""
    if isinstance(remedy, KernelParameters):
        return (system == DEBIAN and read(GRUB) is not None) or (system == RHEL and read(GRUBBY) is not None)
    return not isinstance(remedy, EarlyBinding | Blacklist) or system in INITRAMFS


def steps(remedy: Remedy, system: str) -> str:
    """The same for a person: lines for a root shell."""
    if isinstance(remedy, EarlyBinding):  # long, and made for these very devices
        files = "".join(f"\n#   /{path}" for path, _ in remedy.files)
        return f"gpupool doctor --fix      # --dry-run shows what it writes:{files}"
    found = parts(remedy, system, lambda _: None)
    lines = [line for part in found if isinstance(part, Put) for line in _shell(part)]
    lines += [" ".join(command) for part in found if isinstance(part, Put) for command in part.then]
    return "\n".join([*lines, *(" ".join(part.command) for part in found if isinstance(part, Run))])


def _shell(put: Put) -> list[str]:
    folder = put.path.rpartition("/")[0]
    make = [] if folder in _STANDARD_FOLDERS else [f"mkdir -p /{folder}"]
    content = put.content.removeprefix(HEADER).rstrip("\n")
    return [*make, f"cat > /{put.path} <<'EOF'", *content.split("\n"), "EOF"]


def _initramfs(system: str) -> tuple[Command, ...]:
    return (INITRAMFS[system],) if system in INITRAMFS else ()


def _lines(before: str | None, wanted: Sequence[str]) -> str:
    """A file of single lines with these among them; a line that is there stays, unless it sets the same name."""
    names = {line.partition("=")[0].strip() for line in wanted if "=" in line}
    kept = [line.strip() for line in (before or "").splitlines() if line.strip() and not line.startswith("#")]
    kept = [line for line in kept if line.partition("=")[0].strip() not in names]
    return HEADER + "".join(f"{line}\n" for line in dict.fromkeys([*kept, *wanted]))


def _kernel_parameters(words: tuple[str, ...], system: str, read: Read) -> list[Part]:
    if system == RHEL:
        return [Run(("grubby", "--update-kernel=ALL", f"--args={' '.join(words)}"))]
    match = _GRUB_WORDS.search(read(GRUB_DROP_IN) or "")
    every = " ".join(dict.fromkeys([*(match[1].split() if match else ()), *words]))
    content = f'{HEADER}GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {every}"\n'
    return [Put(GRUB_DROP_IN, content, (("update-grub",),))]


def _hugepages(size_kib: int, count: int, nodes: tuple[int, ...]) -> list[Part]:
    path = "etc/tmpfiles.d/gpupool-hugepages.conf"
    base = "/sys/devices/system/node"
    lines = [f"w {base}/node{node}/hugepages/hugepages-{size_kib}kB/nr_hugepages - - - - {count}\n" for node in nodes]
    return [Put(path, HEADER + "".join(lines)), Run(("systemd-tmpfiles", "--create", f"/{path}"))]
