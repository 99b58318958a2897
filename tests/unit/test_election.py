"""Who leads: one at a time, the next within a TTL after a death, at once after a clean exit; the late are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gpupool.store import keys
from gpupool.store.port import Committed, Op, Put, Store, Unavailable
from gpupool.v1 import records_pb2
from scheduler.election import Term, TermLostError, lead
from tests.fakes.pool import Commit, HookedStore, Pool
from tests.fakes.virtual_time import until, virtual_time

TTL_S = 3


class Candidate:
    """Campaigns once; leads until it is told to stop."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.store = store
        self.term: Term | None = None
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with lead(self.store, records_pb2.Leader(id=self.name), ttl_s=TTL_S) as term:
            self.term = term
            await self.stop.wait()


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_one_of_two_wins() -> None:
    pool = Pool()
    both = [Candidate(name, HookedStore(pool.backend)) for name in ("s1", "s2")]
    await asyncio.sleep(60)
    (winner,) = [c for c in both if c.term]
    assert winner.term is not None
    kv = pool.backend.get(keys.LEADER)
    assert kv is not None
    assert kv.create_revision == winner.term.revision
    assert records_pb2.Leader.FromString(kv.value).id == winner.name
    for candidate in both:
        candidate.task.cancel()


@virtual_time
async def test_takeover_after_a_death() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    first = Candidate("s1", store)
    await until(lambda: first.term)
    second = Candidate("s2", pool.store)
    await asyncio.sleep(10)
    store.down = True  # as good as dead: it can neither renew nor revoke
    died = now()
    await until(lambda: second.term)
    assert now() - died <= TTL_S + 1
    second.task.cancel()
    with pytest.raises(TermLostError, match="could not be renewed"):
        await first.task


@virtual_time
async def test_a_clean_exit_hands_over_at_once() -> None:
    pool = Pool()
    first = Candidate("s1", pool.store)
    await until(lambda: first.term)
    second = Candidate("s2", pool.store)
    await asyncio.sleep(10)
    first.stop.set()
    left = now()
    await until(lambda: second.term)
    assert now() - left < 0.5
    second.task.cancel()


@virtual_time
async def test_a_lost_lease_ends_the_body() -> None:
    pool = Pool()
    first = Candidate("s1", pool.store)
    await until(lambda: first.term)
    assert first.term is not None
    await pool.store.revoke(first.term.lease)
    with pytest.raises(TermLostError):
        await first.task
    assert not first.task.cancelling()


@virtual_time
async def test_a_paused_leader_is_too_late() -> None:
    pool = Pool()
    first = Candidate("s1", HookedStore(pool.backend))
    await until(lambda: first.term)
    assert first.term is not None
    await pool.store.revoke(first.term.lease)  # it hears of it only with the next renewal
    second = Candidate("s2", pool.store)
    await until(lambda: second.term)
    assert not (await pool.store.commit([first.term.guard], [Put(keys.host("h1"), b"late")])).succeeded
    assert pool.backend.get(keys.host("h1")) is None
    for candidate in (first, second):
        candidate.task.cancel()


@virtual_time
async def test_a_win_whose_answer_was_lost_is_a_win() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    failures = iter([True])

    async def unknown(ops: Sequence[Op], commit: Commit) -> Committed:
        done = await commit()
        if next(failures, False):
            raise Unavailable("no answer")
        return done

    store.on_commit = unknown
    first = Candidate("s1", store)
    await until(lambda: first.term, within_s=5)
    first.task.cancel()


@virtual_time
async def test_a_cancelled_leader_ends_though_the_store_is_away() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    first = Candidate("s1", store)
    await until(lambda: first.term)
    store.down = True
    await asyncio.sleep(TTL_S / 3)
    first.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first.task


@virtual_time
async def test_a_cancel_is_not_lost_in_the_loss_of_the_term() -> None:
    pool = Pool()
    stopped = asyncio.Event()

    async def body() -> None:
        me = asyncio.current_task()
        assert me is not None
        async with lead(pool.store, records_pb2.Leader(), ttl_s=TTL_S) as term:
            await pool.store.revoke(term.lease)
            try:
                await asyncio.sleep(60)
            finally:
                me.cancel()  # somebody wants the end while the loss is on its way
                stopped.set()

    task = asyncio.create_task(body())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.is_set()


@virtual_time
async def test_a_standby_waits_on_though_the_history_is_compacted() -> None:
    pool = Pool()
    first = Candidate("s1", pool.store)
    await until(lambda: first.term)
    for _ in range(3):
        await pool.store.commit([], [Put("x", b"")])
    pool.backend.compact(pool.backend.revision)  # the leader key's last write is forgotten, as after an hour
    second = Candidate("s2", pool.store)
    await asyncio.sleep(10)
    assert not second.task.done()
    first.stop.set()
    await until(lambda: second.term)
    second.task.cancel()
