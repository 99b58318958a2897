"""Runs VMs, given a hypervisor: implements ports.VmRuntime without knowing libvirt.

Every call of the hypervisor's is made in a small pool of threads, so one that hangs costs threads and not the agent.
Whether a VM lives is asked of its process, never of the hypervisor (see vmproc.py). It must never let a VM run that the
guard cannot reach or that `may_run` refuses, and never leave a part of one behind that failed to start, not even when
whoever asked for it has stopped waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from ..ports import VmEvent, VmSpec, VmStartError
from . import accel
from . import process as vmproc
from .channel import Sink
from .domain import PREFIX, allocation_of, domain_xml
from .errors import HypervisorError, RuntimeUnavailableError, readable_start
from .files import GuestFiles, left_behind, run_message
from .images import load_image
from .process import QemuProcess
from .shape import shape_of
from .watch import Vm, report_end

T = TypeVar("T")
_log = logging.getLogger(__name__)
_DESTROY_S = 5.0  # for the hypervisor to end a VM; then its process is killed directly
_LOOK_S = 0.02


class Hypervisor(Protocol):
    """What makes domains. Every method may block; all but `open` raise HypervisorError."""

    def open(self, on_stop: Callable[[str, str], None]) -> None:
        """Connect; `on_stop` is then called, in any thread, with each domain that stops and why.

        Raises RuntimeUnavailableError with what is missing.
        """
        ...

    def domains(self) -> list[tuple[str, bool]]:
        """Our active domains: name, and whether it was never let run."""
        ...

    def create_paused(self, xml: str) -> None:
        """Make a domain whose CPUs do not run yet."""
        ...

    def resume(self, name: str, wanted: Callable[[], bool]) -> None:
        """Let the CPUs run, if that is still wanted after the wait for a thread; else VmStartError."""
        ...

    def destroy(self, name: str) -> None:
        """End the domain by force; one that does not exist is fine."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(slots=True)
class _Start:
    """A VM on its way up. `wanted` turns false when whoever asked has stopped waiting."""

    spec: VmSpec
    may_run: Callable[[], bool]
    files: GuestFiles
    wanted: bool = True
    task: asyncio.Task[None] | None = field(default=None)


