"""What the guard kills: the processes of VMs, as a control group or as pid files name them. Standard library only."""

from __future__ import annotations

import os
import signal
from pathlib import Path


class Cgroup:
    """The control group (v2) that holds every VM, each in a child of its own or not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def populated(self) -> bool:
        """Whether any process lives in it; a group that does not exist holds none."""
        try:
            return "populated 1" in (self._path / "cgroup.events").read_text()
        except FileNotFoundError:
            return False

    def kill(self) -> None:
        """SIGKILL all of it, at once and without a race against forks."""
        (self._path / "cgroup.kill").write_text("1")


class PidFiles:
    """The processes that the gpupool-*.pid files under a directory name: where no cgroup can be had, and beside it.

    Other .pid files are other people's. A pid may have been given to another process since: one whose command line
    names neither the directory nor the file's stem is not ours, and the pidfd makes sure that the process looked at is
    the one that is killed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def populated(self) -> bool:
        """Whether any of the processes lives."""
        return bool(self._signal(0))

    def kill(self) -> None:
        """SIGKILL them all."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> int:
        """Send `number` to each of the processes; how many there were."""
        return sum(self._signal_one(file, number) for file in self._directory.rglob("gpupool-*.pid"))

    def _signal_one(self, file: Path, number: int) -> bool:
        try:
            pid = int(file.read_text())
            handle = os.pidfd_open(pid)
        except (OSError, ValueError):
            return False
        try:
            # Read after the pidfd was opened: if it is ours now, the pidfd is ours. A zombie's is empty.
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(self._directory).encode() not in command and file.stem.encode() not in command:
                return False
            signal.pidfd_send_signal(handle, number)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True


Target = Cgroup | PidFiles
