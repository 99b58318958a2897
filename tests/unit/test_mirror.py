"""The mirror follows the store, and tells what happened, though one commit passed it by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Delete, Each, Put, Snapshot
from gpupool.v1 import job_pb2, records_pb2
from scheduler.core.state.policy import Policy
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import until, virtual_time


@asynccontextmanager
async def following(pool: Pool) -> AsyncIterator[Mirror]:
    mirror = Mirror(pool.store, wall)
    task = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    yield mirror
    task.cancel()


def told(mirror: Mirror) -> list[str]:
    return [f"{e.kind} {e.subject}: {getattr(e, 'from')} -> {e.to} ({e.reason})" for e in mirror.history]


async def status(pool: Pool, mirror: Mirror, state: int, *ended: str, message: str = "") -> None:
    attempts = [job_pb2.Attempt(number=n, message=text) for n, text in enumerate([*ended, ""], 1)]
    wire = job_pb2.JobStatus(attempts=attempts, attempt_count=len(attempts), message=message)
    wire.state = state  # type: ignore[assignment]
    await mirror.reached(await pool.put(Put(keys.job_status("j1"), wire.SerializeToString())))


@virtual_time
async def test_it_sees_what_is_and_what_comes_and_goes() -> None:
    pool = Pool()
    await pool.submit("j1")
    async with following(pool) as mirror:
        await pool.submit("j2")
        await until(lambda: mirror.jobs() == ["j1", "j2"])
        await pool.store.commit([], [Delete(keys.job_spec("j1"))])
        await until(lambda: mirror.jobs() == ["j2"])
        assert mirror.job("j1") is None
        assert not mirror.history  # what was there before it looked is no news; a spec has no state


@virtual_time
async def test_jobs_come_in_the_same_order_everywhere() -> None:
    pool = Pool()
    async with following(pool) as early:
        record = records_pb2.JobRecord().SerializeToString()
        await pool.put(*(Put(keys.job_spec(name), record) for name in ("jc", "ja", "jb")))
        await pool.submit("j0")
        await until(lambda: len(early.jobs()) == 4)
        async with following(pool) as late:
            assert early.jobs() == late.jobs() == ["ja", "jb", "jc", "j0"]
            assert late.jobs(late.arrival("jb")) == ["jc", "j0"]


@virtual_time
async def test_an_attempt_that_was_lost_and_placed_anew_in_one_commit_is_told() -> None:
    pool = Pool()
    async with following(pool) as mirror:
        await status(pool, mirror, job_pb2.JOB_STATE_STARTING, message="placed on h1")
        await status(pool, mirror, job_pb2.JOB_STATE_STARTING, "h1 lost its session 5", message="placed on h2")
        assert told(mirror) == [
            "job j1:  -> STARTING (placed on h1)",
            "job j1: STARTING -> PENDING (h1 lost its session 5)",
            "job j1: PENDING -> STARTING (placed on h2)",
        ]


@virtual_time
async def test_a_fence_is_told_though_the_host_is_back() -> None:
    pool = Pool()
    async with following(pool) as mirror:
        fence = records_pb2.FenceRecord(session=5, evidence=job_pb2.EVIDENCE_OTHER_BOOT, detail="boot b2")
        for session, last in ((5, None), (9, fence)):
            record = records_pb2.HostRecord(state=records_pb2.HOST_STATE_READY, session=session, last_fence=last)
            await mirror.reached(await pool.put(Put(keys.host("h1"), record.SerializeToString())))
        assert told(mirror) == [
            "host h1:  -> READY (session 5)",
            "host h1: READY -> FENCED (OTHER_BOOT: boot b2)",
            "host h1: FENCED -> READY (session 9)",
        ]


@virtual_time
async def test_a_unit_that_falls_sick_is_told_with_who_has_it() -> None:
    pool = Pool()
    held, quarantined = records_pb2.UNIT_STATE_HELD, records_pb2.UNIT_STATE_QUARANTINED
    async with following(pool) as mirror:
        for state, sick, reason in (
            (held, "", ""),
            (held, "AER fatal errors", ""),
            (held, "AER fatal errors", ""),
            (held, "its config space reads all ones", ""),
            (records_pb2.UNIT_STATE_DIRTY, "its config space reads all ones", ""),
            (quarantined, "its config space reads all ones", "was sick: its config space reads all ones"),
        ):
            report = records_pb2.UnitReport(state=state, allocation="j1.1", sick=sick, reason=reason)
            await mirror.reached(await pool.put(Put(keys.unit("h1", "u0"), report.SerializeToString())))
        assert told(mirror) == [
            "unit h1/u0:  -> HELD ()",
            "unit h1/u0: HELD -> HELD,SICK (AER fatal errors; held by j1.1)",
            "unit h1/u0: HELD,SICK -> HELD,SICK (its config space reads all ones; held by j1.1)",
            "unit h1/u0: HELD,SICK -> DIRTY,SICK (its config space reads all ones)",
            "unit h1/u0: DIRTY,SICK -> QUARANTINED (was sick: its config space reads all ones)",
        ]


@virtual_time
async def test_what_it_cannot_read_it_passes_over(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    async with following(pool) as mirror:
        later = records_pb2.UnitReport(state=77)  # type: ignore[arg-type]
        await pool.put(Put(keys.unit("h1", "u0"), later.SerializeToString()), Put(keys.host("h1"), b"\xff"))
        await pool.submit("j1")
        await until(mirror.jobs)
        assert told(mirror) == ["unit h1/u0:  -> state 77 ()"]
        assert "hosts/h1: unreadable" in caplog.text


@virtual_time
async def test_a_compaction_is_caught_up_with() -> None:
    pool = Pool(MemoryBackend(keep_revisions=2))
    async with following(pool) as mirror:
        for n in range(20):
            await pool.submit(f"j{n}")
        await until(lambda: len(mirror.jobs()) == 20)
        assert mirror.jobs() == [f"j{n}" for n in range(20)]


@virtual_time
async def test_waiting_for_a_revision_has_an_end() -> None:
    async with following(Pool()) as mirror:
        await mirror.reached(10**9, timeout_s=1.0)


@virtual_time
async def test_one_view_a_revision() -> None:
    pool, policy = Pool(), Policy()
    await pool.join("h1")
    async with following(pool) as mirror:
        first = mirror.view(policy)
        assert mirror.view(policy) is first
        assert first.reserve is mirror.view(policy).reserve
        await mirror.reached(await pool.put(Put("/gpupool/v1/other", b"")))
        assert mirror.view(policy) is not first
        assert mirror.cluster(policy) is not mirror.cluster(policy)


@virtual_time
async def test_others_run_while_a_view_is_made_and_who_asks_meanwhile_has_the_same() -> None:
    pool, policy = Pool(), Policy()
    for number in range(20):
        await pool.join(f"h{number}")
    async with following(pool) as mirror:
        turns, made = 0, asyncio.gather(*(mirror.view_in_turns(policy) for _ in range(3)))
        while not made.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 3
        first = (await made)[0]
        assert all(view is first for view in await made)
        assert await mirror.view_in_turns(policy) is first
        assert first.cluster.hosts == mirror.cluster(policy).hosts
        await mirror.reached(await pool.put(Put("/gpupool/v1/other", b"")))
        assert (await mirror.view_in_turns(policy)).revision == mirror.revision > first.revision


@virtual_time
async def test_a_view_made_while_things_change_is_of_one_moment() -> None:
    pool, policy = Pool(), Policy()
    for number in range(20):
        await pool.join(f"h{number}")
    async with following(pool) as mirror:
        before = mirror.cluster(policy)
        making = asyncio.create_task(mirror.view_in_turns(policy))
        await asyncio.sleep(0)
        await pool.leave("h3")
        await pool.submit("j1")
        view = await making
        assert view.cluster.hosts == before.hosts
        assert not view.cluster.jobs


@virtual_time
async def test_the_cluster_leaves_out_what_is_finished() -> None:
    pool = Pool()
    await pool.join("h1")
    await pool.submit("j1")
    await pool.submit("j2")
    async with following(pool) as mirror:
        await status(pool, mirror, job_pb2.JOB_STATE_SUCCEEDED)
        cluster = mirror.cluster(Policy())
        assert sorted(cluster.jobs) == ["j2"]
        assert sorted(cluster.hosts) == ["h1"]
        assert mirror.ids(Kind.JOB_STATUS) == [("j1",)]


class Restless(MemoryStore):
    """Its first list is overtaken in the middle, and begins anew without the first key."""

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        whole = await super().list(prefix)
        assert each is not None
        await each(0, whole.items[:2])
        await self.commit([], [Delete(whole.items[0].key)])
        return await super().list(prefix, each)


@virtual_time
async def test_a_list_that_begins_anew_leaves_nothing_of_what_it_told_before() -> None:
    pool = Pool()
    for name in ("j1", "j2", "j3"):
        await pool.submit(name)
    mirror = Mirror(Restless(pool.backend), wall)
    task = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    assert mirror.jobs() == ["j2", "j3"]
    assert not mirror.has(Kind.JOB_SPEC, "j1")
    task.cancel()
