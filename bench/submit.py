"""From submission to a committed placement, through the real client, schedulers and a durable etcd; hosts are records.

The ceiling is what the same etcd takes, right afterwards, of as many records of the same sizes (for each job its spec,
its status and its allocation) in transactions of 100, four at a time, with nobody watching.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Put
from gpupool.v1 import job_pb2, records_pb2

from . import proc
from .fleet import IMAGE, MODEL, write_fleet
from .row import Row

JOBS, HOSTS, ROUNDS = 1500, 200, 3
PATIENCE_S = 120.0
OPS, PIPELINED = 100, 4


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    accepted, placed, ceilings, memory = [], [], [], []
    for number in range(ROUNDS):
        accepted_s, placed_s, ceiling_s, leader_mib = await _round()
        tell(
            f"round {number + 1}: accepted in {accepted_s:.2f} s, placed {placed_s:.2f} s, etcd alone {ceiling_s:.2f} s"
        )
        accepted.append(JOBS / accepted_s)
        placed.append(JOBS / placed_s)
        ceilings.append(JOBS / ceiling_s)
        memory.append(leader_mib)
    ceiling, limit = statistics.median(ceilings), "etcd writes the same records"
    return [
        Row(f"submit to acknowledged, {JOBS} jobs", "jobs/s", accepted, ceiling, limit),
        Row(f"submit to placed, {JOBS} jobs, {HOSTS} hosts", "jobs/s", placed, ceiling, limit, ">= 5,000, 0.25"),
        Row("leader's RSS after that", "MiB", memory, target="< 200 MiB"),
    ]


async def _round() -> tuple[float, float, float, float]:
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    cluster = EmbeddedCluster(folder, images=folder, hosts={})
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint])
        await write_fleet(store, HOSTS)
        async with AsyncClient(cluster.server) as client:
            await _ready(client)
            accepted_s, placed_s = await _submit(store, client)
        ceiling_s = await _ceiling(store)
        leader_mib = proc.rss_mib(cluster.replicas[await cluster.leader()].pid)
        await store.close()
    finally:
        await cluster.stop()
        remove_tree(folder)
    return accepted_s, placed_s, ceiling_s, leader_mib


async def _ready(client: AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while sum(h.record.state == records_pb2.HOST_STATE_READY for h in await client.hosts()) < HOSTS:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


def _spec() -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        name="bench", image=IMAGE, command=["python3", "/opt/train.py", "--steps=1000"], cpus=4, memory_mib=16384,
        gpus=job_pb2.GpuRequest(count=1, model=MODEL), env={"RANK": "0"}, labels={"team": "bench"},
    )  # fmt: skip


async def _submit(store: EtcdStore, client: AsyncClient) -> tuple[float, float]:
    """Seconds until all are acknowledged, and until the allocations of all are committed."""
    before = (await store.list(keys.ROOT)).revision
    begun = time.perf_counter()
    placing = asyncio.create_task(_placed(store, before))
    refused = [r.refused async for r in client.submit_many(_spec() for _ in range(JOBS)) if r.HasField("refused")]
    accepted_s = time.perf_counter() - begun
    assert not refused, refused[0]
    async with asyncio.timeout(PATIENCE_S):
        await placing
    placed_s = time.perf_counter() - begun
    stored = (await store.list(keys.JOBS)).items
    states = [job_pb2.JobStatus.FromString(kv.value).state for kv in stored if kv.key.endswith("/status")]
    assert states == [job_pb2.JOB_STATE_STARTING] * JOBS
    return accepted_s, placed_s


async def _placed(store: EtcdStore, revision: int) -> None:
    seen: set[str] = set()
    async with aclosing(store.watch(keys.ALLOCATIONS, after_revision=revision)) as batches:
        async for changes in batches:
            seen.update(change.key for change in changes)
            if len(seen) == JOBS:
                return


async def _ceiling(store: EtcdStore) -> float:
    stored = [*(await store.list(keys.JOBS)).items, *(await store.list(keys.ALLOCATIONS)).items]
    assert len(stored) == 3 * JOBS
    puts = [Put(kv.key.replace(keys.ROOT, "/bench/", 1), kv.value) for kv in stored]
    batches = iter([puts[i : i + OPS] for i in range(0, len(puts), OPS)])
    begun = time.perf_counter()
    await asyncio.gather(*(_write(store, batches) for _ in range(PIPELINED)))
    return time.perf_counter() - begun


async def _write(store: EtcdStore, batches: Iterable[list[Put]]) -> None:
    for batch in batches:  # shared: each worker takes the next
        assert (await store.commit([], batch)).succeeded
