"""The files of one VM on its host: what a later agent needs to take it over, and the guest's console."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..ports import VmSpec

MAX_SOCKET_PATH = 107  # sun_path, less its end; see unix(7)
_TAIL_BYTES, _TAIL_LINES = 4096, 20
_EXIT = re.compile(rb"^gpupool-exit: (\d{1,3})\r?$", re.MULTILINE)


class GuestFiles:
    """<state>/guests/<allocation>/: the channel's socket, the console, the `run` message."""

    def __init__(self, state_dir: Path, allocation: str) -> None:
        self.allocation = allocation
        self._folder = state_dir.absolute() / "guests" / allocation
        self.channel = self._folder / "channel"
        self.console = self._folder / "console"
        self._run = self._folder / "run.json"

    def prepare(self, run: dict[str, Any]) -> None:
        """Make the directory anew, with the message in it. Raises OSError."""
        if len(os.fsencode(self.channel)) > MAX_SOCKET_PATH:
            raise OSError(f"{self.channel} is too long for a socket; give the agent a shorter state directory")
        self.remove()
        self._folder.mkdir(parents=True)
        # The environment may hold secrets.
        with os.fdopen(os.open(self._run, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(run, file)

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
        shutil.rmtree(self._folder, ignore_errors=True)

    def _console_end(self) -> bytes:
        try:
            with self.console.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return file.read()
        except OSError:
            return b""


def left_behind(state_dir: Path) -> list[GuestFiles]:
    """Files of VMs that an earlier agent ran, by allocation."""
    return [GuestFiles(state_dir, folder.name) for folder in sorted((state_dir / "guests").glob("*"))]


def run_message(spec: VmSpec) -> dict[str, Any]:
    """What starts the job in the guest."""
    volumes = [{"name": volume.serial, "serial": volume.serial, "path": volume.path} for volume in spec.volumes]
    return {"type": "run", "argv": list(spec.command), "env": dict(spec.env), "volumes": volumes}
