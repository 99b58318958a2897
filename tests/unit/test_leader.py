"""The decision loop against a store: atomic placement, conflicts, unknown fates, a death between any two commits."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from gpupool.store import keys
from gpupool.store.port import Change, Committed, Delete, Op, Put, Store, Unavailable
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.policy import Policy
from scheduler.election import Term, TermLostError
from scheduler.leader import PLACED, Leader
from scheduler.load import load_in_turns
from scheduler.mirror.mirror import Mirror
from scheduler.replica import Replica
from tests.fakes.pool import FINAL, WALL, Commit, HookedStore, Pool, spec, wall
from tests.fakes.virtual_time import until, virtual_time

Hook = Callable[[Sequence[Op], Commit], "asyncio.Future[Committed]"]


@asynccontextmanager
async def leading(pool: Pool, store: Store) -> AsyncIterator[asyncio.Task[None]]:
    """A leader's loop at work, without an election around it."""
    task = asyncio.create_task(Leader(store, await new_term(pool), wall=wall, policy=Policy()).run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Unavailable, TermLostError):
            await task


async def new_term(pool: Pool) -> Term:
    """As a won election would: the leader key begins a new life."""
    await pool.store.commit([], [Delete(keys.LEADER)])
    return Term(await pool.put(Put(keys.LEADER, b"")), 0)


def deadly_after(writes: int, *, applied: bool) -> Callable[[Sequence[Op], Commit], Awaitable[Committed]]:
    """So many writes go well; the next kills the leader, done or not."""
    left = iter(range(writes))

    async def commit_or_die(ops: Sequence[Op], commit: Commit) -> Committed:
        del ops
        if next(left, None) is not None:
            return await commit()
        if applied:
            await commit()
        raise Unavailable("killed")

    return commit_or_die


def replica(name: str, store: Store) -> Replica:
    return Replica(name, name, store, Mirror(store, wall), Policy(), wall)


@virtual_time
async def test_a_job_from_end_to_end() -> None:
    pool = Pool()
    await pool.join("h1")
    async with leading(pool, pool.store):
        await pool.submit("j1")
        await until(pool.allocations)
        (allocation,) = pool.allocations()
        assert (allocation.id, allocation.host, list(allocation.units)) == ("j1.1", "h1", ["u0"])
        await pool.report(allocation, records_pb2.ALLOCATION_STATE_RUNNING)
        await until(lambda: pool.status("j1").state == job_pb2.JOB_STATE_RUNNING)
        await pool.finish(allocation)
        await until(lambda: not pool.allocations())
    assert pool.status("j1").state == job_pb2.JOB_STATE_SUCCEEDED


@virtual_time
async def test_a_leader_with_nothing_to_write_hears_of_its_end() -> None:
    pool = Pool()
    async with leading(pool, pool.store) as task:
        await asyncio.sleep(1)
        await new_term(pool)
        await until(task.done, within_s=1)
        assert isinstance(task.exception(), TermLostError)


@virtual_time
async def test_a_large_cluster_is_read_in_turns() -> None:
    """What else runs, the renewal of the lease above all, gets its turn while a leader reads what is stored."""
    pool, turns = Pool(), 0
    for number in range(300):
        await pool.submit(f"j{number}")

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    cluster, items = Cluster(policy=Policy()), pool.backend.list(keys.ROOT).items
    task = asyncio.create_task(others())
    await load_in_turns(cluster, items, wall())
    task.cancel()
    assert len(cluster.jobs) == 300
    assert turns >= 3


def clusters() -> int:
    """How many there are."""
    return sum(isinstance(one, Cluster) and bool(one.jobs) for one in gc.get_objects())


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("lost", [False, True])
@virtual_time
async def test_what_a_leader_knew_goes_with_its_term(loaded: bool, lost: bool) -> None:
    """Though nobody collects what is in a cycle: in a large cluster each term would leave all of it behind."""
    pool = Pool()
    for number in range(300):
        await pool.submit(f"j{number}")
    gc.collect()
    before = clusters()
    gc.disable()
    try:
        async with leading(pool, pool.store) as task:
            for _ in range(1000):
                await asyncio.sleep(0)
                if clusters() > before:
                    break
            if loaded:
                await until(lambda: bool(pool.status("j7").state))
            if lost:
                await new_term(pool)
                await asyncio.sleep(1)
            else:
                task.cancel()
        assert clusters() == before
    finally:
        gc.enable()


