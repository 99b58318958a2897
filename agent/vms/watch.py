"""One VM that has a process: its guest's channel, and the watch that tells of its end.

The order is the point: exit code and last lines first, then VmGone, and that only when the process is gone with all
its threads and libvirt has had a moment to say why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..devices.blocking import in_own_thread
from ..ports import GuestExited, GuestLog, VmGone
from .channel import GuestChannel, Sink
from .files import GuestFiles
from .process import QemuProcess

_log = logging.getLogger(__name__)
_REASON_S = 5.0  # for libvirt's word on a process that is gone; it comes 0.2 s later, or 2 s if PID 1 is slow to reap
_LAST_WORDS_S = 5.0
_OUT_OF_MEMORY = "killed by the host's kernel, which ran out of memory"


class Vm:
    """A VM's process, watched from `begin` on. `claim_oom` tells whether the kernel's OOM killer struck a VM."""

    def __init__(self, process: QemuProcess, files: GuestFiles, claim_oom: Callable[[], bool]) -> None:
        self.allocation = files.allocation
        self.process = process
        self.channel: GuestChannel | None = None
        self._files = files
        self._claim_oom = claim_oom
        self._reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watch: asyncio.Task[None] | None = None

    def begin(self, sink: Sink, *, adopted: bool) -> asyncio.Task[None]:
        """Attach the channel and watch; the task ends when VmGone has been given out."""
        path, run = str(self._files.channel), self._files.run()
        self.channel = GuestChannel(self.allocation, path, run, sink, adopted=adopted)
        self._watch = asyncio.create_task(self._see_it_end(sink), name=f"vm {self.allocation}")
        return self._watch

    def stopped(self, reason: str) -> None:
        """The hypervisor says that the VM stopped; its first word stands."""
        if not self._reason.done():
            self._reason.set_result(reason)

    async def gone(self) -> None:
        """Wait until nothing of it is left and everything has been told."""
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def release(self) -> None:
        """Stop watching; the VM stays."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self.channel is not None:
            await self.channel.close()
        self.process.close()

    async def _see_it_end(self, sink: Sink) -> None:
        await self.process.ended()
        # libvirt still holds the domain until it has noticed too; and it knows a crash from a power-off.
        await asyncio.wait({self._reason}, timeout=_REASON_S)
        reason = self._reason.result() if self._reason.done() else "failed"
        if reason == "failed" and await asyncio.to_thread(self._claim_oom):
            reason = _OUT_OF_MEMORY
        assert self.channel is not None
        await self.channel.finish(_LAST_WORDS_S)
        await report_end(self._files, reason, sink, exit_known=self.channel.exited)
        self.process.close()


async def report_end(files: GuestFiles, reason: str, sink: Sink, *, exit_known: bool) -> None:
    """Give out the end of a VM that has no process any more, and remove its files."""
    code = None if exit_known else await asyncio.to_thread(files.console_exit)
    try:
        if code is not None:
            sink(GuestExited(files.allocation, code))
        elif not exit_known and (lines := await asyncio.to_thread(files.console_tail)):
            sink(GuestLog(files.allocation, tuple(("system", line) for line in lines)))  # a panic says why there
        sink(VmGone(files.allocation, reason))
    except Exception:  # noqa: BLE001 - the sink may raise anything
        _log.exception("end of VM %s", files.allocation)  # an audit finds the record without a VM
    await in_own_thread(files.remove)  # overlays lie on storage that may hang
