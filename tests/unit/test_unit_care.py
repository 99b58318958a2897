"""What the worker does for units beside binding them: no needless reset, sickness while in use, devices that go."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from gpupool.store import keys
from gpupool.v1 import job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, OTHER, UNIT, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

FREE, QUARANTINED = records_pb2.UNIT_STATE_FREE, records_pb2.UNIT_STATE_QUARANTINED


@contextlib.asynccontextmanager
async def ready() -> AsyncIterator[Rig]:
    rig = Rig()
    rig.vms.default = Guest(run_s=None)
    try:
        await rig.ready()
        yield rig
    finally:
        await rig.close()


async def free_again(rig: Rig) -> str:
    """The proof."""
    await until(lambda: rig.unit().state == FREE and rig.unit().allocation == "j1.1")
    return rig.unit().proof


@virtual_time
async def test_a_unit_whose_vm_was_never_made_is_not_reset() -> None:
    async with ready() as rig:
        rig.devices.unbindable[UNIT] = "held by Xorg (pid 7)"
        rig.allocate()
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_START_FAILED
        assert await free_again(rig) == "no reset needed; fake checks"


@virtual_time
async def test_a_unit_that_a_vm_had_is_reset() -> None:
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        rig.stop()
        await rig.ended()
        assert await free_again(rig) == "flr; fake checks"


@virtual_time
async def test_an_agent_that_died_in_a_start_resets_what_a_vm_may_have_had() -> None:
    """It is on record before the VM is made: the next agent cannot know how far its predecessor came."""
    async with ready() as rig:
        rig.vms.default = Guest(start_takes_s=30)
        rig.allocate()
        await until(lambda: "j1.1" in rig.vms.vms)
        await rig.kill_agent()
        await rig.boot()
        assert await free_again(rig) == "flr; fake checks"


@virtual_time
async def test_a_unit_that_falls_sick_is_told_of_and_quarantined_when_it_comes_back() -> None:
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        rig.devices.sick[UNIT] = "2 fatal AER errors"
        await until(lambda: rig.unit().sick)
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING, "a sick unit does not end its job"
        assert list(rig.vm().warnings) == [f"unit {UNIT}: 2 fatal AER errors"]
        rig.stop()
        await rig.ended()
        await until(lambda: rig.unit().state == QUARANTINED)
        assert "2 fatal AER errors" in rig.unit().reason


@virtual_time
async def test_a_sick_unit_is_tried_again_when_an_operator_asks() -> None:
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        rig.devices.sick[UNIT] = "link down"
        await until(lambda: rig.unit().sick)
        rig.stop()
        await until(lambda: rig.unit().state == QUARANTINED)
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=rig.clock.wall()))
        assert await free_again(rig)
        assert not rig.unit().sick


@virtual_time
async def test_a_device_that_vanishes_in_use_is_sick_and_its_report_outlives_it() -> None:
    """The scheduler frees the allocation only on the unit's last word, so that must not go with the device."""
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        rig.devices.units.remove(UNIT)
        await until(lambda: rig.unit().sick == "it is gone from this host")
        rig.stop()
        await rig.ended()
        await until(lambda: rig.unit().state == QUARANTINED)
        assert rig.unit().allocation == "j1.1"


@virtual_time
async def test_a_free_device_that_vanishes_is_forgotten() -> None:
    async with ready() as rig:
        rig.devices.units.remove(OTHER)
        await until(lambda: rig.unit(OTHER) == records_pb2.UnitReport())
