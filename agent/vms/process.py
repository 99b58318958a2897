"""A VM's process, held by a pidfd: the one thing that tells for certain whether it lives.

libvirt's word is not enough: a device may be reset, and a volume given to another, only when the process that held
them is gone with all its threads. A pidfd says so even of a process that nobody has reaped, and never means another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from pathlib import Path

from ..domain.shape import PREFIX
from ..domain.xml import allocation_of


class QemuProcess:
    """The process of one VM."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = fd

    @property
    def alive(self) -> bool:
        """Whether any thread of it lives. One that was let go of had ended, or is nobody's business here."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return not poller.poll(0)

    async def ended(self) -> None:
        """Wait for its end. One waiter at a time."""
        loop, fd, done = asyncio.get_running_loop(), self._fd, asyncio.Event()
        loop.add_reader(fd, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(fd)

    def kill(self) -> None:
        """SIGKILL; one that has ended already is fine."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def find(run_dir: Path, name: str) -> QemuProcess | None:
    """The living process of the domain `name`, by the pid file that libvirt wrote into `run_dir`."""
    try:
        pid = int((run_dir / f"{name}.pid").read_text())
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    process = QemuProcess(pid, fd)
    # Read after the pidfd was opened: if it is our VM's now, so is the pidfd.
    if process.alive and _runs(pid, name):
        return process
    process.close()
    return None


def living(run_dir: Path) -> set[str]:
    """Allocations whose domains have a living process."""
    found = set()
    for file in run_dir.glob(f"{PREFIX}*.pid"):
        if (process := find(run_dir, file.stem)) is not None:
            process.close()
            found.add(allocation_of(file.stem) or "")
    return found


def pids(run_dir: Path) -> set[int]:
    """The living processes of our domains."""
    found = set()
    for file in run_dir.glob(f"{PREFIX}*.pid"):
        if (process := find(run_dir, file.stem)) is not None:
            found.add(process.pid)
            process.close()
    return found


def _runs(pid: int, name: str) -> bool:
    try:
        return f"guest={name},".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
