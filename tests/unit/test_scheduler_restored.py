"""A store that was restored from a backup, under a scheduler that lives: it decides nothing on what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gpupool.store import keys
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Committed, Delete, Put, Restored
from gpupool.v1 import job_pb2, records_pb2
from scheduler.core.state.policy import Policy
from scheduler.history import History
from scheduler.mirror.mirror import Mirror
from scheduler.replica import Replica
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import until, virtual_time
from tests.unit.test_history import Backup

PENDING = job_pb2.JOB_STATE_PENDING


@asynccontextmanager
async def replica(pool: Pool) -> AsyncIterator[Replica]:
    made = Replica("r1", "r1", pool.store, Mirror(pool.store, wall), Policy(), wall)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("caught_up", [0, 500])
def test_what_is_forgotten_is_not_decided_on(caught_up: int) -> None:
    """In the backup j1 waits for a unit. It ran on h1 when the store was restored: only its agent knows."""

    @virtual_time
    async def scenario() -> None:
        pool = Pool()
        await pool.join("h1")
        async with replica(pool) as scheduler:
            cordoned = records_pb2.HostIntent(cordoned=True)
            await until(lambda: pool.backend.get(keys.LEADER))
            await pool.store.commit([], [Put(keys.host_intent("h1"), cordoned.SerializeToString())])
            await pool.submit("j1")
            await until(lambda: pool.status("j1").state == PENDING)
            backup = Backup.of(pool.backend)
            await pool.store.commit([], [Delete(keys.host_intent("h1"))])
            await until(pool.allocations)
            backup.restore(pool.backend)
            await pool.store.commit([], [Delete(keys.host_intent("h1"))])
            for n in range(caught_up):
                await pool.store.commit([], [Put("/other", b"%d" % n)])
            await asyncio.sleep(20)
            assert not pool.allocations(), "decided before the agents can have noticed"
            await until(pool.allocations)
            assert scheduler.leader is not None

    scenario()


@virtual_time
async def test_a_leader_that_lost_its_last_write_writes_no_more() -> None:
    """Its key is in the backup, in the same life, and the revision has caught up: only its own write tells."""
    backend = MemoryBackend()
    store, history = MemoryStore(backend), History(0)

    async def write(key: str) -> Committed:
        ops = [Put(key, b"")]
        done = await store.commit(history.guards(), ops)
        history.wrote(ops, done)
        return done

    await write("a")
    backup = Backup.of(backend)
    await write("b")
    await history.check(store)
    backup.restore(backend)
    for n in range(10):
        await store.commit([], [Put("other", b"%d" % n)])
    assert not (await write("c")).succeeded
    with pytest.raises(Restored):
        await history.check(store)


def test_a_lower_revision_tells() -> None:
    history = History(7)
    history.wrote([], Committed(succeeded=False, revision=8))
    with pytest.raises(Restored):
        history.wrote([], Committed(succeeded=True, revision=7))


def test_a_write_that_is_deleted_tells_nothing_more() -> None:
    history = History(1)
    history.wrote([Put("a", b"")], Committed(succeeded=True, revision=2))
    history.wrote([Delete("b")], Committed(succeeded=True, revision=3))
    assert history.guards()
    history.wrote([Delete("a")], Committed(succeeded=True, revision=4))
    assert not history.guards()
