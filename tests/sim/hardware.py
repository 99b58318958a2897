"""What an agent stands on in the simulation: a machine's VMs, devices, guard, disk and clock, which outlive agents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from agent.ports import VmEvent, VmSpec
from gpupool.v1 import inventory_pb2
from scheduler.fencing.port import FenceError, Power, SeenOff
from tests.fakes.agent_rig import FakeDevices, FakeLogs, FakeVolumes, MemoryRecords
from tests.fakes.vms import FakeGuard, FakeVms, Guest
from tests.sim.clock import SimClock
from tests.sim.world import World

MODEL = "nvidia-a100-80gb"
CLOCK_ERROR = 0.1
"""How wrong a host's clock may be; see agent/timing.py for what the kill margin covers."""
LATE = 0.7
CLOCK_ERROR_RESET = 0.04
"""The same behind a hardware watchdog, whose margin is smaller."""


class Devices(FakeDevices):
    """Units that a VM makes dirty and only a reclaim makes clean again."""

    def __init__(self, world: World, units: list[str]) -> None:
        super().__init__(units)
        self.dirty: set[str] = set()
        self._rng = world.rng(f"devices {units}")
        self._found = self._look()

    def inventory(self) -> inventory_pb2.Inventory:
        found = inventory_pb2.Inventory()  # a copy, as each look gives: the machine does not change
        found.CopyFrom(self._found)
        return found

    def _look(self) -> inventory_pb2.Inventory:
        found = super().inventory()
        for n, unit in enumerate(found.units):
            unit.numa_node = n % 2
        cores = [[inventory_pb2.CpuCore(threads=[c]) for c in range(n * 8, n * 8 + 8)] for n in range(2)]
        found.numa_nodes.extend(inventory_pb2.NumaNode(id=n, cores=cores[n], memory_mib=65536) for n in range(2))
        return found

    async def reclaim(self, unit: inventory_pb2.Unit, *, used: bool = True, allocation: str = "") -> str:
        await asyncio.sleep(self._rng.uniform(0.1, 3.0))
        if used:
            self.dirty.discard(unit.id)
        return "flr; simulated"


class SimVms(FakeVms):
    """A hypervisor whose timers belong to the world and whose events reach the agent that opened it, if it lives."""

    def __init__(self, world: World, guests: Callable[[str], Guest]) -> None:
        super().__init__(call_later=world.after)
        self._world = world
        self._guests_for = guests

    async def open(self, sink: Callable[[VmEvent], None]) -> None:
        life = self._world.loop.current()
        self.deliver = lambda to, event: self._world.loop.call_in(life, to, event)
        await super().open(sink)

    async def start(self, spec: VmSpec, *, may_run: Callable[[], bool]) -> None:
        self.guests.setdefault(spec.allocation, self._guests_for(spec.allocation))
        await super().start(spec, may_run=may_run)


class SimGuard(FakeGuard):
    """A guard on the host's own clock, which may be stopped (SIGSTOP) or killed; a stopped one shows no life for long.

    `ensure` puts another in the place of one that shows none, as the agent's client does. With `watchdog_s` there is a
    hardware watchdog: petted only while now + W <= the limit, and stopped only when the deadline has passed and nothing
    lives. So one that is petted never fires while this guard runs; one that is not calls `fire` by the limit.
    """

    def __init__(
        self, world: World, vms: FakeVms, clock: SimClock, watchdog_s: float, fire: Callable[[SimGuard], None]
    ) -> None:
        super().__init__(vms, clock.boot, lambda delay_s, look: world.after(delay_s / clock.rate, look))
        self._fire = fire
        self.device_s = watchdog_s
        self._stopped_at: float | None = None
        self._missed = False
        self._life = 0  # how often it was stopped: a watchdog that was petted since does not fire

    def alive(self) -> bool:
        return super().alive() and (self._stopped_at is None or self._boot() - self._stopped_at < 1.0)

    def watchdog_s(self) -> float:
        return self.device_s if self.alive() and self._boot() < self.deadline else 0.0

    async def ensure(self) -> None:
        if not self.alive() and not self.unstartable:
            self.go_on()
        await super().ensure()

    def kill(self) -> None:
        self._unpetted()
        self.dead = True

    def stop(self) -> None:
        self._unpetted()
        self._stopped_at = self._boot()

    def go_on(self) -> None:
        self._life += 1
        self._stopped_at = None
        if self._missed:
            self._missed = False
            self._look()

    def _unpetted(self) -> None:
        """From now on nobody pets the watchdog; if it is armed, it counts down from when it was petted last."""
        armed = self._boot() < self.deadline or any(vm.alive for vm in self._vms.vms.values())
        self._life += 1
        if self.device_s and armed and not self.dead and self._stopped_at is None:
            now, life = self._boot(), self._life

            def ring() -> None:
                if life == self._life:
                    self._fire(self)

            petted = min(now, self.limit - self.device_s)
            self._call_later(max(petted + self.device_s - now, 0.0), ring)

    def _look(self) -> None:
        if self._stopped_at is None:
            super()._look()
        else:
            self._missed = True


