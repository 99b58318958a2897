"""The files of one VM on its host: what a later agent needs to take it over, the guest's console, disks of its own."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..ports import VmSpec
from .images import HEAD_BYTES, Image, UefiBoot, check_bootable

MAX_SOCKET_PATH = 107  # sun_path, less its end; see unix(7)
_TAIL_BYTES, _TAIL_LINES = 4096, 20
_EXIT = re.compile(rb"^gpupool-exit: (\d{1,3})\r?$", re.MULTILINE)
_TOOL_S = 60.0


class FilesError(Exception):
    """A VM's files could not be made; the message says why and what to do."""


class GuestFiles:
    """<state>/guests/<allocation>/: the channel's socket, the console, the `run` message, small disks of the VM's own.

    The overlay of an image's disk grows as the guest writes; it lies below `overlays` if that is given, since the state
    directory is usually in memory.
    """

    def __init__(self, state_dir: Path, allocation: str, overlays: Path | None = None) -> None:
        self.allocation = allocation
        self._folder = state_dir.absolute() / "guests" / allocation
        self.channel = self._folder / "channel"
        self.agent = self._folder / "agent"
        self.console = self._folder / "console"
        self.seed = self._folder / "seed.img"
        self.variables = self._folder / "efi-variables.fd"
        self._run = self._folder / "run.json"
        self._overlay_folder = overlays.absolute() / allocation if overlays else None
        self.overlay = (self._overlay_folder or self._folder) / "overlay.qcow2"

    def prepare(self, run: dict[str, Any]) -> None:
        """Make the directory anew, with the message and an empty console in it. Raises FilesError."""
        if len(os.fsencode(self.channel)) > MAX_SOCKET_PATH:
            raise FilesError(f"{self.channel} is too long for a socket; give the agent a shorter state directory")
        self.remove()
        try:
            self._folder.mkdir(parents=True)
            # The environment may hold secrets.
            self._write(self._run, json.dumps(run).encode())
            self._write(self.console, b"")
        except OSError as exc:
            raise FilesError(_readable(exc, self._folder)) from exc

    def write_seed(self, content: bytes) -> None:
        """Write cloud-init's seed. Raises FilesError."""
        try:
            self._write(self.seed, content)
        except OSError as exc:
            raise FilesError(_readable(exc, self.seed)) from exc

    def copy_variables(self, template: Path) -> None:
        """Give the VM UEFI variables of its own. Raises FilesError."""
        try:
            self._write(self.variables, template.read_bytes())
        except OSError as exc:
            raise FilesError(_readable(exc, self.variables)) from exc

    def make_overlay(self, image: Image, boot: UefiBoot) -> None:
        """Make the VM's own layer above the image's disk, if that can boot. Raises FilesError, ImageError."""
        try:
            self.overlay.parent.mkdir(parents=True, exist_ok=True)
            head = self.overlay.with_suffix(".head")
            files = (f"if={boot.disk}", f"of={head}")
            _qemu_img("dd", "-U", "-f", boot.format, "-O", "raw", "bs=512", f"count={HEAD_BYTES // 512}", *files)
            check_bootable(image.name, head.read_bytes())
            head.unlink()
            _qemu_img("create", "-q", "-f", "qcow2", "-b", str(boot.disk), "-F", boot.format, str(self.overlay))
        except OSError as exc:
            raise FilesError(_readable(exc, self.overlay)) from exc

    def run(self) -> dict[str, Any] | None:
        """The `run` message; None if it cannot be read."""
        try:
            content = json.loads(self._run.read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def console_exit(self) -> int | None:
        """The exit code that the guest wrote to its console, for a host that was not listening."""
        codes = _EXIT.findall(self._console_end())
        return int(codes[-1]) if codes and int(codes[-1]) <= 255 else None

    def console_tail(self) -> list[str]:
        """The console's last lines."""
        lines = self._console_end().decode(errors="replace").splitlines()
        return [line.rstrip() for line in lines[-_TAIL_LINES:] if line.strip()]

    def remove(self) -> None:
        """Remove all of it."""
        for folder in filter(None, (self._folder, self._overlay_folder)):
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, file: Path, content: bytes) -> None:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(content)

    def _console_end(self) -> bytes:
        try:
            with self.console.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return file.read()
        except OSError:
            return b""


def left_behind(state_dir: Path, overlays: Path | None = None) -> list[GuestFiles]:
    """Files of VMs that an earlier agent ran, by allocation. Overlays outlive a reboot, the rest need not."""
    roots = [state_dir / "guests", *([overlays] if overlays else [])]
    names = {folder.name for root in roots for folder in root.glob("*")}
    return [GuestFiles(state_dir, name, overlays) for name in sorted(names)]


def run_message(spec: VmSpec) -> dict[str, Any]:
    """What starts the job in the guest."""
    volumes = [{"name": volume.serial, "serial": volume.serial, "path": volume.path} for volume in spec.volumes]
    return {"type": "run", "argv": list(spec.command), "env": dict(spec.env), "volumes": volumes}


def _qemu_img(*words: str) -> None:
    try:
        done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False, timeout=_TOOL_S)
    except FileNotFoundError:
        raise FilesError("qemu-img is not on this host; install qemu-utils (Debian) or qemu-img (RHEL)") from None
    except subprocess.TimeoutExpired:
        raise FilesError(f"qemu-img {words[0]} has not ended within {_TOOL_S:g} s; is the storage there?") from None
    if done.returncode != 0:
        text = " ".join((done.stderr or done.stdout).split())
        full = "No space left" in text
        raise FilesError(f"qemu-img {words[0]}: {text}{_FULL if full else ''}")


_FULL = "; the host's disk is full: free some of it, or give the agent another directory"


def _readable(exc: OSError, path: Path) -> str:
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"cannot write {exc.filename or path}: {exc.strerror}{_FULL if full else ''}"
