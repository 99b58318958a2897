"""A process that is gone is noticed in well under a second; silence, and what was never reached, is no death."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import pytest

from gpupool.store import keys
from gpupool.store.port import Committed, Delete, Op, Put
from gpupool.v1 import records_pb2
from scheduler.deathwatch import UNREACHED_S, gone
from scheduler.election import Term, TermLostError, lead
from tests.fakes.pool import Commit, HookedStore, Pool
from tests.fakes.virtual_time import until, virtual_time


@contextlib.asynccontextmanager
async def watched(address: str) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(gone(address))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Listener:
    """A process' listening socket. Until `serve` is called, the kernel accepts connections, as for a frozen process."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(5)
        self.connections: list[socket.socket] = []
        self.address = "{}:{}".format(*self._socket.getsockname())

    async def accept(self) -> None:
        self._socket.setblocking(False)
        connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self._socket), 5)
        self.connections.append(connection)

    def drop(self) -> None:
        for connection in self.connections:
            connection.close()
        self.connections.clear()

    def die(self) -> None:
        self._socket.close()
        self.drop()


async def test_a_process_that_dies() -> None:
    listener = Listener()
    async with watched(listener.address) as task:
        await listener.accept()
        listener.die()
        await asyncio.wait_for(task, 2)


async def test_one_that_closes_connections_and_still_listens() -> None:
    listener = Listener()
    async with watched(listener.address) as task:
        for _ in range(3):
            await listener.accept()
            listener.drop()
        assert not task.done()
        await listener.accept()
        listener.die()
        await asyncio.wait_for(task, 2)


async def test_one_that_was_never_reached_or_is_silent() -> None:
    listener = Listener()
    listener.die()
    frozen = Listener()
    async with watched(listener.address) as refused, watched(frozen.address) as silent:
        await asyncio.sleep(UNREACHED_S + 0.5)
        assert not refused.done()
        assert not silent.done()
    frozen.die()


# What the election makes of it


class Deaths:
    """A death watch that is told."""

    def __init__(self) -> None:
        self.dead: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def gone(self, address: str) -> None:
        await self.dead[address].wait()


async def lead_for_ever(pool: Pool, name: str, deaths: Deaths, won: dict[str, Term], *, first: bool = False) -> None:
    me = records_pb2.Leader(id=name, address=f"{name}:1")
    async with lead(HookedStore(pool.backend), me, ttl_s=3, gone=deaths.gone, first=first) as term:
        won[name] = term
        await asyncio.Event().wait()


@virtual_time
async def test_the_standby_wins_at_once_and_the_old_term_writes_no_more() -> None:
    pool, deaths, won = Pool(), Deaths(), dict[str, Term]()
    first = asyncio.create_task(lead_for_ever(pool, "s1", deaths, won))
    await until(lambda: "s1" in won)
    second = asyncio.create_task(lead_for_ever(pool, "s2", deaths, won))
    await asyncio.sleep(10)
    assert "s2" not in won
    deaths.dead["s1:1"].set()  # it is wrong: s1 lives, and renews its lease
    began = asyncio.get_running_loop().time()
    await until(lambda: "s2" in won)
    assert asyncio.get_running_loop().time() - began < 0.5
    assert not (await pool.store.commit([won["s1"].guard], [Put(keys.host("h1"), b"late")])).succeeded
    first.cancel()  # it revokes its lease: the key of its successor stays
    await asyncio.gather(first, return_exceptions=True)
    kv = pool.backend.get(keys.LEADER)
    assert kv is not None
    assert kv.create_revision == won["s2"].revision
    second.cancel()


@virtual_time
async def test_a_later_life_of_the_key_is_left_alone() -> None:
    """The death of s1 is noticed just when s3 has won."""
    pool, deaths = Pool(), Deaths()
    await pool.put(Put(keys.LEADER, records_pb2.Leader(id="s1", address="s1:1").SerializeToString()))
    store, late = HookedStore(pool.backend), list[bool]()

    async def too_late(ops: Sequence[Op], commit: Commit) -> Committed:
        if any(isinstance(op, Delete) for op in ops):
            await _replace(pool)
            late.append(True)
        return await commit()

    store.on_commit = too_late
    second = asyncio.create_task(_lead_on(store, deaths))
    await asyncio.sleep(1)
    deaths.dead["s1:1"].set()
    await asyncio.sleep(10)
    kv = pool.backend.get(keys.LEADER)
    assert late == [True]
    assert kv is not None
    assert records_pb2.Leader.FromString(kv.value).id == "s3"
    second.cancel()


async def _lead_on(store: HookedStore, deaths: Deaths) -> None:
    async with lead(store, records_pb2.Leader(id="s2", address="s2:1"), ttl_s=3, gone=deaths.gone):
        await asyncio.Event().wait()


async def _replace(pool: Pool) -> None:
    await pool.store.commit([], [Delete(keys.LEADER)])
    await pool.put(Put(keys.LEADER, records_pb2.Leader(id="s3", address="s3:1").SerializeToString()))


@virtual_time
async def test_a_replica_that_is_started_again_need_not_wait_for_its_own_lease() -> None:
    pool, deaths, won = Pool(), Deaths(), dict[str, Term]()
    await pool.put(Put(keys.LEADER, records_pb2.Leader(id="s1", address="s1:1").SerializeToString()))
    again = asyncio.create_task(lead_for_ever(pool, "s1", deaths, won, first=True))
    await until(lambda: "s1" in won, within_s=1)
    twin = asyncio.create_task(lead_for_ever(pool, "s1", deaths, {}, first=False))
    await asyncio.sleep(10)  # one that shares its name by mistake, and has campaigned before, does not depose it
    kv = pool.backend.get(keys.LEADER)
    assert kv is not None
    assert kv.create_revision == won["s1"].revision
    for task in (again, twin):
        task.cancel()


@virtual_time
async def test_an_address_without_sense_is_no_death() -> None:
    pool, won = Pool(), dict[str, Term]()

    class Broken(Deaths):
        async def gone(self, address: str) -> None:
            raise ValueError(address)

    await pool.put(Put(keys.LEADER, b"\xff not protobuf"))
    task = asyncio.create_task(lead_for_ever(pool, "s2", Broken(), won))
    await asyncio.sleep(5)
    await pool.put(Put(keys.LEADER, records_pb2.Leader(id="s1", address="?").SerializeToString()))
    await asyncio.sleep(5)
    assert not won
    task.cancel()
    with pytest.raises((asyncio.CancelledError, TermLostError)):
        await task
