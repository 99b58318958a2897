"""What operators ask: intents keep what others wrote, and nothing is vouched for that need not be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest

from gpupool.store import keys
from gpupool.store.port import Delete, Put
from gpupool.v1 import inventory_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.api.operations_api import OperationsApi
from scheduler.core.state.policy import Policy
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import until, virtual_time


@asynccontextmanager
async def serving(pool: Pool, policy: Policy | None = None) -> AsyncIterator[tuple[OperationsApi, Mirror]]:
    mirror = Mirror(pool.store, wall)
    task = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    yield OperationsApi(pool.store, mirror, replica="s1", version="1", wall=wall, policy=policy), mirror
    task.cancel()


async def record(pool: Pool, state: int, session: int = 5, fenced: int = 0) -> None:
    wire = records_pb2.HostRecord(session=session, last_fence=records_pb2.FenceRecord(session=fenced, detail="off"))
    wire.state = state  # type: ignore[assignment]
    await pool.put(Put(keys.host("h1"), wire.SerializeToString()))


@virtual_time
async def test_cordon_and_uncordon_keep_the_rest() -> None:
    pool = Pool()
    await pool.join("h1")
    await pool.put(Put(keys.host_intent("h1"), records_pb2.HostIntent(confirmed_dead_session=9).SerializeToString()))
    async with serving(pool) as (api, _):
        host = await api.host_intents.cordon("h1", "fans", "ann")
        assert (host.intent.cordoned, host.intent.reason, host.intent.by) == (True, "fans", "ann")
        assert host.intent.confirmed_dead_session == 9
        host = await api.host_intents.uncordon("h1", "bob")
        assert (host.intent.cordoned, host.intent.confirmed_dead_session) == (False, 9)
        with pytest.raises(ApiError, match="no host 'h9'; known hosts: none"):
            await api.host_intents.cordon("h9", "", "")


@pytest.mark.parametrize("state", ["JOINING", "READY", "FENCED"])
@virtual_time
async def test_a_host_that_lives_is_not_confirmed_dead(state: str) -> None:
    pool = Pool()
    await pool.join("h1")
    await record(pool, records_pb2.HostState.Value(f"HOST_STATE_{state}"))
    async with serving(pool) as (api, _):
        with pytest.raises(ApiError, match=f"host h1 is {state}; a death is confirmed only") as caught:
            await api.host_intents.confirm_dead("h1", "unplugged", "ann")
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


@virtual_time
async def test_a_death_is_confirmed_for_the_session_that_was_lost() -> None:
    pool = Pool()
    await record(pool, records_pb2.HOST_STATE_FENCING)
    async with serving(pool) as (api, _):
        with pytest.raises(ApiError, match="reason is missing"):
            await api.host_intents.confirm_dead("h1", "", "ann")
        host = await api.host_intents.confirm_dead("h1", "unplugged", "ann")
    assert (host.intent.confirmed_dead_session, host.intent.confirmed_by) == (5, "ann")


@virtual_time
async def test_only_a_quarantined_unit_is_retried() -> None:
    pool = Pool()
    session = await pool.join("h1")
    await record(pool, records_pb2.HOST_STATE_READY, session)
    request = scheduler_pb2.RetryUnitRequest(host="h1", unit="u0", by="ann")
    async with serving(pool) as (api, mirror):
        with pytest.raises(ApiError, match="unit u0 of h1 is FREE; only a QUARANTINED unit"):
            await api.retry_unit(request)
        report = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_QUARANTINED, session=session, reason="bars")
        await mirror.reached(await pool.put(Put(keys.unit("h1", "u0"), report.SerializeToString())))
        assert (await api.retry_unit(request)).unit.id == "u0"
        assert pool.backend.get(keys.unit_intent("h1", "u0")) is not None
        with pytest.raises(ApiError, match="no unit 'u9'; its units: u0, u1"):
            await api.retry_unit(scheduler_pb2.RetryUnitRequest(host="h1", unit="u9"))


@virtual_time
async def test_a_summary_counts() -> None:
    pool = Pool()
    session = await pool.join("h1", gpus=3)
    await record(pool, records_pb2.HOST_STATE_READY, session)
    taken = records_pb2.Allocation(id="j1.1", job="j1", host="h1", units=["u0"], session=session)
    await pool.put(Put(keys.allocation("h1", "j1.1"), taken.SerializeToString()))
    await pool.submit("j1")
    async with serving(pool) as (api, _):
        found = api.cluster()
        assert (found.hosts_ready, found.units, found.units_free, dict(found.jobs)) == (1, 3, 2, {"PENDING": 1})
        (host,) = api.hosts()
        assert (host.units_total, host.units_free, host.vms) == (3, 2, 1)
        assert [u.allocation for u in api.units("h1")] == ["j1.1", "", ""]
    await record(pool, records_pb2.HOST_STATE_FENCED, session)
    async with serving(pool) as (api, _):
        assert (api.cluster().hosts_ready, api.cluster().units_free) == (0, 0), "nobody gets those of a lost host"


@virtual_time
async def test_what_must_not_be_handed_out_is_in_no_state_that_promises_it() -> None:
    pool = Pool()
    session = await pool.join("h1", gpus=5)
    await record(pool, records_pb2.HOST_STATE_READY, session)
    kv = pool.backend.get(keys.inventory("h1"))
    assert kv is not None
    found = inventory_pb2.Inventory.FromString(kv.value)
    for unit in (found.units[0], found.units[1], found.units[3]):
        unit.unfit = "no IOMMU group"
    await pool.put(Put(keys.inventory("h1"), found.SerializeToString()))
    await pool.store.commit([], [Delete(keys.unit("h1", "u0"))])  # an agent says nothing of a unit that it never reset
    said = {
        "u1": records_pb2.UnitReport(state=records_pb2.UNIT_STATE_HELD, session=session, allocation="j1.1"),
        "u2": records_pb2.UnitReport(state=records_pb2.UNIT_STATE_FREE, session=session, sick="AER fatal errors"),
        "u3": records_pb2.UnitReport(state=records_pb2.UNIT_STATE_QUARANTINED, session=session, reason="bars"),
    }
    taken = records_pb2.Allocation(id="j1.1", job="j1", host="h1", units=["u1"], session=session)
    await pool.put(
        Put(keys.allocation("h1", "j1.1"), taken.SerializeToString()),
        *(Put(keys.unit("h1", unit), report.SerializeToString()) for unit, report in said.items()),
    )
    async with serving(pool) as (api, _):
        states = [records_pb2.UnitState.Name(view.state).removeprefix("UNIT_STATE_") for view in api.units("h1")]
        assert states == ["UNSPECIFIED", "HELD", "UNSPECIFIED", "QUARANTINED", "FREE"]
        assert (api.cluster().units_free, api.host("h1").units_free) == (1, 1)
        with pytest.raises(ApiError, match=r"unit u0 of h1 is unfit \(no IOMMU group\); only a QUARANTINED unit"):
            await api.retry_unit(scheduler_pb2.RetryUnitRequest(host="h1", unit="u0"))


@virtual_time
async def test_events_are_kept_then_followed() -> None:
    pool = Pool()
    async with serving(pool) as (api, mirror):
        await record(pool, records_pb2.HOST_STATE_READY)
        await until(lambda: mirror.history)
        async with aclosing(api.events(scheduler_pb2.WatchEventsRequest(follow=True, last=5))) as news:
            assert (await anext(news)).to == "READY"
            await record(pool, records_pb2.HOST_STATE_FENCING)
            event = await anext(news)
            assert (getattr(event, "from"), event.to) == ("READY", "FENCING")
            assert event.reason == "no evidence yet that session 5 is dead"
        assert not mirror.listening[1]
        kept = [e async for e in api.events(scheduler_pb2.WatchEventsRequest(last=1))]
        assert [e.to for e in kept] == ["FENCING"]


@virtual_time
async def test_a_quarantined_unit_that_is_away_is_shown_and_can_be_tried_again() -> None:
    """Its agent remembers it in case it comes back; only an operator's word ends that."""
    pool = Pool()
    await pool.join("h1")
    away = records_pb2.UnitReport(
        state=records_pb2.UNIT_STATE_QUARANTINED, session=5, reason="dead", identity="10de:20b5#1"
    )
    await pool.put(Put(keys.unit("h1", "0000:99:00.0"), away.SerializeToString()))
    await record(pool, records_pb2.HOST_STATE_READY)
    async with serving(pool) as (api, _):
        (view,) = (view for view in api.units("h1") if view.unit.id == "0000:99:00.0")
        assert (view.state, view.unit.identity) == (records_pb2.UNIT_STATE_QUARANTINED, "10de:20b5#1")
        assert view.unit.unfit == "it is not on this host now"
        asked = scheduler_pb2.RetryUnitRequest(host="h1", unit="0000:99:00.0", by="ann")
        assert (await api.retry_unit(asked)).unit.id == "0000:99:00.0"


@virtual_time
async def test_a_host_that_the_policy_drains_says_why() -> None:
    """Only for a unit that is there: one that is away keeps nobody from the host."""
    pool = Pool()
    await pool.join("h1")
    quarantined = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_QUARANTINED, session=5, reason="dead")
    await pool.put(Put(keys.unit("h1", "0000:99:00.0"), quarantined.SerializeToString()))
    await record(pool, records_pb2.HOST_STATE_READY)
    async with serving(pool, Policy(drain_on_quarantine=True)) as (api, _):
        (unit, *_rest) = (view.unit.id for view in api.units("h1") if view.unit.id != "0000:99:00.0")
        assert api.host("h1").ordered_drain == ""
        await pool.put(Put(keys.unit("h1", unit), quarantined.SerializeToString()))
        await until(lambda: api.host("h1").ordered_drain != "")
        expected = f"unit {unit} quarantined (drain_on_quarantine); retry-unit once it is mended"
        assert api.host("h1").ordered_drain == expected
    async with serving(pool) as (api, _):
        assert api.host("h1").ordered_drain == "", "a site that did not ask for it"
