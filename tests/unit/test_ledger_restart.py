"""What an agent that died says to the next one of its boot, from records alone."""

from __future__ import annotations

import pytest

from agent.work.ledger import Ledger
from agent.work.tables import UnitIs, VmIs
from gpupool.v1.records_pb2 import Allocation
from tests.fakes.agent_rig import MemoryRecords
from tests.fakes.vms import FakeClock

UNIT = "0000:21:00.0"


@pytest.mark.parametrize("reset_begun", [False, True])
async def test_a_unit_whose_vm_ended_is_dirty_to_the_next_agent(*, reset_begun: bool) -> None:
    records, clock = MemoryRecords(), FakeClock()
    ledger = Ledger(records, clock)
    ledger.meet_units({UNIT: "card"}, {})
    ledger.resetting(UNIT)
    ledger.proven(UNIT, "clean")
    ledger.prepare(Allocation(id="j.1", session=7, units=[UNIT]), deadline=10.0)
    ledger.touches("j.1")
    ledger.gone("j.1", "shutdown")
    if reset_begun:
        ledger.resetting(UNIT)
    following = Ledger(records, clock)
    assert following.vms["j.1"].state == VmIs.ENDED
    following.doubt_units()
    unit = following.units[UNIT]
    assert (unit.state, unit.used, unit.allocation) == (UnitIs.DIRTY, True, "j.1")


async def test_a_unit_whose_vm_lives_is_held_to_the_next_agent() -> None:
    records, clock = MemoryRecords(), FakeClock()
    ledger = Ledger(records, clock)
    ledger.meet_units({UNIT: "card"}, {})
    ledger.resetting(UNIT)
    ledger.proven(UNIT, "clean")
    ledger.prepare(Allocation(id="j.1", session=7, units=[UNIT]), deadline=10.0)
    following = Ledger(records, clock)
    following.doubt_units()
    assert following.units[UNIT].state == UnitIs.HELD
