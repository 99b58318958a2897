"""What the worker does for units beside binding them: no needless reset, sickness while in use, devices that go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from gpupool.store import keys
from gpupool.v1 import job_pb2, records_pb2
from gpupool.v1.inventory_pb2 import Inventory
from tests.fakes.agent_rig import HOST, OTHER, UNIT, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

RESETTING = records_pb2.UNIT_STATE_RESETTING
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
        rig.volumes.wrong = "the storage is full"
        rig.allocate(volumes=[job_pb2.Volume(name="data", path="/data", size_mib=1)])
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_START_FAILED
        assert await free_again(rig) == "no reset needed; fake checks"


@virtual_time
async def test_a_unit_that_somebody_else_had_at_the_start_is_reset_though_no_vm_was_made() -> None:
    async with ready() as rig:
        rig.devices.unbindable[UNIT] = "held by Xorg (pid 7)"
        rig.allocate()
        assert (await rig.ended()).outcome == job_pb2.OUTCOME_START_FAILED
        assert await free_again(rig) == "flr; fake checks"


@virtual_time
async def test_a_start_looks_once_at_who_uses_its_units() -> None:
    async with ready() as rig:
        rig.allocate(units=[UNIT, OTHER])
        await rig.running()
        assert rig.devices.looks == [[UNIT, OTHER]]


@virtual_time
async def test_a_unit_that_was_quarantined_is_reset_when_an_operator_asks_for_another_try() -> None:
    """It may have been quarantined without having been used: what was wrong with it then is no less wrong."""
    async with ready() as rig:
        rig.volumes.wrong = "the storage is full"
        rig.devices.faults[UNIT] = "0xff throughout"
        rig.allocate(volumes=[job_pb2.Volume(name="data", path="/data", size_mib=1)])
        await until(lambda: rig.unit().state == QUARANTINED)
        rig.devices.faults.clear()
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=rig.clock.wall()))
        assert await free_again(rig) == "flr; fake checks"


async def reboot(rig: Rig) -> None:
    await rig.kill_agent()
    rig.vms.kill_all("power cut")
    rig.records.kinds.clear()
    rig.boot_id += "+"
    await rig.boot()


async def sick_and_away(rig: Rig) -> None:
    rig.allocate()
    await rig.running()
    rig.devices.sick[UNIT] = "2 fatal AER errors"
    await until(lambda: rig.unit().sick)
    rig.devices.sick.clear()
    rig.devices.units.remove(UNIT)
    await until(lambda: len(rig.agent.inventory.units) == 1)


@virtual_time
async def test_a_retry_is_one_more_try_although_the_clock_went_back_an_hour_meanwhile() -> None:
    rig = Rig()
    rig.clock.wall_offset_s += 3600
    rig.devices.faults[UNIT] = "bars differ"
    await rig.boot()
    await until(lambda: rig.unit().state == QUARANTINED)
    rig.clock.wall_offset_s -= 3600
    for tries in (2, 3):
        asked_s = rig.unit().since_s + 0.001  # as the scheduler's API dates it
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=asked_s, by="ann"))
        await asyncio.sleep(60)
        assert (rig.unit().state, rig.devices.reclaimed.count(UNIT)) == (QUARANTINED, tries)
    await rig.close()


@virtual_time
async def test_a_sick_unit_is_quarantined_though_its_host_was_rebooted_and_it_came_back_late() -> None:
    async with ready() as rig:
        await sick_and_away(rig)
        await reboot(rig)
        await until(lambda: rig.unit(OTHER).session == rig.session)
        rig.devices.units.append(UNIT)
        await until(lambda: len(rig.agent.inventory.units) == 2)
        await until(lambda: rig.unit().session == rig.session)
        assert (rig.unit().state, rig.unit().reason) == (QUARANTINED, "it was sick while in use: 2 fatal AER errors")


@virtual_time
async def test_a_sick_unit_is_quarantined_though_its_allocation_was_withdrawn_while_it_was_away() -> None:
    async with ready() as rig:
        await sick_and_away(rig)
        rig.withdraw()
        await until(lambda: rig.unit().state == QUARANTINED)
        assert rig.unit().reason.startswith("it was sick while in use: 2 fatal AER errors; ")


@virtual_time
async def test_the_history_of_a_units_reclaims_outlives_a_reboot() -> None:
    async with ready() as rig:
        await until(lambda: rig.unit().history.reclaims == 1)
        identity = rig.unit().identity
        await reboot(rig)
        await until(lambda: rig.unit().session == rig.session)
        assert rig.devices.recalled[identity].reclaims == 1


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
async def test_a_sick_unit_is_quarantined_though_its_agent_was_restarted_meanwhile() -> None:
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        rig.devices.sick[UNIT] = "2 fatal AER errors"
        await until(lambda: rig.unit().sick)
        rig.devices.sick.clear()
        await rig.kill_agent()
        await rig.boot()
        rig.stop()
        await rig.ended()
        await until(lambda: rig.unit().state == QUARANTINED)
        assert rig.unit().reason == "it was sick while in use: 2 fatal AER errors"


@virtual_time
async def test_what_befell_a_unit_just_before_its_vm_ended_is_on_record_before_the_reset() -> None:
    """No look came in time to see it, and the reset may take the traces away: a death of the agent in it too."""
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        rig.devices.reclaim_s = 30
        rig.devices.tolls[UNIT] = "2 fatal AER errors"
        rig.stop()
        await rig.ended()
        await until(lambda: rig.unit().sick)
        assert rig.unit().state == RESETTING
        rig.devices.tolls.clear()
        await rig.kill_agent()
        await rig.boot()
        await until(lambda: rig.unit().state == QUARANTINED)
        assert rig.unit().reason == "it was sick while in use: 2 fatal AER errors"
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=rig.clock.wall()))
        assert await free_again(rig)


@virtual_time
async def test_a_free_unit_that_answers_no_more_is_taken_out_before_a_job_lands_on_it() -> None:
    async with ready() as rig:
        rig.devices.dead[UNIT] = rig.devices.faults[UNIT] = "0xff throughout"
        await until(lambda: rig.unit().state == QUARANTINED)
        assert "0xff throughout" in rig.unit().reason
        assert rig.unit(OTHER).state == FREE


@virtual_time
async def test_a_free_unit_that_looked_dead_is_free_again_after_a_reset_and_a_proof() -> None:
    async with ready() as rig:
        rig.devices.dead[UNIT] = "0xff throughout"
        await until(lambda: rig.unit().state == RESETTING)
        rig.devices.dead.clear()
        await until(lambda: rig.unit().state == FREE)
        assert rig.unit().proof == "flr; fake checks"


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
async def test_vms_live_on_while_a_new_agent_cannot_read_its_devices() -> None:
    """The first survey may take long, or for ever: the session that the VMs live by is renewed meanwhile."""
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        await rig.kill_agent()
        read = rig.devices.inventory

        def broken() -> Inventory:
            raise RuntimeError("a tree that no parser has seen before")

        rig.devices.inventory = broken  # type: ignore[method-assign]
        session = await rig.boot()
        await asyncio.sleep(5 * rig.timing.ttl_s)
        assert rig.session == session
        assert "j1.1" in rig.vms.vms
        assert rig.unit().state == records_pb2.UNIT_STATE_HELD, "nothing is concluded from what was not read"
        rig.devices.inventory = read  # type: ignore[method-assign]
        rig.stop()
        await rig.ended()
        assert await free_again(rig) == "flr; fake checks"


@virtual_time
async def test_a_reading_that_fails_ends_neither_the_agent_nor_its_vms() -> None:
    async with ready() as rig:
        rig.allocate()
        await rig.running()
        read = rig.devices.inventory

        def broken() -> Inventory:
            raise RuntimeError("a tree that no parser has seen before")

        rig.devices.inventory = broken  # type: ignore[method-assign]
        await asyncio.sleep(60)
        rig.devices.inventory = read  # type: ignore[method-assign]
        rig.devices.units.append("0000:03:00.0")
        await until(lambda: rig.unit("0000:03:00.0").state == FREE)
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING


@virtual_time
async def test_a_free_device_that_vanishes_is_forgotten() -> None:
    async with ready() as rig:
        rig.devices.units.remove(OTHER)
        await until(lambda: rig.unit(OTHER) == records_pb2.UnitReport())
