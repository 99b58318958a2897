"""A list in pages is every key once, as of one revision, whatever the keys are like; and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from aetcd.rpc import kv_pb2, rpc_pb2, rpc_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.store.etcd import EtcdStore
from gpupool.store.etcd_pages import pages
from gpupool.store.port import KeyValue, Unavailable
from tests.fakes.virtual_time import until

NEWEST = 7


class Keys:
    """Answers ranges as etcd does; at any other revision than the first it has nothing."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = sorted(key.encode() for key in keys)
        self.visited = self.asked = 0
        self.before: Callable[[int], Any] = lambda _: asyncio.sleep(0)

    async def ask(self, begin: bytes, end: bytes, revision: int, limit: int) -> Any:
        self.asked += 1
        await self.before(self.asked)
        assert revision == (0 if self.asked == 1 else NEWEST)
        found = [key for key in self.keys if begin <= key and (end == b"\0" or key < end)]
        self.visited += len(found)
        kvs = [kv_pb2.KeyValue(key=key, value=b"x") for key in found[:limit]]
        header = rpc_pb2.ResponseHeader(revision=NEWEST + self.asked - 1)
        return rpc_pb2.RangeResponse(header=header, kvs=kvs, more=len(found) > limit)

    async def listed(self, prefix: str, first_keys: int) -> list[bytes]:
        async with aclosing(pages(self.ask, prefix, first_keys)) as answers:
            return [kv.key async for page in answers for kv in page.kvs]


@settings(max_examples=40)
@given(
    keys=st.lists(st.text("a/0\x00é", max_size=6), unique=True),
    prefix=st.text("a/0é", max_size=3),
    first=st.integers(1, 5),
)
def test_every_key_comes_once_and_in_order(keys: list[str], prefix: str, first: int) -> None:
    etcd = Keys([key for key in keys if key])
    found = asyncio.run(etcd.listed(prefix, first))
    assert found == [key for key in etcd.keys if key.startswith(prefix.encode())]
    assert etcd.asked <= 2 + 2 * len(found)


async def test_a_page_does_not_have_everything_counted_that_follows() -> None:
    etcd = Keys([f"/v1/{kind}/{n:03}/x" for kind in ("agents", "jobs", "units") for n in range(400)])
    assert len(await etcd.listed("/v1/", 2)) == 1200
    assert etcd.visited < 1200 * etcd.asked / 3  # it would be half of all, on average, if each counted what is left


async def test_a_reader_who_leaves_leaves_nothing_behind() -> None:
    etcd, there = Keys([f"k{n}" for n in range(9)]), asyncio.all_tasks()
    etcd.before = lambda asked: asyncio.sleep(0 if asked == 1 else 60)
    async with aclosing(pages(etcd.ask, "k", 3)) as answers:
        await anext(answers)
        assert asyncio.all_tasks() != there  # the next is on its way
    assert asyncio.all_tasks() == there


async def test_a_reader_who_is_cancelled_leaves_nothing_behind() -> None:
    etcd, there = Keys([f"k{n}" for n in range(9)]), asyncio.all_tasks()
    etcd.before = lambda asked: asyncio.sleep(0 if asked == 1 else 60)
    reading = asyncio.create_task(etcd.listed("k", 3))
    await until(lambda: etcd.asked == 2)
    reading.cancel()
    await asyncio.wait({reading})
    assert reading.cancelled()
    assert asyncio.all_tasks() == there


async def test_a_page_that_fails_is_told_once_the_one_before_is_used() -> None:
    async def before(asked: int) -> None:
        if asked == 2:
            raise Unavailable("as ordered")

    etcd, there = Keys([f"k{n}" for n in range(9)]), asyncio.all_tasks()
    etcd.before = before
    async with aclosing(pages(etcd.ask, "k", 3)) as answers:
        assert [kv.key for kv in (await anext(answers)).kvs] == [b"k0", b"k1", b"k2"]
        await until(lambda: etcd.asked == 2)
        with pytest.raises(Unavailable):
            await anext(answers)
    assert asyncio.all_tasks() == there


class Member(rpc_pb2_grpc.KVServicer):  # type: ignore[misc]
    """Has keys a to f at first and one less after each compaction, of which there are some, in the middle of lists."""

    def __init__(self, compactions: int) -> None:
        self.left, self.revision, self.dead = compactions, 10, False

    async def Range(self, request: Any, context: Any) -> Any:
        if self.dead:
            await asyncio.sleep(60)
        if request.revision and self.left:
            self.left, self.revision = self.left - 1, self.revision + 1
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        assert request.revision in (0, self.revision)
        names = [name for name in b"abcdef"[self.revision - 10 :] if bytes([name]) >= request.key]
        kvs = [kv_pb2.KeyValue(key=bytes([name]), value=b"v", mod_revision=3) for name in names[: request.limit]]
        header = rpc_pb2.ResponseHeader(revision=self.revision)
        return rpc_pb2.RangeResponse(header=header, kvs=kvs, more=len(names) > request.limit)


@asynccontextmanager
async def served(member: Member, timeout_s: float = 5.0) -> AsyncIterator[EtcdStore]:
    server = grpc.aio.server()
    rpc_pb2_grpc.add_KVServicer_to_server(member, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = EtcdStore([f"127.0.0.1:{port}"], page_keys=2, timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()
        await server.stop(None)


async def test_a_list_that_a_compaction_overtakes_begins_anew_for_whoever_is_told_of_its_pages() -> None:
    told: list[str] = []

    async def each(before: int, items: Sequence[KeyValue]) -> None:
        told[before:] = [kv.key for kv in items] if before == len(told) or not before else ["in disorder"]

    async with served(Member(2)) as store:
        snapshot = await store.list("", each)
    assert told == [kv.key for kv in snapshot.items] == list("cdef")
    assert snapshot.revision == 12


async def test_an_etcd_that_falls_silent_between_two_pages_ends_the_list() -> None:
    member = Member(0)

    async def each(before: int, items: Sequence[KeyValue]) -> None:
        del before, items
        member.dead = True

    async with served(member, timeout_s=0.3) as store:
        with pytest.raises(Unavailable):
            await store.list("", each)
