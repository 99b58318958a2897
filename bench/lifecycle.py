"""No-op jobs from submission to the proof that their GPUs are clean, on 256 GPUs that are made up.

Real: etcd with fsync, the scheduler's service and its API, the agents (bench/agents.py says what is left out), and
libvirt's calls and events, on its test driver (bench/testdriver.py). One client sends all jobs by SubmitBatch. The
clock stops when each job has SUCCEEDED, each allocation is deleted, and each GPU is proven clean. All of it shares this
machine's CPUs.

The ceiling is what the same etcd takes, right afterwards and with nobody watching, of as many writes and deletes of the
same sizes as the jobs needed, in transactions of 100, four at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.embedded.etcd import die_with_us
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Change, Delete, Op, Put, Store
from gpupool.v1 import job_pb2, records_pb2

from . import proc
from .row import Row

HOSTS, GPUS, PROCESSES = 32, 8, 2
MODEL, IMAGE = "nvidia-a100-80gb", "no-op"
JOBS, ROUNDS = 2000, 3
WARM_UP = HOSTS * GPUS
OPS, PIPELINED = 100, 4
PATIENCE_S = 300.0
TMPFS = "/dev/shm" if Path("/dev/shm").is_dir() else None  # agents' state: in production it lies in /run
PROFILE = "GPUPOOL_BENCH_PROFILE"  # a folder: the agents leave their profiles there

Agents = list[subprocess.Popen[bytes]]


@dataclass
class Found:
    """What the rounds gave, one value each."""

    rates: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    keys: list[float] = field(default_factory=list)
    transactions: list[float] = field(default_factory=list)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    folder, state = (Path(tempfile.mkdtemp(prefix="gpupool-bench-", dir=where)) for where in (None, TMPFS))
    found = Found()
    try:
        async with _cluster(folder, state) as (cluster, agents), AsyncClient(cluster.server) as client:
            store = EtcdStore([cluster.etcd.endpoint])
            await _ready(store, agents)
            await _lives(store, client, WARM_UP)
            for number in range(ROUNDS):
                await _round(cluster, agents, store, client, found)
                tell(f"round {number + 1}: {found.rates[-1]:.0f} jobs/s, etcd alone {found.ceilings[-1]:.0f}")
            await store.close()
    finally:
        remove_tree(folder)
        remove_tree(state)
    return _rows(found)


def _rows(found: Found) -> list[Row]:
    ceiling = sorted(found.ceilings)[len(found.ceilings) // 2]
    limit = "etcd does the same writes in batches"
    what = f"submit to proven clean, {JOBS} no-op jobs, {HOSTS * GPUS} GPUs"
    return [
        Row(what, "jobs/s", found.rates, ceiling, limit, ">= 1,000"),
        Row("writes and deletes of a life", "keys", found.keys),
        Row("transactions of a life", "", found.transactions),
        *(Row(f"CPU of {who}", "ms a job", values) for who, values in found.cpu_ms.items()),
    ]


@asynccontextmanager
async def _cluster(folder: Path, state: Path):  # type: ignore[no-untyped-def] # noqa: ANN202 - an iterator of a pair
    image = folder / "images" / IMAGE
    image.mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img", "root.img"):
        (image / name).touch()
    (image / "manifest.json").write_text(json.dumps({}))
    cluster = EmbeddedCluster(folder, images=folder / "images", hosts={}, replicas=1)
    agents: Agents = []
    try:
        await cluster.start()
        agents += _start_agents(folder, state, cluster.etcd.endpoint)
        yield cluster, agents
    finally:
        for process in agents:
            process.terminate()
        for process in agents:
            await asyncio.to_thread(process.wait)
        await cluster.stop()


def _start_agents(folder: Path, state: Path, etcd: str) -> Iterator[subprocess.Popen[bytes]]:
    each = HOSTS // PROCESSES
    for number in range(PROCESSES):
        words = ["--etcd", etcd, "--folder", str(state), "--images", str(folder / "images")]
        words += ["--first", str(number * each), "--hosts", str(each), "--gpus", f"{GPUS}x{MODEL}"]
        if profiles := os.environ.get(PROFILE):
            words += ["--profile", f"{profiles}/agents{number}.prof"]
        with (folder / f"agents{number}.log").open("wb") as log:
            command = [*die_with_us(), sys.executable, "-m", "bench.agents", *words]
            yield subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


async def _ready(store: EtcdStore, agents: Agents) -> None:
    """Return once every GPU of every host is proven clean, and the scheduler knows the hosts."""
    async with asyncio.timeout(PATIENCE_S):
        while await _count_clean(store) < HOSTS * GPUS or await _count_ready(store) < HOSTS:
            assert all(process.poll() is None for process in agents), "an agents' process ended"
            await asyncio.sleep(0.2)


async def _count_clean(store: Store) -> int:
    stored = (await store.list(keys.AGENTS)).items
    units = [records_pb2.UnitReport.FromString(kv.value) for kv in stored if "/units/" in kv.key]
    return sum(unit.state == records_pb2.UNIT_STATE_FREE for unit in units)


async def _count_ready(store: Store) -> int:
    hosts = [records_pb2.HostRecord.FromString(kv.value) for kv in (await store.list(keys.HOSTS)).items]
    return sum(host.state == records_pb2.HOST_STATE_READY for host in hosts)


async def _round(cluster: EmbeddedCluster, agents: Agents, store: EtcdStore, client: AsyncClient, found: Found) -> None:
    pids = {
        "the scheduler": [daemon.pid for daemon in cluster.replicas.values()],
        "the agents": [process.pid for process in agents],
        "etcd": [cluster.etcd.pid],
        "the client": [os.getpid()],
    }
    used = {who: _cpu_s(those) for who, those in pids.items()}
    taken_s, before, after = await _lives(store, client, JOBS)
    for who, those in pids.items():
        found.cpu_ms.setdefault(who, []).append(1000 * (_cpu_s(those) - used[who]) / JOBS)
    history = await _history(store, before, after)
    found.rates.append(JOBS / taken_s)
    found.keys.append(len(history) / JOBS)
    found.transactions.append((after - before) / JOBS)
    found.ceilings.append(JOBS / await _ceiling(store, history))


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(proc.cpu_s(pid) for pid in pids)


async def _lives(store: EtcdStore, client: AsyncClient, jobs: int) -> tuple[float, int, int]:
    """Seconds from the first submission until all is over and clean; the store's revisions before and after."""
    before = (await store.list(keys.LEADER)).revision
    begun = time.perf_counter()
    ending = asyncio.create_task(_succeeded(store, before, jobs))
    refused = [r.refused async for r in client.submit_many(_spec() for _ in range(jobs)) if r.HasField("refused")]
    assert not refused, refused[0]
    async with asyncio.timeout(PATIENCE_S):
        await ending
        while (left := await store.list(keys.ALLOCATIONS)).items:  # noqa: ASYNC110 - it is asked, not watched
            await asyncio.sleep(0.02)
    taken_s = time.perf_counter() - begun
    assert await _count_clean(store) == HOSTS * GPUS
    return taken_s, before, left.revision


