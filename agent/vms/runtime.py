"""Runs VMs, given a hypervisor: implements ports.VmRuntime without knowing libvirt.

It must never let a VM run that the guard cannot reach or that `may_run` refuses, and never leave a part of one behind
that failed to start, not even when whoever asked for it has stopped waiting or the hypervisor hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..devices.blocking import in_own_thread
from ..domain.seed import seed_image
from ..domain.shape import shape_of
from ..domain.xml import allocation_of, domain_xml
from ..ports import VmEvent, VmPaused, VmSpec, VmStartError
from . import accel
from .capacity import HostState, shortages
from .cgroup import VmCgroup
from .channel import Sink
from .driver import Driver, Hypervisor
from .errors import HypervisorError, readable_start
from .files import GuestFiles, left_behind, run_message
from .firmware import Firmware, find_firmware
from .images import UefiBoot, load_image
from .process import QemuProcess
from .watch import Vm, report_end

T = TypeVar("T")
_log = logging.getLogger(__name__)
_PATIENCE_S = 10.0  # for a start that nobody wants any more to come to its end by itself


@dataclass(slots=True)
class _Start:
    """A VM on its way up. `wanted` turns false when whoever asked has stopped waiting."""

    spec: VmSpec
    may_run: Callable[[], bool]
    files: GuestFiles
    wanted: bool = True
    process: QemuProcess | None = None
    work: asyncio.Task[Vm] | None = None
    task: asyncio.Task[None] | None = field(default=None)


class Runtime:
    """Implements ports.VmRuntime. `run_dir` is where the hypervisor keeps pid files, `cgroup` the guard's directory,
    `overlays` where VMs' layers above an image's disk lie (None: in the state directory). `host` is looked at before a
    start, unless it is `simulated`.
    """

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
        host: HostState | None = None,
        overlays: Path | None = None,
        firmware: Callable[[], Firmware | None] = find_firmware,
    ) -> None:
        self._driver = Driver(hypervisor, run_dir)
        self._images = images
        self._state_dir = state_dir
        self._overlays = overlays
        self._cgroup = VmCgroup(cgroup)
        self._simulated = simulated
        self._accel = accel
        self._host = None if simulated else host
        self._firmware = firmware
        self._amd = False
        self._sink: Sink = lambda _: None
        self._vms: dict[str, Vm] = {}
        self._starts: dict[str, _Start] = {}
        self._burials: set[asyncio.Task[None]] = set()

    async def open(self, sink: Callable[[VmEvent], None]) -> None:
        """See ports.VmRuntime. Raises RuntimeUnavailableError with what is missing."""
        self._sink = sink
        loop = asyncio.get_running_loop()

        def on_stop(name: str, reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._stopped, name, reason)

        def on_pause(name: str, reason: str) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._paused, name, reason)

        self._accel = await accel.choose(self._accel)
        self._amd = await asyncio.to_thread(accel.is_amd)
        await asyncio.to_thread(self._cgroup.make)
        await self._driver.open(on_stop, on_pause)
        for name, never_ran in await self._driver.domains():
            await self._adopt(name, never_ran=never_ran)
        for files in await in_own_thread(lambda: left_behind(self._state_dir, self._overlays)):
            if files.allocation not in self._vms:
                await report_end(files, "it ended while the agent was away", sink, exit_known=False)

    async def running(self) -> Sequence[str]:
        """See ports.VmRuntime. A VM counts until its VmGone has been given out, so that its exit code comes first."""
        return sorted({*await self._driver.living(), *self._vms, *self._starts})

    async def foreign_devices(self) -> Mapping[str, str]:
        """See ports.VmRuntime."""
        return await self._driver.foreign_devices()

    async def start(self, spec: VmSpec, *, may_run: Callable[[], bool]) -> None:
        """See ports.VmRuntime. If cancelled, it returns at once and cleans up behind; `running` names it until then."""
        name = spec.allocation
        if name in self._vms or name in self._starts:
            raise VmStartError(f"{name} has a VM already")
        start = self._starts[name] = _Start(spec, may_run, self._files(name))
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

    async def press_power_button(self, allocation: str) -> None:
        """See ports.VmRuntime."""
        if allocation in self._vms:
            await self._driver.shutdown(allocation)

    async def destroy(self, allocation: str) -> None:
        """See ports.VmRuntime. A start under way is ended first, also one that hangs."""
        if start := self._starts.get(allocation):
            await self._give_up(start)
        if vm := self._vms.get(allocation):
            await self._driver.end(allocation, vm.process)
            await vm.gone()
        elif process := await self._driver.find(allocation):
            await self._driver.end(allocation, process)
            process.close()
            await in_own_thread(self._files(allocation).remove)

    async def close(self) -> None:
        """See ports.VmRuntime."""
        for start in list(self._starts.values()):
            await self._give_up(start)
        for vm in list(self._vms.values()):
            await vm.release()
        self._vms.clear()
        with contextlib.suppress(HypervisorError):  # it hangs: its thread ends with this process
            await self._driver.close()

    # Starting

    async def _bring_up(self, start: _Start) -> None:
        start.work = asyncio.create_task(self._make(start), name=f"make {start.spec.allocation}")
        await asyncio.wait({start.work})
        if start.work.cancelled():
            error: BaseException | None = VmStartError("the start was given up")
        else:
            error = start.work.exception()
        if error is None:
            self._begin(start.work.result(), adopted=False)
            return
        await self._undo(start)
        text = readable_start(str(error)) if isinstance(error, HypervisorError) else str(error)
        raise VmStartError(text or type(error).__name__) from error

    async def _give_up(self, start: _Start) -> None:
        start.wanted = False
        if start.task is None:
            return
        await asyncio.wait({start.task}, timeout=_PATIENCE_S)
        if start.work and not start.task.done():
            start.work.cancel()
        await asyncio.wait({start.task})

    def _start_ended(self, name: str) -> None:
        task = self._starts.pop(name).task
        if task and not task.cancelled() and (error := task.exception()):
            _log.info("start of VM %s: %s", name, error)  # whoever asked may have stopped waiting

    async def _make(self, start: _Start) -> Vm:
        """The VM, running but not watched yet."""
        name = start.spec.allocation
        xml = await _to_its_end(lambda: self._prepare(start))
        await self._driver.create(xml, start.spec.memory_mib, lambda: start.wanted, lambda _: self._bury(name))
        start.process = await self._driver.find(name)
        if start.process is None:
            raise VmStartError("its QEMU ended at once; see the host's libvirt log")
        pid = start.process.pid
        await _to_its_end(lambda: self._cgroup.enclose(pid))
        vm = Vm(start.process, start.files, self._cgroup.claim_oom)
        self._vms[name] = vm
        if not (start.wanted and start.may_run()):
            raise VmStartError("the host's session is not fresh any more, so the VM was not let run")
        await self._driver.resume(name, lambda: start.wanted)
        return vm

    def _prepare(self, start: _Start) -> str:
        """Make the VM's files; its domain's XML."""
        spec, files = start.spec, start.files
        image = load_image(self._images, spec.image)
        uefi = image.boot if isinstance(image.boot, UefiBoot) else None
        shape = shape_of(
            spec,
            image,
            files,
            accel=self._accel,
            simulated=self._simulated,
            firmware=self._firmware() if uefi else None,
            amd=self._amd,
        )
        if self._host is not None and (lack := next(shortages(shape, self._host), "")):
            raise VmStartError(lack)
        files.prepare(run_message(spec))
        if shape.seed:
            files.write_seed(seed_image(spec.allocation, spec.options.user_data))
        if uefi and shape.firmware:
            files.copy_variables(shape.firmware.variables)
            files.make_overlay(image, uefi)
        return domain_xml(shape)

    async def _undo(self, start: _Start) -> None:
        """Leave nothing of a VM that was not started."""
        name = start.spec.allocation
        if start.process:
            await self._driver.end(name, start.process)
            start.process.close()
        await self._driver.clear(name)
        self._vms.pop(name, None)
        await in_own_thread(start.files.remove)

    def _bury(self, name: str) -> None:
        """The hypervisor made a VM after all, long after its start was given up."""
        if name in self._vms or name in self._starts:
            return
        _log.warning("libvirt made VM %s after its start was given up; it is removed", name)
        task = asyncio.get_running_loop().create_task(self._driver.clear(name), name=f"bury {name}")
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    # Living and dying

    async def _adopt(self, name: str, *, never_ran: bool) -> None:
        allocation = allocation_of(name)
        process = await self._driver.find(allocation) if allocation else None
        if allocation is None or process is None:
            return
        if never_ran:
            _log.warning("VM %s was being started when the last agent ended; it is removed", allocation)
            await self._driver.end(allocation, process)
            process.close()
            return
        await asyncio.to_thread(self._cgroup.enclose, process.pid)
        vm = self._vms[allocation] = Vm(process, self._files(allocation), self._cgroup.claim_oom)
        self._begin(vm, adopted=True)

    def _begin(self, vm: Vm, *, adopted: bool) -> None:
        vm.begin(self._sink, adopted=adopted).add_done_callback(lambda _: self._vms.pop(vm.allocation, None))

    def _stopped(self, name: str, reason: str) -> None:
        if vm := self._vms.get(allocation_of(name) or ""):
            vm.stopped(reason)

    def _paused(self, name: str, reason: str) -> None:
        if vm := self._vms.get(allocation_of(name) or ""):
            self._sink(VmPaused(vm.allocation, reason))

    def _tell(self, allocation: str, kind: str, grace_s: int) -> None:
        if (vm := self._vms.get(allocation)) and vm.channel:
            vm.channel.send(kind, grace_s=grace_s)

    def _files(self, allocation: str) -> GuestFiles:
        return GuestFiles(self._state_dir, allocation, self._overlays)


async def _to_its_end(call: Callable[[], T]) -> T:
    """The call's result, from a thread of its own, as storage may hang. If cancelled, it waits for a while first: what
    is undone should not go on being done.
    """
    task = asyncio.ensure_future(in_own_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_PATIENCE_S)
        raise
