"""What operators ask for: every wish is written beside the others, with a name and a time, and changes no state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from gpupool.store import keys
from gpupool.store.port import Put
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.api.jobs_api import JobsApi
from scheduler.api.operations_api import OperationsApi
from scheduler.core.state.policy import Policy
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import virtual_time


@asynccontextmanager
async def serving(pool: Pool) -> AsyncIterator[tuple[OperationsApi, JobsApi]]:
    mirror = Mirror(pool.store, wall)
    task = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    yield (
        OperationsApi(pool.store, mirror, replica="s1", version="1", wall=wall),
        JobsApi(pool.store, mirror, policy=Policy(), wall=wall, token=lambda: b"x"),
    )
    task.cancel()


def drain(**fields: object) -> records_pb2.Drain:
    return records_pb2.Drain(**fields)  # type: ignore[arg-type]


@virtual_time
async def test_a_drain_keeps_its_beginning_and_the_rest_of_the_intent() -> None:
    pool = Pool()
    await pool.join("h1")
    async with serving(pool) as (api, _):
        await api.host_intents.cordon("h1", "fans", "ann")
        first = await api.host_intents.drain("h1", drain(by="ann", at_once=2, at_s=1.0))
        assert first.intent.drain.at_s > 1.0  # the scheduler's time, not the client's
        await asyncio.sleep(10)
        again = await api.host_intents.drain("h1", drain(by="bob", grace_s=60, wait=True))
        assert again.intent.drain == drain(by="bob", grace_s=60, wait=True, at_s=first.intent.drain.at_s)
        assert again.intent.cordoned
        over = await api.host_intents.undrain("h1", "ann")
        assert (over.intent.HasField("drain"), over.intent.cordoned) == (False, True)


@virtual_time
async def test_a_grace_of_a_fortnight_is_a_slip_of_the_finger() -> None:
    pool = Pool()
    await pool.join("h1")
    async with serving(pool) as (api, _):
        with pytest.raises(ApiError, match=r"drain.grace_s 1209600 is more than 604800 \(7 days\)") as caught:
            await api.host_intents.drain("h1", drain(grace_s=14 * 24 * 3600))
        with pytest.raises(ApiError, match="no host 'h9'"):
            await api.host_intents.drain("h9", drain())
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@virtual_time
async def test_maintenance_takes_no_cordon_with_it() -> None:
    pool = Pool()
    await pool.join("h1")
    async with serving(pool) as (api, _):
        on = await api.host_intents.maintenance(
            scheduler_pb2.SetMaintenanceRequest(host="h1", on=True, reason="new fans", by="ann")
        )
        assert (on.intent.maintenance, on.intent.maintenance_reason) == (True, "new fans")
        await api.host_intents.cordon("h1", "fans", "ann")
        off = await api.host_intents.maintenance(scheduler_pb2.SetMaintenanceRequest(host="h1"))
        assert (off.intent.maintenance, off.intent.maintenance_reason) == (False, "")
        assert (off.intent.cordoned, off.intent.reason) == (True, "fans")


@virtual_time
async def test_an_uncordon_is_dated_just_after_what_it_answers_by_the_leaders_clock() -> None:
    pool = Pool()
    await pool.join("h1")
    async with serving(pool) as (api, _):
        assert not (await api.host_intents.uncordon("h1", "ann")).intent.uncordoned_s  # nothing was lost
        for ahead_s in (3600.0, -3600.0):
            at_s = wall() + ahead_s
            record = records_pb2.HostRecord(lost_s=[at_s - 50, at_s], held_out="often lost", held_out_s=at_s)
            await pool.put(Put(keys.host("h1"), record.SerializeToString()))
            await asyncio.sleep(1)
            dated_s = (await api.host_intents.uncordon("h1", "ann")).intent.uncordoned_s
            assert at_s < dated_s < at_s + 1


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_word_outdates_what_it_answers_whatever_the_clocks_say(ahead_s: float) -> None:
    """Who wrote what is on record has another clock than this replica: the leader, and the agent of the unit."""

    @virtual_time
    async def scenario() -> None:
        pool, at_s = Pool(), wall() + ahead_s
        await pool.join("h1")
        await pool.submit("a")
        cluster = records_pb2.ClusterRecord(brake=records_pb2.Brake(since_s=at_s, reason="5 of 12 hosts"))
        held = job_pb2.JobStatus(state=job_pb2.JOB_STATE_PENDING, hold="3 hosts died with it", held_s=at_s)
        kv = await pool.store.get(keys.unit("h1", "u0"))
        assert kv
        unit = records_pb2.UnitReport.FromString(kv.value)
        unit.state, unit.since_s = records_pb2.UNIT_STATE_QUARANTINED, at_s
        for key, record in (
            (keys.CLUSTER, cluster),
            (keys.host("h1"), records_pb2.HostRecord(session=unit.session)),
            (keys.job_status("a"), held),
            (keys.unit("h1", "u0"), unit),
        ):
            await pool.put(Put(key, record.SerializeToString()))
        async with serving(pool) as (api, jobs):
            await api.cluster_intents.release_brake(scheduler_pb2.ReleaseBrakeRequest(reason="a switch", by="ann"))
            assert api.cluster().intent.brake_released_s == at_s  # this brake, and none that may follow
            await jobs.release(scheduler_pb2.ReleaseJobRequest(id="a", reason="bad riser", by="ann"))
            await jobs.wishes.hold(scheduler_pb2.HoldJobRequest(id="a", reason="and again", by="ann"))
            await api.retry_unit(scheduler_pb2.RetryUnitRequest(host="h1", unit="u0", by="ann"))
        job, retry = await pool.store.get(keys.job_intent("a")), await pool.store.get(keys.unit_intent("h1", "u0"))
        assert job
        assert retry
        word = records_pb2.JobIntent.FromString(job.value)
        assert at_s < word.released_s < at_s + 1
        assert word.held_s > word.released_s
        assert at_s < records_pb2.UnitIntent.FromString(retry.value).retry_requested_s < at_s + 1

    scenario()


@virtual_time
async def test_only_a_brake_that_is_on_is_released() -> None:
    pool = Pool()
    async with serving(pool) as (api, _):
        with pytest.raises(ApiError, match="the mass failure brake is not on"):
            await api.cluster_intents.release_brake(scheduler_pb2.ReleaseBrakeRequest(reason="fine"))
        record = records_pb2.ClusterRecord(brake=records_pb2.Brake(since_s=wall(), reason="5 of 12 hosts"))
        await pool.put(Put(keys.CLUSTER, record.SerializeToString()))
        await asyncio.sleep(1)
        with pytest.raises(ApiError, match="reason is missing"):
            await api.cluster_intents.release_brake(scheduler_pb2.ReleaseBrakeRequest(reason=" "))
        await api.cluster_intents.release_brake(scheduler_pb2.ReleaseBrakeRequest(reason="a switch", by="ann"))
        shown = api.cluster()
        assert shown.record.brake.reason == "5 of 12 hosts"  # the leader ends it, not the wish
        assert shown.intent.brake_released_s >= shown.record.brake.since_s
        assert (shown.intent.brake_by, shown.intent.brake_reason) == ("ann", "a switch")


@virtual_time
async def test_disarming_wants_a_reason_arming_none_and_neither_forgets_a_released_brake() -> None:
    pool = Pool()
    await pool.put(Put(keys.CLUSTER_INTENT, records_pb2.ClusterIntent(brake_released_s=7.0).SerializeToString()))
    async with serving(pool) as (api, _):
        with pytest.raises(ApiError, match="say what the work is"):
            await api.cluster_intents.set_armed(scheduler_pb2.SetArmedRequest(armed=False))
        await api.cluster_intents.set_armed(scheduler_pb2.SetArmedRequest(armed=False, reason="etcd upgrade", by="ann"))
        assert (api.cluster().intent.disarmed, api.cluster().intent.reason) == (True, "etcd upgrade")
        await api.cluster_intents.set_armed(scheduler_pb2.SetArmedRequest(armed=True))
        assert (api.cluster().intent.disarmed, api.cluster().intent.brake_released_s) == (False, 7.0)


@virtual_time
async def test_only_a_held_job_is_released() -> None:
    pool = Pool()
    await pool.join("h1")
    job = "a"
    await pool.submit(job)
    async with serving(pool) as (_, jobs):
        with pytest.raises(ApiError, match=f"job {job} is not held, it is PENDING"):
            await jobs.release(scheduler_pb2.ReleaseJobRequest(id=job))
        held = job_pb2.JobStatus(state=job_pb2.JOB_STATE_PENDING, hold="3 hosts died with it", held_s=1.0)
        await pool.put(Put(keys.job_status(job), held.SerializeToString()))
        await asyncio.sleep(1)
        await jobs.release(scheduler_pb2.ReleaseJobRequest(id=job, reason="bad riser", by="ann"))
        kv = await pool.store.get(keys.job_intent(job))
    assert kv is not None
    word = records_pb2.JobIntent.FromString(kv.value)
    assert (word.released_s > 1.0, word.by, word.reason) == (True, "ann", "bad riser")


@virtual_time
async def test_failovers_are_listed_newest_first() -> None:
    pool = Pool()
    await pool.join("h1")
    for host, session, fenced_s in (("h1", 3, 10.0), ("h2", 4, 30.0), ("h1", 9, 20.0)):
        fence = records_pb2.FenceRecord(session=session, fenced_s=fenced_s)
        record = records_pb2.FailoverRecord(host=host, fence=fence)
        await pool.put(Put(keys.failover(host, session), record.SerializeToString()))
    async with serving(pool) as (api, _):

        def listed(**request: object) -> list[int]:
            answer = api.failovers(scheduler_pb2.ListFailoversRequest(**request))  # type: ignore[arg-type]
            return [record.fence.session for record in answer.failovers]

        assert listed() == [4, 9, 3]
        assert listed(last=1) == [4]
        assert listed(host="h1") == [9, 3]
        with pytest.raises(ApiError, match="no host 'h7'"):
            listed(host="h7")


@virtual_time
async def test_a_host_counts_who_is_stopping_until_it_has_ended() -> None:
    pool = Pool()
    session = await pool.join("h1")
    runs = records_pb2.Allocation(id="a.1", job="a", host="h1", session=session, desired=records_pb2.DESIRED_RUN)
    stops = records_pb2.Allocation(id="b.1", job="b", host="h1", session=session, desired=records_pb2.DESIRED_STOP)
    for each in (runs, stops):
        await pool.put(Put(keys.allocation("h1", each.id), each.SerializeToString()))
    async with serving(pool) as (api, _):
        assert (api.host("h1").vms, api.host("h1").vms_stopping) == (2, 1)
        await pool.report(stops, records_pb2.ALLOCATION_STATE_ENDED, job_pb2.OUTCOME_STOPPED)
        await asyncio.sleep(1)
        assert (api.host("h1").vms, api.host("h1").vms_stopping) == (2, 0)  # its units are not clean yet