@virtual_time
async def test_the_identity_of_a_card_is_that_of_the_decision() -> None:
    """An allocation that is written again, to stop it, names the card that was chosen, though another sits there."""
    pool = Pool()
    await pool.join("h1")
    async with leading(pool, pool.store):
        await pool.submit("j1")
        await until(pool.allocations)
        assert list(pool.allocations()[0].unit_identities) == ["h1-sn0"]
        stored = pool.backend.get(keys.inventory("h1"))
        assert stored is not None
        changed = inventory_pb2.Inventory.FromString(stored.value)
        changed.units[0].identity = "another card"
        cancel = records_pb2.CancelRecord(reason="enough")
        await pool.put(Put(keys.inventory("h1"), changed.SerializeToString()))
        await pool.put(Put(keys.job_cancel("j1"), cancel.SerializeToString()))
        await until(lambda: pool.allocations()[0].desired == records_pb2.DESIRED_STOP)
        assert list(pool.allocations()[0].unit_identities) == ["h1-sn0"]


@virtual_time
async def test_what_befell_a_device_is_kept_with_the_attempt() -> None:
    pool = Pool()
    await pool.join("h1")
    async with leading(pool, pool.store):
        await pool.submit("j1")
        await until(pool.allocations)
        (allocation,) = pool.allocations()
        running = records_pb2.VmReport(state=records_pb2.ALLOCATION_STATE_RUNNING, session=allocation.session)
        for texts in ([], ["u0: AER"], ["u0: AER", "u0: link x8"]):
            running.warnings[:] = texts
            await pool.put(Put(keys.vm("h1", allocation.id), running.SerializeToString()))
        await until(lambda: list(pool.status("j1").attempts[-1].warnings) == ["u0: AER", "u0: link x8"])
        await pool.finish(allocation)
        await until(lambda: not pool.allocations())
    assert list(pool.status("j1").attempts[0].warnings) == ["u0: AER", "u0: link x8"]


@virtual_time
async def test_a_placement_and_its_status_are_one_transaction() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    seen: list[set[str]] = []

    async def note(ops: Sequence[Op], commit: Commit) -> Committed:
        seen.append({op.key for op in ops})
        return await commit()

    store.on_commit = note
    await pool.join("h1")
    async with leading(pool, store):
        await pool.submit("j1")
        await until(pool.allocations)
    (placed,) = [ops for ops in seen if keys.allocation("h1", "j1.1") in ops]
    assert keys.job_status("j1") in placed


@virtual_time
async def test_nothing_is_placed_before_its_hosts_session_is_on_record() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)

    async def check(ops: Sequence[Op], commit: Commit) -> Committed:
        for allocation in pool.allocations():
            assert pool.host(allocation.host).session == allocation.session
        return await commit()

    store.on_commit = check
    await pool.submit("j1")
    async with leading(pool, store) as task:
        await pool.join("h1")
        await until(pool.allocations)
        await pool.join("h1", boot="b2")  # the machine has rebooted: the job starts again, in the new session
        await until(lambda: [a.id for a in pool.allocations()] == ["j1.2"])
        assert not task.done()


@virtual_time
async def test_a_session_that_ends_before_the_commit_costs_nothing() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    await pool.join("h1")

    async def session_ends_first(ops: Sequence[Op], commit: Commit) -> Committed:
        if any(op.key == keys.allocation("h1", "j1.1") for op in ops):
            await pool.leave("h1")
        return await commit()

    async with leading(pool, store):
        await until(lambda: pool.host("h1").state == records_pb2.HOST_STATE_READY)
        store.on_commit = session_ends_first
        await pool.submit("j1")
        await until(lambda: pool.host("h1").state == records_pb2.HOST_STATE_FENCED)
        assert pool.status("j1").state == job_pb2.JOB_STATE_PENDING
        assert not pool.allocations()
        await pool.join("h2")
        await until(pool.allocations)
    (allocation,) = pool.allocations()
    assert (allocation.id, allocation.host) == ("j1.1", "h2")  # the attempt that was never committed never was
    assert pool.status("j1").restarts == 0


