"""What a leader takes over from its replica's mirror: everything at one moment, and every change since, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Delete, Put, Restored, Snapshot, StoreError
from gpupool.v1 import records_pb2
from scheduler.mirror.feed import Feed
from scheduler.mirror.mirror import Mirror
from scheduler.mirror.records import News, Stored
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import until, virtual_time
from tests.unit.test_history import Backup
from tests.unit.test_mirror import following


def there(stored: Stored) -> set[str]:
    return {kv.key for items in stored.values() for _, kv in items}


@virtual_time
async def test_it_begins_where_it_was_taken_and_misses_nothing() -> None:
    """Jobs come and go all the time; whenever a feed is taken, what it had and heard is what there is."""
    pool, wanted = Pool(), 40
    async with following(pool) as mirror:
        taken: list[tuple[Feed, set[str], list[News]]] = []

        async def take(at: int) -> None:
            await asyncio.sleep(0.01 * at)
            heard: list[News] = []
            feed = await mirror.feed(0, heard.extend)
            taken.append((feed, there(feed.take()), heard))

        async with asyncio.TaskGroup() as tasks:
            for n in range(10):
                tasks.create_task(take(n * 3))
            for n in range(wanted):
                await pool.submit(f"j{n}")
                if n % 3 == 0:
                    await pool.store.commit([], [Delete(keys.job_spec(f"j{n}"))])
                await asyncio.sleep(0.01)
        await until(lambda: mirror.jobs() == [f"j{n}" for n in range(wanted) if n % 3])
        for feed, known, heard in taken:
            for news in heard:
                assert news.revision > feed.revision
                (known.add if news.kv is not None else known.remove)(keys.job_spec(news.ids[0]))
            assert known == {keys.job_spec(job) for job in mirror.jobs()}


@virtual_time
async def test_it_waits_for_the_revision_that_is_wanted() -> None:
    pool = Pool()
    async with following(pool) as mirror:
        asking = asyncio.create_task(mirror.feed(await pool.put(Put("/other", b"")) + 1, lambda _: None))
        await asyncio.sleep(1.0)
        assert not asking.done()
        await pool.submit("j1")
        feed = await asking
        assert there(feed.take()) == {keys.job_spec("j1")}


@virtual_time
async def test_what_cannot_be_read_is_told_as_such() -> None:
    pool, heard = Pool(), list[News]()
    async with following(pool) as mirror:
        await mirror.feed(0, heard.extend)
        await mirror.reached(await pool.put(Put(keys.LEADER, b"\xff"), Put(keys.job_spec("j1"), b"\xff")))
        assert [(news.kind, news.unreadable) for news in heard] == [(Kind.LEADER, True), (Kind.JOB_SPEC, True)]


class Slow(Mirror):
    """Reads everything anew when it is told to."""

    async def anew(self, snapshot: Snapshot) -> None:
        await self._reset(snapshot)


@virtual_time
async def test_a_mirror_that_is_made_anew_ends_it_and_begins_no_other_meanwhile() -> None:
    pool = Pool()
    for n in range(500):
        await pool.submit(f"j{n}")
    mirror = Slow(pool.store, wall)
    await mirror.anew(await pool.store.list(keys.ROOT))
    heard: list[Sequence[News]] = []
    feed = await mirror.feed(0, heard.append)
    await pool.store.commit([], [Delete(keys.job_spec("j7"))])
    again = asyncio.create_task(mirror.anew(await pool.store.list(keys.ROOT)))
    await asyncio.sleep(0)
    second = asyncio.create_task(mirror.feed(0, heard.append))
    await asyncio.sleep(0)
    assert not again.done()
    assert not second.done()
    with pytest.raises(StoreError, match="made anew"):
        await feed.ended()
    assert keys.job_spec("j7") not in there((await second).take())
    assert again.done()
    assert not heard


@virtual_time
async def test_a_store_that_was_restored_ends_it_as_such() -> None:
    pool = Pool()
    await pool.submit("j1")
    backup = Backup.of(pool.backend)
    async with following(pool) as mirror:
        feed = await mirror.feed(0, lambda _: None)
        await pool.submit("j2")
        await until(lambda: len(mirror.jobs()) == 2)
        ended = asyncio.create_task(feed.ended())
        backup.restore(pool.backend)
        with pytest.raises(Restored):
            await ended


@virtual_time
async def test_who_has_closed_it_hears_nothing_more() -> None:
    pool, heard = Pool(), list[News]()
    async with following(pool) as mirror:
        feed = await mirror.feed(0, heard.extend)
        feed.close()
        await pool.submit("j1")
        await until(lambda: mirror.jobs() == ["j1"])
        assert not heard
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await feed.ended()


@virtual_time
async def test_units_and_allocations_of_a_host() -> None:
    pool = Pool()
    async with following(pool) as mirror:
        report = records_pb2.UnitReport(session=3).SerializeToString()
        await pool.put(
            *(Put(keys.unit(host, "u0"), report) for host in ("h1", "h2")), Put(keys.unit("h1", "u1"), report)
        )
        await mirror.reached((await pool.store.commit([], [Delete(keys.unit("h2", "u0"))])).revision)
        assert set(mirror.of_host(Kind.UNIT, records_pb2.UnitReport, "h1")) == {("h1", "u0"), ("h1", "u1")}
        assert not mirror.of_host(Kind.UNIT, records_pb2.UnitReport, "h2")
        assert set(mirror.all(Kind.UNIT, records_pb2.UnitReport)) == {("h1", "u0"), ("h1", "u1")}
