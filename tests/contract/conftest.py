"""What the store contract runs on: the memory store, and every etcd that is installed."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from gpupool.embedded.etcd import EmbeddedEtcd
from gpupool.store.etcd import EtcdStore
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Store

ETCDS = [
    name
    for name in dict.fromkeys([os.environ.get("GPUPOOL_ETCD", ""), "etcd", "etcd-3.5", "etcd-3.6"])
    if name and shutil.which(name)
]


class World:
    """One store that several clients share, and what only its owner may do to it."""

    def __init__(self, connect: Callable[..., Store], compact: Callable[[int], Awaitable[None]], max_ops: int) -> None:
        self._connect = connect
        self.compact = compact
        self.max_ops = max_ops
        self.prefix = f"/test/{uuid4().hex}/"  # tests share an etcd, not their keys
        self.exits = AsyncExitStack()

    def client(self, **options: int) -> Store:
        """Another handle, closed at the end of the test."""
        store = self._connect(**options)
        self.exits.push_async_callback(store.close)
        return store


def make_etcd(binary: str, data_dir: Path, *extra: str, scheme: str = "http") -> EmbeddedEtcd:
    return EmbeddedEtcd(data_dir, binary=binary, durable=False, fast=True, extra=extra, scheme=scheme)


@pytest.fixture(scope="session", params=[pytest.param(name, marks=pytest.mark.etcd) for name in ETCDS or ["etcd"]])
def etcd_binary(request: pytest.FixtureRequest) -> str:
    if not ETCDS:
        pytest.skip("no etcd installed (apt-get install etcd-server)")
    return str(request.param)


@pytest.fixture(scope="session")
def shared_etcds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], EmbeddedEtcd]]:
    running: dict[str, EmbeddedEtcd] = {}

    def get(binary: str) -> EmbeddedEtcd:
        if binary not in running:
            running[binary] = make_etcd(binary, tmp_path_factory.mktemp("etcd"))
            asyncio.run(running[binary].start())
        return running[binary]

    yield get
    for etcd in running.values():
        asyncio.run(etcd.kill())


async def eventually(holds: Callable[[], Awaitable[bool]], within_s: float = 15.0) -> None:
    """Ask again and again: for what nobody announces."""
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def compact_etcd(endpoint: str, revision: int) -> None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = rpc_pb2_grpc.KVStub(channel)
        await stub.Compact(rpc_pb2.CompactionRequest(revision=revision, physical=True), timeout=5)


def memory_world() -> World:
    backend = MemoryBackend()

    async def compact(revision: int) -> None:
        backend.compact(revision)

    def connect(*, page_keys: int = 0) -> Store:
        return MemoryStore(backend)

    return World(connect, compact, 128)


def etcd_world(etcd: EmbeddedEtcd) -> World:
    def connect(*, page_keys: int = 1000) -> Store:
        return EtcdStore([etcd.endpoint], page_keys=page_keys)

    return World(connect, lambda revision: compact_etcd(etcd.endpoint, revision), 128)


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=pytest.mark.etcd) for name in ETCDS)],
)
def world_kind(request: pytest.FixtureRequest, shared_etcds: Callable[[str], EmbeddedEtcd]) -> EmbeddedEtcd | None:
    return None if request.param == "memory" else shared_etcds(request.param)


@pytest.fixture
async def world(world_kind: EmbeddedEtcd | None) -> AsyncIterator[World]:
    made = etcd_world(world_kind) if world_kind else memory_world()
    async with made.exits:
        yield made


@pytest.fixture
async def etcd(etcd_binary: str, tmp_path: Path) -> AsyncIterator[EmbeddedEtcd]:
    """An etcd of the test's own, to be ill-treated."""
    made = make_etcd(etcd_binary, tmp_path / "etcd")
    await made.start()
    yield made
    await made.kill()