@virtual_time
async def test_of_many_writes_one_is_under_way_and_what_is_retracted_spoils_no_other() -> None:
    """The next is encoded while the last is under way, in which a host is found to be gone."""
    pool, jobs, hosts = Pool(), [f"j{n:03}" for n in range(200)], [f"h{n:02}" for n in range(40)]
    store = HookedStore(pool.backend)
    under_way = placing = 0

    async def slowly(ops: Sequence[Op], commit: Commit) -> Committed:
        nonlocal under_way, placing
        assert not under_way
        under_way += 1
        try:
            await asyncio.sleep(0.01)
            placing += (places := any(op.key.startswith(keys.ALLOCATIONS) for op in ops))
            if places and placing == 2:
                await pool.leave(next(op.key.split("/")[-2] for op in ops if op.key.startswith(keys.ALLOCATIONS)))
            return await commit()
        finally:
            under_way -= 1

    for host in hosts:
        await pool.join(host, gpus=8)
    for some in (jobs[:100], jobs[100:]):
        await pool.put(*[Put(keys.job_spec(job), spec_of_job()) for job in some])
    store.on_commit = slowly
    async with leading(pool, store):
        await until(lambda: len(pool.allocations()) == len(jobs) and not under_way)
        await until(lambda: all(pool.status(job).state == job_pb2.JOB_STATE_STARTING for job in jobs))
    assert placing > 3
    gone = {host for host in hosts if pool.backend.get(keys.session(host)) is None}
    assert len(gone) == 1
    found = {allocation.job: allocation for allocation in pool.allocations()}
    for job in jobs:
        status, allocation = pool.status(job), found[job]
        assert (status.attempt_count, status.attempts[-1].host) == (allocation.attempt, allocation.host)
        assert list(status.attempts[-1].units) == list(allocation.units)
    held = [(a.host, unit) for a in pool.allocations() for unit in a.units]
    assert len(held) == len(set(held))