class SimFence:
    """Implements FenceDevice. `fault` below a half: it refuses; else it answers nothing; above LATE it obeys, late.

    What it says is what it saw, as the port demands; but the power may be gone although it says nothing.
    """

    kind = "sim"

    def __init__(self, world: World, machine: str) -> None:
        self._world = world
        self._machine = machine
        self._rng = world.rng(f"fence {machine}")
        self.power_on = self._rng.random() < 0.5
        self.fault: float | None = None
        self.cuts = 0

    async def off(self) -> SeenOff:
        if self.fault is not None and self.fault > LATE:
            self._world.after(self._rng.uniform(1.0, 20.0), self._cut)  # heard, and obeyed when nobody waits any more
        await self._reach()
        already = not self._world.powered(self._machine)
        if not already:
            self._world.loop.call_in(self._world.loop.world, self._cut)
        await self._reach()
        if self._world.powered(self._machine):
            raise FenceError("it is on again")
        return SeenOff(already)

    def _cut(self) -> None:
        self.cuts += 1
        self._world.power_cut(self._machine)

    async def on(self) -> None:
        await self._reach()
        self._world.loop.call_in(self._world.loop.world, self._world.power_on, self._machine)

    async def status(self) -> Power:
        await self._reach()
        return Power.ON if self._world.powered(self._machine) else Power.OFF

    async def _reach(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.2, 2.0))
        if self.fault is not None:
            await asyncio.sleep(0.0 if self.fault < 0.5 else 20.0)
            raise FenceError("the BMC does not answer")


class Machine:
    """One host. `boot` gives it a new boot id, an empty tmpfs and a new clock; `cut` ends its VMs.

    `host` is the name that its agent goes by, which another machine may have too (twins.py).
    """

    def __init__(self, world: World, name: str, units: int, guests: Callable[[str], Guest], host: str = "") -> None:
        self.name = name
        self.host = host or name
        self.board = f"board of {name}"  # the machine's id
        self.units = [f"0000:{16 + n:02x}:00.0" for n in range(units)]
        self.boots = 0
        self.fence = SimFence(world, name)
        rng = world.rng(f"machine {name}")
        self.watchdog_s = rng.choice([0, 4])
        # How wrong the crystal is: usually a little, sometimes as much as the margins cover.
        self.rate = 1.0 + rng.uniform(-1.0, 1.0) * rng.choice(
            [0.001, 0.02, CLOCK_ERROR_RESET if self.watchdog_s else CLOCK_ERROR]
        )
        self._reset_takes_s = rng.uniform(3.0, 30.0)
        self._world = world
        self._guests = guests
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        self.boot_id = f"{self.name}-boot-{self.boots}"
        self.clock = SimClock(self._world.loop, rate=self.rate)
        self.devices = Devices(self._world, self.units)
        self.vms = SimVms(self._world, self._guests)
        self.vms.on_run = self._ran
        self.vms.on_end = lambda spec: self._world.vm_event(f"{self.name} ends {spec.allocation}")
        self.guard = SimGuard(self._world, self.vms, self.clock, self.watchdog_s, self._reset)
        self.records = MemoryRecords()
        self.logs = FakeLogs()
        self.volumes = FakeVolumes()

    def _reset(self, guard: SimGuard) -> None:
        """The watchdog has fired."""
        if guard is self.guard and self._world.powered(self.name):
            self._world.trace("watchdog: reset", node=self.name)
            self._world.power_cut(self.name)
            self._world.after(self._reset_takes_s, lambda: self._world.power_on(self.name))

    def cut(self) -> None:
        self.guard.dead = True
        self.vms.disconnect()
        self.vms.kill_all("power cut")

    def _ran(self, spec: VmSpec) -> None:
        functions = [function.address for function in spec.functions]
        unclean = self.devices.dirty.intersection(functions)
        if unclean:
            self._world.loop.fail(AssertionError(f"{spec.allocation} got {sorted(unclean)} of {self.name} unproven"))
        self.devices.dirty.update(functions)
        self._world.vm_event(f"{self.name} runs {spec.allocation} on {functions}")

    def alive(self) -> Iterator[VmSpec]:
        """VMs whose CPUs run."""
        return (vm.spec for _, vm in sorted(self.vms.vms.items()) if vm.alive and vm.ran)
