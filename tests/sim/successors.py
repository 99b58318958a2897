"""A machine that takes another's name for good, gets VMs, and then is cut off with no guard. What the power file has at
that name is still the fence device of its predecessor.

As in `twins.py`, nothing is cut off whose agent has not said that no guard is left: what a soft guard cannot do is not
what is tried here. It must not begin before the name's own machine is on record: trust on first use rests on that.
"""

from __future__ import annotations

from collections.abc import Callable

from gpupool.store import keys
from gpupool.v1 import records_pb2
from tests.sim.faults import impair
from tests.sim.hardware import Machine
from tests.sim.link import Impairment
from tests.sim.world import World

LOOK_S = 0.25


def begin(world: World, first: Machine, second: Machine) -> Callable[[], None]:
    """The first is off, the second has its name by now; the result ends what this adds."""
    node = f"{second.name}/agent"
    ends: list[Callable[[], None]] = []
    over = False

    def look() -> None:
        if over:
            return
        if list(second.alive()) and not second.guard.unstartable:
            world.trace("has VMs, and loses its guard", node=second.name)
            second.guard.kill()
            second.guard.unstartable = True
        if second.guard.unstartable and _says_so(world, second):
            world.trace("says that it has no guard, and is cut off", node=second.name)
            ends.append(impair(world, node, Impairment(cut_out=True, cut_in=True)))
            return
        world.after(LOOK_S, look)

    def end() -> None:
        nonlocal over
        over = True
        for undo in ends:
            undo()
        second.guard.unstartable = False
        world.power_on(first.name)

    world.power_cut(first.name)
    look()
    return end


def on_record(world: World, machine: Machine) -> bool:
    """Whether a leader has put on record that the name is this machine's, and its fence device, if it has one."""
    kv = world.backend.get(keys.host(machine.host))
    record = records_pb2.HostRecord.FromString(kv.value) if kv is not None else records_pb2.HostRecord()
    known = {record.machine, *(device.machine for device in record.fence_devices)}
    return known == {machine.board}


def _says_so(world: World, machine: Machine) -> bool:
    kv = world.backend.get(keys.session(machine.host))
    said = records_pb2.Session.FromString(kv.value) if kv is not None else records_pb2.Session()
    return said.machine == machine.board and bool(said.unguarded)
