"""125 hosts die at once, with 1,000 VMs: from the evidence to the commit of the last of 1,000 new placements.

Hosts are records only, as their agents would have written them; etcd (with fsync), two schedulers and this client are
real processes. The hosts' sessions hang on one lease, which is revoked: their end and the guard that they had declared
are the evidence. 375 more hosts are free: with fewer, a third would be lost at once, and the mass failure brake would
wait for an operator. The lower bound is what the same etcd takes, right afterwards, of the same
writes (for each job its status, the new and the old allocation) in transactions of the same size, one after the other.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Delete, Op, Put
from gpupool.v1 import job_pb2, records_pb2

from . import proc
from .fleet import IMAGE, MODEL, UNITS, write_fleet
from .leader import ready
from .row import Row

HOSTS, FREE, ROUNDS = 125, 375, 5
JOBS = HOSTS * UNITS
OPS = 126  # of a transaction: 42 jobs of three operations
PATIENCE_S = 120.0


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    rounds = []
    for number in range(ROUNDS):
        rounds.append(await _round())
        tell("round {}: first {:.2f} s, last {:.2f} s, CPU {:.2f} s; etcd {:.2f} s".format(number + 1, *rounds[-1]))
    first_s, all_s, cpu_s, bound_s = zip(*rounds, strict=True)
    bound, limit = statistics.median(bound_s), "etcd makes the same writes"
    return [
        Row(f"evidence to the first of {JOBS} placements", "s", first_s),
        Row(f"evidence to all {JOBS} placements committed, {FREE} hosts left", "s", all_s, bound, limit, "<= 1"),
        Row("of the leader's CPU in that time", "s", cpu_s),
    ]


async def _round() -> tuple[float, float, float, float]:
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    cluster = EmbeddedCluster(folder, images=folder, hosts={})
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint])
        doomed = await write_fleet(store, HOSTS)
        async with AsyncClient(cluster.server, timeout_s=PATIENCE_S) as client:
            await ready(client, HOSTS)
            await _fill(store, client)
            await write_fleet(store, FREE, first=HOSTS)
            await ready(client, HOSTS + FREE)
        leader = cluster.replicas[await cluster.leader()].pid
        used_s = proc.cpu_s(leader)
        first_s, last_s = await _die(store, doomed)
        used_s = proc.cpu_s(leader) - used_s
        bound_s = await _bound(store)
        await store.close()
    finally:
        await cluster.stop()
        remove_tree(folder)
    return first_s, last_s, used_s, bound_s


async def _fill(store: EtcdStore, client: AsyncClient) -> None:
    """A running job on every unit."""
    spec = job_pb2.JobSpec(
        name="bench", image=IMAGE, command=["python3", "/opt/train.py", "--steps=1000"], cpus=4, memory_mib=16384,
        gpus=job_pb2.GpuRequest(count=1, model=MODEL), env={"RANK": "0"}, labels={"team": "bench"},
    )  # fmt: skip
    refused = [r.refused async for r in client.submit_many(spec for _ in range(JOBS)) if r.HasField("refused")]
    assert not refused, refused[0]
    async with asyncio.timeout(PATIENCE_S):
        while len(found := (await store.list(keys.ALLOCATIONS)).items) < JOBS:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        placed = [records_pb2.Allocation.FromString(kv.value) for kv in found]
        for start in range(0, JOBS, 100):
            reports: list[Op] = []
            for a in placed[start : start + 100]:
                report = records_pb2.VmReport(session=a.session, state=records_pb2.ALLOCATION_STATE_RUNNING)
                reports.append(Put(keys.vm(a.host, a.id), report.SerializeToString()))
            await store.commit([], reports)
        while await _running(store) < JOBS:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _running(store: EtcdStore) -> int:
    stored = (await store.list(keys.JOBS)).items
    states = [job_pb2.JobStatus.FromString(kv.value).state for kv in stored if kv.key.endswith("/status")]
    return states.count(job_pb2.JOB_STATE_RUNNING)


async def _die(store: EtcdStore, lease: int) -> tuple[float, float]:
    """Seconds from the sessions' end to the first and to the last new allocation, as a watch shows them."""
    revision = (await store.list(keys.LEADER)).revision
    seen: set[str] = set()
    first_s = 0.0
    begun = time.perf_counter()
    revoking = asyncio.create_task(store.revoke(lease))
    async with asyncio.timeout(PATIENCE_S), aclosing(store.watch(keys.ROOT, after_revision=revision)) as batches:
        async for changes in batches:
            gone = any(change.kv is None and change.key.endswith("/session") for change in changes)
            begun = time.perf_counter() if gone and not seen else begun
            seen |= {c.key for c in changes if c.kv and c.key.startswith(keys.ALLOCATIONS) and c.key.endswith(".2")}
            first_s = first_s or (time.perf_counter() - begun if seen else 0.0)
            if len(seen) == JOBS:
                break
    last_s = time.perf_counter() - begun
    await revoking
    return first_s, last_s


async def _bound(store: EtcdStore) -> float:
    ops: list[Op] = []
    statuses = {kv.key: kv.value for kv in (await store.list(keys.JOBS)).items}
    for kv in (await store.list(keys.ALLOCATIONS)).items:
        job = records_pb2.Allocation.FromString(kv.value).job
        other = kv.key.replace(keys.ROOT, "/bench/", 1)
        status = Put(keys.job_status(job).replace(keys.ROOT, "/bench/", 1), statuses[keys.job_status(job)])
        ops += [status, Put(other, kv.value), Delete(f"{other}.old")]
    begun = time.perf_counter()
    for start in range(0, len(ops), OPS):
        assert (await store.commit([], ops[start : start + OPS])).succeeded
    return time.perf_counter() - begun
