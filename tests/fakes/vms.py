"""VMs, a guard and a clock that live on the event loop's time: for unit tests and the simulation.

`FakeVms` is the hypervisor of one host: it outlives the agents that connect to it, as real VMs outlive an agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.ports import (
    GuardError,
    GuestCheckpointed,
    GuestExited,
    GuestLog,
    GuestStarted,
    VmEvent,
    VmGone,
    VmRuntimeError,
    VmSpec,
    VmStartError,
)

CallLater = Callable[[float, Callable[[], None]], object]
Sink = Callable[[VmEvent], None]


def _on_running_loop(delay_s: float, callback: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(delay_s, callback)


@dataclass(frozen=True)
class Guest:
    """What one allocation's guest will do; times in seconds of the loop."""

    refuses: str = ""  # start() raises VmStartError with this
    start_takes_s: float = 0.1
    boot_s: float | None = 5.0  # until GuestStarted; None: never
    run_s: float | None = 60.0  # from then to its end; None: until stopped
    exit_code: int | None = 0  # None: it crashes instead
    off_s: float = 0.5  # from GuestExited to VmGone
    obeys_stop: bool = True
    obeys_button: bool = False  # its system shuts down at the press of the power button
    stop_takes_s: float = 1.0
    checkpoint_takes_s: float | None = 0.5  # None: it never answers
    gpus: tuple[str, ...] = ("0000:06:00.0 10de:20b5",)


@dataclass
class FakeVm:
    """One VM process. `ran` says whether its CPUs ever ran."""

    spec: VmSpec
    guest: Guest
    ran: bool = False
    alive: bool = True
    stopping: bool = False
    exited: bool = False


@dataclass
class FakeVms:
    """Implements agent.ports.VmRuntime.

    `guests` scripts each allocation (default `default`). In the simulation, `call_later` must run callbacks as the
    world and not as the agent that called, and `deliver` hand an event to the agent's sink as the agent (dropping it if
    that agent is dead). `history` is every start and end, for invariants: (loop time, "run" or "end", allocation).
    """

    default: Guest = Guest()
    guests: dict[str, Guest] = field(default_factory=dict)
    call_later: CallLater = _on_running_loop
    deliver: Callable[[Sink, VmEvent], object] = lambda sink, event: sink(event)
    vms: dict[str, FakeVm] = field(default_factory=dict)
    history: list[tuple[float, str, str]] = field(default_factory=list)
    on_run: Callable[[VmSpec], object] = lambda _: None
    on_end: Callable[[VmSpec], object] = lambda _: None
    broken: bool = False  # libvirt does not answer: every call raises
    foreign: dict[str, str] = field(default_factory=dict)  # PCI functions of others' VMs, with the VM's name
    pressed: list[tuple[float, str]] = field(default_factory=list)  # power buttons
    _sink: Sink | None = None

    # The port

    async def open(self, sink: Sink) -> None:
        """See VmRuntime. An exit code that nobody heard is said again, as by a channel that is attached anew."""
        await asyncio.sleep(0)
        self._sink = sink
        for name, vm in sorted(self.vms.items()):
            if vm.alive and vm.exited and vm.guest.exit_code is not None:
                self._say(GuestExited(name, vm.guest.exit_code))

    async def running(self) -> Sequence[str]:
        """See VmRuntime."""
        await self._turn()
        return sorted(name for name, vm in self.vms.items() if vm.alive)

    async def start(self, spec: VmSpec, *, may_run: Callable[[], bool]) -> None:
        """See VmRuntime."""
        await self._turn()
        guest = self.guests.get(spec.allocation, self.default)
        if spec.allocation in self.vms and self.vms[spec.allocation].alive:
            raise AssertionError(f"{spec.allocation} was started twice")
        if guest.refuses:
            raise VmStartError(guest.refuses)
        vm = self.vms[spec.allocation] = FakeVm(spec, guest)
        await asyncio.sleep(guest.start_takes_s)
        if not vm.alive:
            raise VmStartError("the VM was killed while it was paused")
        if not may_run():
            self._end(vm, "destroyed")
            raise VmStartError("not allowed to run: the session is not fresh or the guard is gone")
        vm.ran = True
        self.history.append((asyncio.get_running_loop().time(), "run", spec.allocation))
        self.on_run(spec)
        if guest.boot_s is not None:
            self.call_later(guest.boot_s, lambda: self._guest_started(vm))

    async def checkpoint(self, allocation: str, grace_s: int) -> None:
        """See VmRuntime."""
        await self._turn()
        vm = self.vms.get(allocation)
        if vm and vm.guest.checkpoint_takes_s is not None:
            self.call_later(vm.guest.checkpoint_takes_s, lambda: self._say_of(vm, GuestCheckpointed(allocation)))

    async def stop(self, allocation: str, grace_s: int) -> None:
        """See VmRuntime. A guest that obeys ends its command with 143, as SIGTERM does."""
        await self._turn()
        vm = self.vms.get(allocation)
        if vm and vm.guest.obeys_stop and not vm.stopping:
            vm.stopping = True
            self.call_later(vm.guest.stop_takes_s, lambda: self._exit(vm, 143))

    async def press_power_button(self, allocation: str) -> None:
        """See VmRuntime."""
        await self._turn()
        self.pressed.append((asyncio.get_running_loop().time(), allocation))
        vm = self.vms.get(allocation)
        if vm and vm.guest.obeys_button:
            self.call_later(vm.guest.stop_takes_s, lambda: self._end(vm, "shutdown"))

    async def destroy(self, allocation: str) -> None:
        """See VmRuntime."""
        await self._turn()
        if vm := self.vms.get(allocation):
            self._end(vm, "destroyed")

    async def foreign_devices(self) -> Mapping[str, str]:
        """See VmRuntime."""
        await self._turn()
        return dict(self.foreign)

    async def close(self) -> None:
        """See VmRuntime."""
        await asyncio.sleep(0)
        self._sink = None

    # The hardware's side

    def kill_all(self, reason: str = "crashed") -> int:
        """What the guard, or a power cut, does; returns how many VMs died."""
        alive = [vm for _, vm in sorted(self.vms.items()) if vm.alive]
        for vm in alive:
            self._end(vm, reason)
        return len(alive)

    def kill(self, allocation: str, reason: str = "crashed") -> None:
        """One VM's process dies."""
        self._end(self.vms[allocation], reason)

    def say(self, allocation: str, text: str) -> None:
        """The guest prints a line."""
        self._say_of(self.vms[allocation], GuestLog(allocation, (("stdout", text),)))

    def disconnect(self) -> None:
        """The agent is gone without a word."""
        self._sink = None

    def _guest_started(self, vm: FakeVm) -> None:
        self._say_of(vm, GuestStarted(vm.spec.allocation, vm.guest.gpus))
        if vm.guest.run_s is not None:
            self.call_later(vm.guest.run_s, lambda: self._exit(vm, vm.guest.exit_code))

    def _exit(self, vm: FakeVm, exit_code: int | None) -> None:
        if not vm.alive or vm.exited:
            return
        if exit_code is None:
            self._end(vm, "crashed")
            return
        vm.exited = True
        self._say_of(vm, GuestExited(vm.spec.allocation, exit_code))
        self.call_later(vm.guest.off_s, lambda: self._end(vm, "shutdown"))

    def _end(self, vm: FakeVm, reason: str) -> None:
        if vm.alive:
            vm.alive = False
            self.history.append((asyncio.get_running_loop().time(), "end", vm.spec.allocation))
            self.on_end(vm.spec)
            self._say(VmGone(vm.spec.allocation, reason))

    def _say_of(self, vm: FakeVm, event: VmEvent) -> None:
        if vm.alive:
            self._say(event)

    def _say(self, event: VmEvent) -> None:
        if self._sink is not None:
            self.deliver(self._sink, event)

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.broken:
            raise VmRuntimeError("libvirt does not answer")


