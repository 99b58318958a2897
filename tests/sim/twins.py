"""Machines that go by another's name, and guards that are lost where nobody looks: two faults that need each other.

As long as a guard kills, no VM outlives its session, so nothing shows whether a twin was taken for the machine, or an
old record believed. So here the guard is lost for good, its agent says so, and only then the machine is cut off: its
VMs live on, and nothing but knowledge of that very machine may count. It must never cut a machine off whose agent has
not said it yet: that is what a soft guard cannot do (ARCHITECTURE.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gpupool.store import keys
from gpupool.v1 import records_pb2
from tests.fakes.vms import Guest
from tests.sim import successors
from tests.sim.faults import impair
from tests.sim.hardware import Machine
from tests.sim.link import Impairment
from tests.sim.world import World

LOOK_S, SAYS_S = 0.25, 8.0
SUCCEEDS = 0.5  # amount of a twin above which it takes the name over (successors.py)
UNSEEN_S = 12.0  # from the cut on: a lease of 8 s, and some


class Twins:
    """Another machine for each name, made when it is wanted. `everybody`: all machines, by power domain."""

    def __init__(
        self,
        world: World,
        machines: Mapping[str, Machine],
        guests: Callable[[str], Guest],
        run_agent: Callable[[Machine], None],
    ) -> None:
        self._world = world
        self._guests = guests
        self._run_agent = run_agent
        self._users: dict[str, int] = {}  # two faults may want the same
        self.everybody = dict(machines)

    def alive(self, host: str) -> bool:
        """Whether a VM lives on any machine of that name."""
        return any(list(machine.alive()) for machine in self.everybody.values() if machine.host == host)

    def begin(self, host: str, amount: float) -> Callable[[], None]:
        """A twin is switched on; the result switches it off."""
        first = self.everybody[host]
        succeeds = amount > SUCCEEDS and successors.on_record(self._world, first)
        leave = self._switch_on(host)
        undo = successors.begin(self._world, first, self.everybody[f"{host}-twin"]) if succeeds else lambda: None

        def end() -> None:
            leave()
            undo()

        return end

    def _switch_on(self, host: str) -> Callable[[], None]:
        name = f"{host}-twin"
        self._users[name] = self._users.get(name, 0) + 1
        if name not in self.everybody:
            twin = Machine(self._world, name, len(self.everybody[host].units), self._guests, host)
            self.everybody[name] = twin
            self._run_agent(twin)
            self._world.start(f"{name}/agent")
        else:
            self._world.power_on(name)

        def end() -> None:
            self._users[name] -= 1
            if not self._users[name]:
                self._world.power_cut(name)

        return end


class GuardLost:
    """Guards that cannot be had any more. By chance no replica runs when that is said, and a twin comes afterwards."""

    def __init__(self, world: World, machines: Mapping[str, Machine], twins: Twins, replicas: Sequence[str]) -> None:
        self._world = world
        self._machines = machines
        self._twins = twins
        self._replicas = replicas

    def begin(self, name: str, amount: float) -> Callable[[], None]:
        """Behind a watchdog, a third loses only that; then the guard goes on, and it is no more than a soft one."""
        guard, ends = self._machines[name].guard, list[Callable[[], None]]()
        unseen, twin = amount < 0.6, amount > 0.3
        softens = guard.device_s > 0 and amount % 0.1 < 0.03
        if unseen:
            for replica in self._replicas:
                self._world.crash(replica)
        if softens:
            device_s, guard.device_s = guard.device_s, 0.0
            ends.append(lambda: setattr(guard, "device_s", device_s))
        else:
            guard.kill()
            guard.unstartable = True
            ends.append(lambda: setattr(guard, "unstartable", False))

        def look() -> None:
            if not ends:
                return
            if self._says_so(name, soft=softens):
                ends.append(self._cut(name, twin=twin))
            elif self._world.loop.time() < began + SAYS_S:
                self._world.after(LOOK_S, look)

        def start() -> None:
            for replica in self._replicas:
                self._world.start(replica)

        def end() -> None:
            for undo in reversed(ends):
                undo()
            ends.clear()

        began = self._world.loop.time()
        if unseen:
            self._world.after(SAYS_S + UNSEEN_S, start)
        look()
        return end

    def _says_so(self, name: str, *, soft: bool) -> bool:
        kv = self._world.backend.get(keys.session(name))
        said = records_pb2.Session.FromString(kv.value) if kv is not None else records_pb2.Session()
        return said.guard == records_pb2.GUARD_KIND_SOFT if soft else bool(said.unguarded)

    def _cut(self, name: str, *, twin: bool) -> Callable[[], None]:
        self._world.trace("says what became of its guard, and is cut off", node=name)
        mend = impair(self._world, f"{name}/agent", Impairment(cut_out=True, cut_in=True))
        leave = self._twins.begin(name, 0.0) if twin else lambda: None

        def end() -> None:
            leave()
            mend()

        return end