class Runtime:
    """Implements ports.VmRuntime. `run_dir` is where the hypervisor keeps pid files, `cgroup` the guard's directory."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        run_dir: Path,
        images: Path,
        state_dir: Path,
        cgroup: Path | None,
        simulated: bool,
        accel: str,
        max_threads: int,
    ) -> None:
        self._virt = hypervisor
        self._run_dir = run_dir
        self._images = images
        self._state_dir = state_dir
        self._cgroup = cgroup
        self._simulated = simulated
        self._accel = accel
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix="gpupool-vm")
        self._sink: Sink = lambda _: None
        self._vms: dict[str, Vm] = {}
        self._starts: dict[str, _Start] = {}

    async def open(self, sink: Callable[[VmEvent], None]) -> None:
        """See ports.VmRuntime. Raises RuntimeUnavailableError with what is missing."""
        self._sink = sink
        loop = asyncio.get_running_loop()

        def on_stop(name: str, reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._stopped, name, reason)

        self._accel = await accel.choose(self._accel)
        await asyncio.to_thread(self._make_cgroup)
        await self._call(lambda: self._virt.open(on_stop))
        for name, never_ran in await self._call(self._virt.domains):
            await self._adopt(name, never_ran=never_ran)
        for files in await asyncio.to_thread(left_behind, self._state_dir):
            if files.allocation not in self._vms:
                await report_end(files, "it ended while the agent was away", sink, exit_known=False)

    async def running(self) -> Sequence[str]:
        """See ports.VmRuntime. A VM counts until its VmGone has been given out, so that its exit code comes first."""
        found = await asyncio.to_thread(vmproc.living, self._run_dir)
        return sorted({*found, *self._vms, *self._starts})

    async def start(self, spec: VmSpec, *, may_run: Callable[[], bool]) -> None:
        """See ports.VmRuntime. If cancelled, it returns at once and cleans up behind; `running` names it until then."""
        name = spec.allocation
        if name in self._vms or name in self._starts:
            raise VmStartError(f"{name} has a VM already")
        start = self._starts[name] = _Start(spec, may_run, GuestFiles(self._state_dir, name))
        task = start.task = asyncio.create_task(self._bring_up(start), name=f"start {name}")
        task.add_done_callback(lambda _: self._start_ended(name))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            start.wanted = False
            raise

    async def checkpoint(self, allocation: str, grace_s: int) -> None:
        """See ports.VmRuntime."""
        self._tell(allocation, "checkpoint", grace_s)

    async def stop(self, allocation: str, grace_s: int) -> None:
        """See ports.VmRuntime."""
        self._tell(allocation, "stop", grace_s)

    async def destroy(self, allocation: str) -> None:
        """See ports.VmRuntime."""
        if (start := self._starts.get(allocation)) and start.task:
            start.wanted = False
            await asyncio.wait({start.task})
        if vm := self._vms.get(allocation):
            await self._kill(allocation, vm.process)
            await vm.gone()
        elif process := await asyncio.to_thread(vmproc.find, self._run_dir, PREFIX + allocation):
            await self._kill(allocation, process)
            process.close()

    async def close(self) -> None:
        """See ports.VmRuntime."""
        if tasks := {start.task for start in self._starts.values() if start.task}:
            await asyncio.wait(tasks)
        for vm in list(self._vms.values()):
            await vm.release()
        self._vms.clear()
        await self._call(self._virt.close)
        self._pool.shutdown(wait=False)

    # Starting

    async def _bring_up(self, start: _Start) -> None:
        made: list[QemuProcess] = []
        try:
            vm = await self._make(start, made)
        except Exception as exc:
            await self._undo(start.files, *made)
            text = readable_start(str(exc)) if isinstance(exc, HypervisorError) else str(exc)
            raise VmStartError(text or type(exc).__name__) from exc
        self._begin(vm, adopted=False)

    def _start_ended(self, name: str) -> None:
        task = self._starts.pop(name).task
        if task and not task.cancelled() and (error := task.exception()):
            _log.info("start of VM %s: %s", name, error)  # whoever asked may have stopped waiting

    async def _make(self, start: _Start, made: list[QemuProcess]) -> Vm:
        """The VM, running but not watched yet; its process is added to `made` as soon as there is one."""
        name = PREFIX + start.spec.allocation
        xml = await asyncio.to_thread(self._prepare, start)
        await self._call(lambda: self._virt.create_paused(xml))
        process = await asyncio.to_thread(vmproc.find, self._run_dir, name)
        if process is None:
            raise VmStartError("its QEMU ended at once; see the host's libvirt log")
        made.append(process)
        await asyncio.to_thread(self._enclose, process)
        vm = Vm(process, start.files)
        self._vms[start.spec.allocation] = vm
        if not (start.wanted and start.may_run()):
            raise VmStartError("the host's session is not fresh any more, so the VM was not let run")
        await self._call(lambda: self._virt.resume(name, lambda: start.wanted))
        return vm

    def _prepare(self, start: _Start) -> str:
        """Make the VM's files; its domain's XML."""
        image = load_image(self._images, start.spec.image)
        shape = shape_of(start.spec, image, start.files, accel=self._accel, simulated=self._simulated)
        start.files.prepare(run_message(start.spec))
        return domain_xml(shape)

    def _make_cgroup(self) -> None:
        if self._cgroup is not None:
            try:
                self._cgroup.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise RuntimeUnavailableError(f"cannot make the VMs' cgroup {self._cgroup}: {exc.strerror}") from exc

    def _enclose(self, process: QemuProcess) -> None:
        """Put the process, with all its threads, where the guard's kill reaches it."""
        if self._cgroup is not None:
            (self._cgroup / "cgroup.procs").write_text(str(process.pid))

    async def _undo(self, files: GuestFiles, *made: QemuProcess) -> None:
        """Leave nothing of a VM that was not started."""
        name = PREFIX + files.allocation
        found = None if made else await asyncio.to_thread(vmproc.find, self._run_dir, name)
        for process in (*made, found) if found else made:
            await self._kill(files.allocation, process)
            process.close()
        self._vms.pop(files.allocation, None)
        await asyncio.to_thread(files.remove)

    # Living and dying

    async def _adopt(self, name: str, *, never_ran: bool) -> None:
        process = await asyncio.to_thread(vmproc.find, self._run_dir, name)
        allocation = allocation_of(name)
        if allocation is None or process is None:
            return
        if never_ran:
            _log.warning("VM %s was being started when the last agent ended; it is removed", allocation)
            await self._kill(allocation, process)
            process.close()
            return
        await asyncio.to_thread(self._enclose, process)
        vm = self._vms[allocation] = Vm(process, GuestFiles(self._state_dir, allocation))
        self._begin(vm, adopted=True)

    def _begin(self, vm: Vm, *, adopted: bool) -> None:
        vm.begin(self._sink, adopted=adopted).add_done_callback(lambda _: self._vms.pop(vm.allocation, None))

    async def _kill(self, allocation: str, process: QemuProcess) -> None:
        """End the process, returning when it is gone: by the hypervisor, which lets it finish writes, else directly."""
        try:
            await asyncio.wait_for(self._call(lambda: self._virt.destroy(PREFIX + allocation)), _DESTROY_S)
        except (TimeoutError, HypervisorError) as exc:
            if process.alive:
                _log.warning("libvirt cannot end VM %s, killing it: %s", allocation, exc or "no answer")
        process.kill()
        while process.alive:  # noqa: ASYNC110 - the watch may hold the only reader of this descriptor
            await asyncio.sleep(_LOOK_S)

    def _stopped(self, name: str, reason: str) -> None:
        if vm := self._vms.get(allocation_of(name) or ""):
            vm.stopped(reason)

    def _tell(self, allocation: str, kind: str, grace_s: int) -> None:
        if (vm := self._vms.get(allocation)) and vm.channel:
            vm.channel.send(kind, grace_s=grace_s)

    def _call(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, call)