class FakeClock:
    """Implements agent.ports.Clock on the loop's time; `booted` is the loop time of the boot."""

    def __init__(self, *, wall_offset_s: float = 1_700_000_000.0) -> None:
        self._booted = asyncio.get_running_loop().time()
        self.wall_offset_s = wall_offset_s

    def wall(self) -> float:
        """See Clock."""
        return self.wall_offset_s + asyncio.get_running_loop().time()

    def boot(self) -> float:
        """See Clock."""
        return asyncio.get_running_loop().time() - self._booted


class FakeGuard:
    """Implements agent.ports.Guard: kills the VMs at its deadline. It outlives agents, not the host.

    `boot` is the host's boot clock. Switch it off with `dead` to rehearse a guard that was killed.
    """

    def __init__(self, vms: FakeVms, boot: Callable[[], float], call_later: CallLater = _on_running_loop) -> None:
        self._vms = vms
        self._boot = boot
        self._call_later = call_later
        self.deadline = 0.0
        self.limit = 0.0
        self.armed_s = 0.0  # of a hardware watchdog
        self.kills = 0
        self.dead = False
        self.unstartable = False
        self.slow_s = 0.0  # to start
        self.denied = ""  # by the system
        self._watching = False

    def extend(self, deadline_boot_s: float, limit_boot_s: float = 0.0) -> None:
        """See Guard."""
        self.deadline = max(self.deadline, deadline_boot_s)
        self.limit = max(self.limit, deadline_boot_s, limit_boot_s)

    def watchdog_s(self) -> float:
        """See Guard."""
        return self.armed_s if self.alive() else 0.0

    def refused(self) -> str:
        """See Guard."""
        return self.denied

    def alive(self) -> bool:
        """See Guard."""
        return self._watching and not self.dead

    async def ensure(self) -> None:
        """See Guard."""
        await asyncio.sleep(self.slow_s)
        if self.unstartable:
            raise GuardError("no guard can be had")
        self.dead = False
        if not self._watching:
            self._watching = True
            self._look()

    def _look(self) -> None:
        if not self.dead and self._boot() >= self.deadline and any(vm.alive for vm in self._vms.vms.values()):
            self.kills += self._vms.kill_all()
        # The deadline only ever moves on, so nothing can be due before the one that is known now.
        self._call_later(max(self.deadline - self._boot(), 0.1), self._look)