def _spec() -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        name="no-op", image=IMAGE, command=["true"], cpus=2, memory_mib=1024,
        gpus=job_pb2.GpuRequest(count=1, model=MODEL),
    )  # fmt: skip


async def _succeeded(store: Store, revision: int, jobs: int) -> None:
    over: set[str] = set()
    async with aclosing(store.watch(keys.JOBS, after_revision=revision)) as batches:
        async for changes in batches:
            for change in changes:
                if change.key.endswith("/status") and change.kv:
                    state = job_pb2.JobStatus.FromString(change.kv.value).state
                    assert state not in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
                    if state == job_pb2.JOB_STATE_SUCCEEDED:
                        over.add(change.key)
            if len(over) == jobs:
                return


async def _history(store: EtcdStore, before: int, after: int) -> list[Change]:
    """All that was written after one revision up to another. Asked when it is over, it costs the run nothing."""
    found: list[Change] = []
    async with aclosing(store.watch(keys.ROOT, after_revision=before)) as batches:
        async for changes in batches:
            found += [change for change in changes if change.revision <= after]
            if changes[-1].revision >= after:
                return found
    raise AssertionError("the watch ended")


async def _ceiling(store: EtcdStore, history: Sequence[Change]) -> float:
    """Seconds for the same again, each write under a key of its own (no transaction takes a key twice)."""
    times: Counter[str] = Counter()
    puts: list[Op] = []
    deletes: list[Op] = []
    for change in history:
        if change.kv is not None:
            times[change.key] += 1
            puts.append(Put(_bench_key(change.key, times[change.key]), change.kv.value))
        else:
            deletes.append(Delete(_bench_key(change.key, times[change.key])))
    begun = time.perf_counter()
    for ops in (puts, deletes):
        batches = iter([ops[i : i + OPS] for i in range(0, len(ops), OPS)])
        await asyncio.gather(*(_write(store, batches) for _ in range(PIPELINED)))
    return time.perf_counter() - begun


def _bench_key(key: str, number: int) -> str:
    return f"{key.replace(keys.ROOT, '/bench/', 1)}#{number}"


async def _write(store: EtcdStore, batches: Iterator[list[Op]]) -> None:
    for batch in batches:  # shared: each worker takes the next
        assert (await store.commit([], batch)).succeeded