@virtual_time
async def test_who_is_placed_in_the_next_turn_is_written_once() -> None:
    """More jobs than one turn places: the others are not put on record as pending for a moment."""
    pool, jobs = Pool(), [f"j{n:04}" for n in range(PLACED + 60)]
    store = HookedStore(pool.backend)
    hosts = [f"h{n:03}" for n in range(len(jobs) // 8)]  # not enough for all
    written: Counter[str] = Counter()

    async def slowly(ops: Sequence[Op], commit: Commit) -> Committed:
        written.update(op.key for op in ops if op.key.startswith(keys.JOBS))
        await asyncio.sleep(1.0 if keys.job_status("first") in {op.key for op in ops} else 0.0)
        return await commit()

    for host in hosts:
        await pool.join(host, gpus=8)
    store.on_commit = slowly
    async with leading(pool, store):
        await until(lambda: all(pool.host(host).state == records_pb2.HOST_STATE_READY for host in hosts))
        await pool.submit("first")
        await asyncio.sleep(0.5)  # while that is being written
        for n in range(0, len(jobs), 100):
            await pool.put(*[Put(keys.job_spec(job), spec_of_job()) for job in jobs[n : n + 100]])
        await until(lambda: all(pool.status(job).submitted_s for job in jobs))
    waiting = [job for job in jobs if pool.status(job).state == job_pb2.JOB_STATE_PENDING]
    assert len(waiting) == len(jobs) + 1 - 8 * len(hosts)
    assert set(written.values()) == {1}


def spec_of_job() -> bytes:
    return records_pb2.JobRecord(spec=spec(), submitted_s=WALL).SerializeToString()


@pytest.mark.parametrize("applied", [True, False])
@virtual_time
async def test_a_commit_of_unknown_fate_makes_it_read_again(applied: bool) -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    failed: list[Sequence[Op]] = []

    async def unknown(ops: Sequence[Op], commit: Commit) -> Committed:
        if any(op.key == keys.allocation("h1", "j1.1") for op in ops) and not failed:
            failed.append(ops)
            if applied:
                await commit()
            raise Unavailable("no answer")
        return await commit()

    store.on_commit = unknown
    await pool.join("h1")
    await pool.submit("j1")
    scheduler = replica("s1", store)
    task = asyncio.create_task(scheduler.run())
    await until(lambda: failed)
    decided = scheduler.leader
    await until(lambda: pool.allocations() and scheduler.leader not in (None, decided))
    await asyncio.sleep(10)
    assert [a.id for a in pool.allocations()] == ["j1.1"]
    task.cancel()


@virtual_time
async def test_a_store_outage_ends_a_term_and_nothing_else() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    await pool.join("h1")
    task = asyncio.create_task(replica("s1", store).run())
    await until(lambda: pool.host("h1").session)
    store.down = True
    await pool.submit("j1")
    await asyncio.sleep(30)
    assert not pool.allocations()
    store.down = False
    await until(pool.allocations, within_s=10)
    assert not task.done()
    task.cancel()


@virtual_time
async def test_a_deposed_leader_writes_nothing() -> None:
    pool = Pool()
    await pool.join("h1")
    async with leading(pool, pool.store) as old:
        await until(lambda: pool.host("h1").session)
        await new_term(pool)
        await pool.submit("j1")
        await until(old.done)
        assert isinstance(old.exception(), TermLostError)
        assert not pool.allocations()


async def _agents(pool: Pool) -> None:
    """Every agent: takes what it is told to run, and ends it after a while. Counts how often each job has ended."""
    while True:
        for allocation in pool.allocations():
            if pool.backend.get(keys.vm(allocation.host, allocation.id)) is None:
                await pool.report(allocation, records_pb2.ALLOCATION_STATE_RUNNING)
                await asyncio.sleep(0.5)
                await pool.finish(allocation)
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("deadly", range(14))
@virtual_time
async def test_killed_at_any_commit(deadly: int, applied: bool) -> None:
    """The leader dies at its n-th write, done or not; the next one ends every job, each in one attempt."""
    pool = Pool()
    store = HookedStore(pool.backend)
    store.on_commit = deadly_after(deadly, applied=applied)
    await pool.join("h1")
    for n in range(3):
        await pool.submit(f"j{n}", spec(gpus=1))
    agents = asyncio.create_task(_agents(pool))
    async with leading(pool, store) as first:
        with suppress(AssertionError):
            await until(first.done, within_s=10)
    async with leading(pool, pool.store):
        await until(lambda: all(pool.status(f"j{n}").state in FINAL for n in range(3)) and not pool.allocations())
    agents.cancel()
    for n in range(3):
        status = pool.status(f"j{n}")
        assert (status.state, status.attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 1)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("deadly", range(6))
@virtual_time
async def test_killed_within_a_fence(deadly: int, applied: bool) -> None:
    """The leader dies at its n-th write after a host came back without its VM: the job runs once more."""
    pool = Pool()
    store = HookedStore(pool.backend)
    await pool.join("h1")
    await pool.submit("j1")
    async with leading(pool, pool.store):
        await until(pool.allocations)
        await pool.report(pool.allocations()[0], records_pb2.ALLOCATION_STATE_RUNNING)
        await until(lambda: pool.status("j1").state == job_pb2.JOB_STATE_RUNNING)
    store.on_commit = deadly_after(deadly, applied=applied)
    await pool.join("h1", boot="b2")
    async with leading(pool, store) as first:
        with suppress(AssertionError):
            await until(first.done, within_s=10)
    async with leading(pool, pool.store):
        await until(lambda: [a.id for a in pool.allocations()] == ["j1.2"])
        await pool.finish(pool.allocations()[0])
        await until(lambda: not pool.allocations())
    assert (pool.status("j1").state, pool.status("j1").attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 2)
    assert pool.host("h1").last_fence.session


@virtual_time
async def test_what_changes_between_its_reading_and_its_watching_is_seen() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    await pool.join("h1")
    watch = store.watch

    def later(prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        job = records_pb2.JobRecord(spec=spec(), submitted_s=WALL)
        pool.backend.commit([], [Put(keys.job_spec("j1"), job.SerializeToString())])
        return watch(prefix, after_revision=after_revision)

    store.watch = later  # type: ignore[method-assign]
    async with leading(pool, store):
        await until(pool.allocations)


@virtual_time
async def test_an_attempt_that_ended_before_its_host_was_lost_has_ended() -> None:
    """Both happen while nobody leads: the exit code counts, and the job is not run again."""
    pool = Pool()
    await pool.join("h1")
    await pool.submit("j1")
    async with leading(pool, pool.store):
        await until(pool.allocations)
    await pool.finish(pool.allocations()[0])
    await pool.leave("h1")
    await pool.join("h1", boot="b2")
    async with leading(pool, pool.store):
        await until(lambda: pool.host("h1").last_fence.session)
    assert pool.status("j1").state == job_pb2.JOB_STATE_SUCCEEDED
    assert pool.status("j1").attempt_count == 1


@virtual_time
async def test_another_sessions_word_on_a_vm_is_none() -> None:
    """An end that a session tells which does not have the VM ends nothing."""
    pool = Pool()
    await pool.join("h1")
    await pool.submit("j1")
    async with leading(pool, pool.store):
        await until(pool.allocations)
        (allocation,) = pool.allocations()
        other = records_pb2.Allocation()
        other.CopyFrom(allocation)
        other.session += 1
        await pool.report(other, records_pb2.ALLOCATION_STATE_ENDED, job_pb2.OUTCOME_EXITED, 0)
        await asyncio.sleep(30)
        assert pool.status("j1").state == job_pb2.JOB_STATE_STARTING
        await pool.finish(allocation)
        await until(lambda: pool.status("j1").state == job_pb2.JOB_STATE_SUCCEEDED)


@pytest.mark.parametrize("what", ["inventory", "unit"])
@virtual_time
async def test_what_an_earlier_session_told_counts_no_more(what: str) -> None:
    """Nothing is placed on a host before this session has told what it has, nor on a unit that it has not proven."""
    pool = Pool()
    await pool.join("h1", gpus=1)
    key = keys.inventory("h1") if what == "inventory" else keys.unit("h1", "u0")
    before = pool.backend.get(key)
    await pool.join("h1", gpus=1, boot="b2")
    now = pool.backend.get(key)
    assert before is not None
    assert now is not None
    await pool.put(Put(key, before.value))
    async with leading(pool, pool.store):
        await pool.submit("j1")
        await asyncio.sleep(30)
        assert not pool.allocations()
        await pool.put(Put(key, now.value))
        await until(pool.allocations)


@virtual_time
async def test_an_allocation_stays_until_its_units_are_proven() -> None:
    pool = Pool()
    await pool.join("h1", gpus=1)
    await pool.submit("j1")
    async with leading(pool, pool.store):
        await until(pool.allocations)
        (allocation,) = pool.allocations()
        await pool.report(allocation, records_pb2.ALLOCATION_STATE_ENDED, job_pb2.OUTCOME_EXITED, 0)
        for state in (records_pb2.UNIT_STATE_DIRTY, records_pb2.UNIT_STATE_RESETTING):
            told = records_pb2.UnitReport(state=state, session=allocation.session, allocation=allocation.id)
            await pool.put(Put(keys.unit("h1", "u0"), told.SerializeToString()))
            await asyncio.sleep(10)
            assert [a.id for a in pool.allocations()] == [allocation.id]
        await pool.clean(allocation)
        await until(lambda: not pool.allocations())


@virtual_time
async def test_a_guard_that_died_is_no_evidence() -> None:
    pool = Pool()
    await pool.join("h1")
    await pool.submit("j1")
    async with leading(pool, pool.store):
        await until(pool.allocations)
        kv = pool.backend.get(keys.session("h1"))
        assert kv is not None
        record = records_pb2.Session.FromString(kv.value)
        record.guard = records_pb2.GUARD_KIND_UNSPECIFIED
        await pool.put(Put(kv.key, record.SerializeToString()))
        await until(lambda: pool.host("h1").guard == records_pb2.GUARD_KIND_UNSPECIFIED)
        await pool.leave("h1")
        await until(lambda: pool.host("h1").state == records_pb2.HOST_STATE_FENCING)
        await asyncio.sleep(60)
    assert pool.host("h1").state == records_pb2.HOST_STATE_FENCING
    assert len(pool.allocations()) == 1


@virtual_time
async def test_a_record_that_cannot_be_read_stops_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    await pool.join("h1")
    await pool.put(Put(keys.job_spec("bad"), b"\xff"), Put(keys.inventory("h0"), b"\xff"))
    await pool.submit("odd")
    await pool.put(Put(keys.job_status("odd"), b"\xff"))
    with caplog.at_level(logging.ERROR):
        async with leading(pool, pool.store):
            await pool.submit("j1")
            await until(pool.allocations)
            await asyncio.sleep(1)
    assert [a.job for a in pool.allocations()] == ["j1"]  # what became of "odd" nobody knows: it may run
    assert "jobs/bad/spec" in caplog.text
    assert "leaving job odd alone" in caplog.text


@virtual_time
async def test_large_specs_fit_into_transactions() -> None:
    pool = Pool()
    await pool.join("h1", gpus=16)
    large = spec()
    large.env["X"] = "x" * 200_000
    for n in range(16):
        await pool.submit(f"j{n}", large)
    async with leading(pool, pool.store) as task:
        await until(lambda: len(pool.allocations()) == 8 or task.done())
        assert not task.done()


@virtual_time
async def test_a_slip_of_an_agent_does_not_stop_the_leader() -> None:
    pool = Pool()
    await pool.join("h1")
    await pool.submit("j1")
    async with leading(pool, pool.store) as task:
        await until(pool.allocations)
        (allocation,) = pool.allocations()
        for state in (records_pb2.ALLOCATION_STATE_RUNNING, records_pb2.ALLOCATION_STATE_PREPARING,
                      records_pb2.ALLOCATION_STATE_BOUND, records_pb2.ALLOCATION_STATE_LOST):  # fmt: skip
            await pool.report(allocation, state)
        await asyncio.sleep(1)
        assert not task.done()
        assert pool.status("j1").state == job_pb2.JOB_STATE_RUNNING
