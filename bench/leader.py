"""A leader is killed with SIGKILL while jobs come in: how long until the other replica has committed a placement.

Hosts are records only; etcd, both schedulers and the client are real processes. The lower bound is the time that the
standby takes to believe in the death: two refused connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Change
from gpupool.v1 import job_pb2

from .fleet import IMAGE, MODEL, write_fleet
from .row import Row

KILLS, HOSTS = 5, 125
EVERY_S, BEFORE_S = 0.05, 2.0  # a job each; of them before a kill
PATIENCE_S = 60.0
AGAIN_S = 0.1  # between the two refused connections


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    cluster = EmbeddedCluster(folder, images=folder, hosts={})
    leads, commits = [], []
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint])
        await write_fleet(store, HOSTS)
        async with AsyncClient(cluster.server) as client:
            await ready(client, HOSTS)
            for number in range(KILLS):
                async with Steady(client).submitting():
                    await asyncio.sleep(BEFORE_S)
                    lead_s, commit_s = await kill_leader(cluster, store)
                tell(f"kill {number + 1}: the other leads after {lead_s:.2f} s, has placed after {commit_s:.2f} s")
                leads.append(lead_s)
                commits.append(commit_s)
                await restart_dead(cluster)
        await store.close()
    finally:
        await cluster.stop()
        remove_tree(folder)
    return [
        Row("kill -9 of the leader to the other's lead", "s", leads, AGAIN_S, "two refused connections"),
        Row("kill -9 of the leader to the other's first placement", "s", commits, AGAIN_S, "the same", "<= 2"),
    ]


async def ready(client: AsyncClient, hosts: int) -> None:
    """Return once that many hosts are READY."""
    async with asyncio.timeout(PATIENCE_S):
        while (await client.cluster()).hosts_ready < hosts:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


class Steady:
    """Submits one-GPU jobs at a steady pace; `acknowledged` are their ids."""

    def __init__(self, client: AsyncClient, every_s: float = EVERY_S) -> None:
        self._client = client
        self._every_s = every_s
        self.acknowledged: list[str] = []

    @contextlib.asynccontextmanager
    async def submitting(self) -> AsyncIterator[None]:
        """Submit for the body; on leaving, what is on its way is still awaited."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._submit(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def _submit(self, stop: asyncio.Event) -> None:
        spec = job_pb2.JobSpec(
            name="steady", image=IMAGE, command=["true"], cpus=1, memory_mib=1024,
            gpus=job_pb2.GpuRequest(count=1, model=MODEL),
        )  # fmt: skip
        while not stop.is_set():
            answer = await self._client.submit(spec)
            self.acknowledged.append(answer.id)
            await asyncio.sleep(self._every_s)


async def kill_leader(cluster: EmbeddedCluster, store: EtcdStore) -> tuple[float, float]:
    """Seconds from the kill to the next term, and to its first allocation, both as a watch shows them."""
    name = await cluster.leader()
    before = await store.get(keys.LEADER)
    assert before is not None
    changes = store.watch(keys.ROOT, after_revision=(await store.list(keys.LEADER)).revision)
    begun = time.perf_counter()
    await cluster.replicas[name].kill()
    async with asyncio.timeout(PATIENCE_S):
        lead_s, commit_s = await first_decision(changes, before.create_revision, begun)
    return lead_s, commit_s


async def first_decision(
    changes: AsyncGenerator[Sequence[Change], None], old_term: int, begun: float
) -> tuple[float, float]:
    """When another term than `old_term` begins, and when a new allocation is first seen in it, in seconds."""
    lead_s = 0.0
    async with contextlib.aclosing(changes) as batches:
        async for batch in batches:
            for change in batch:
                if change.key == keys.LEADER and change.kv and change.kv.create_revision != old_term:
                    lead_s = time.perf_counter() - begun
                elif lead_s and change.key.startswith(keys.ALLOCATIONS) and change.kv:
                    return lead_s, time.perf_counter() - begun
    raise AssertionError("the watch ended")


async def restart_dead(cluster: EmbeddedCluster) -> None:
    """Start the replicas that were killed."""
    for name, replica in cluster.replicas.items():
        if not replica.pid:
            await cluster.start_replica(name)
