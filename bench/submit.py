"""From submission to a committed placement, through the real client, schedulers and a durable etcd; hosts are records.

The ceiling is what the same etcd takes, right afterwards, of as many records of the same sizes (for each job its spec,
its status and its allocation) in transactions of 100, four at a time, with nobody watching. On a busy machine the CPU
time of a job tells more than the wall: it is given for each process. Jobs are sent to the standby, which takes that
off the leader; what a user does to make his specs is not in it.

    python -m bench.submit [--jobs 6000] [--rounds 3] [--replicas 2] [--ask standby]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Put
from gpupool.v1 import job_pb2, records_pb2

from . import proc
from .fleet import IMAGE, MODEL, UNITS, write_fleet
from .row import Row, print_table

JOBS, ROUNDS, REPLICAS = 6000, 3, 2
SPARE = 100  # units that stay free
PATIENCE_S = 120.0
OPS, PIPELINED = 100, 4


@dataclass(frozen=True, slots=True)
class _Round:
    """What one run gave."""

    accepted_s: float
    placed_s: float
    ceiling_s: float
    leader_mib: float
    cpu_s: Mapping[str, float]  # by process, from the first submission to the last placement
    ceiling_cpu_s: float  # of etcd alone


async def run(
    tell: Callable[[str], None],
    *,
    jobs: int = JOBS,
    rounds: int = ROUNDS,
    replicas: int = REPLICAS,
    ask: str = "standby",
) -> list[Row]:
    """See the module docstring."""
    done = []
    for number in range(rounds):
        done.append(await _round(jobs, replicas, ask))
        tell(f"round {number + 1}: {_in_words(done[-1], jobs)}")
    ceiling, limit = statistics.median(jobs / one.ceiling_s for one in done), "etcd writes the same records"
    cpu = [Row("CPU of a job, all processes", "us", [1e6 * sum(one.cpu_s.values()) / jobs for one in done])]
    cpu += [
        Row(f"of that, {name}", "us", [1e6 * one.cpu_s[name] / jobs for one in done]) for name in sorted(done[0].cpu_s)
    ]
    cpu += [Row("etcd's alone, for the same writes", "us", [1e6 * one.ceiling_cpu_s / jobs for one in done])]
    return [
        Row(f"submit to acknowledged, {jobs} jobs", "jobs/s", [jobs / one.accepted_s for one in done], ceiling, limit),
        Row(f"submit to placed, {jobs} jobs, {_hosts(jobs)} hosts", "jobs/s", [jobs / one.placed_s for one in done],
            ceiling, limit, ">= 5,000, 0.25"),
        *cpu,
        Row("leader's RSS after that", "MiB", [one.leader_mib for one in done], target="< 200 MiB"),
    ]  # fmt: skip


def _in_words(done: _Round, jobs: int) -> str:
    cpu = ", ".join(f"{name} {1e6 * used / jobs:.0f}" for name, used in sorted(done.cpu_s.items()))
    return (
        f"accepted in {done.accepted_s:.2f} s, placed {done.placed_s:.2f} s, etcd alone {done.ceiling_s:.2f} s; "
        f"us of CPU a job: {cpu}; etcd's alone {1e6 * done.ceiling_cpu_s / jobs:.0f}"
    )


def _hosts(jobs: int) -> int:
    return (jobs + SPARE) // UNITS


async def _round(jobs: int, replicas: int, ask: str) -> _Round:
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    cluster = EmbeddedCluster(folder, images=folder, hosts={}, replicas=replicas)
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint], timeout_s=60.0)
        await write_fleet(store, _hosts(jobs))
        async with AsyncClient(await _servers(cluster, ask)) as client:
            await _ready(client, _hosts(jobs))
            specs = [spec(number) for number in range(jobs)]  # the user's own part
            leader, before = await cluster.leader(), _cpu_s(cluster)
            accepted_s, placed_s = await _submit(store, client, specs)
            used = {name: cpu_s - before[name] for name, cpu_s in _cpu_s(cluster).items()}
        used["leader"] = used.pop(leader)
        used |= {"standby": sum(used.pop(name) for name in cluster.replicas if name != leader)}
        idle_s = proc.cpu_s(cluster.etcd.pid)
        ceiling_s = await _ceiling(store, jobs)
        ceiling_cpu_s = proc.cpu_s(cluster.etcd.pid) - idle_s
        leader_mib = proc.rss_mib(cluster.replicas[leader].pid)
        await store.close()
    finally:
        await cluster.stop()
        remove_tree(folder)
    return _Round(accepted_s, placed_s, ceiling_s, leader_mib, used, ceiling_cpu_s)


async def _servers(cluster: EmbeddedCluster, ask: str) -> str:
    """The replicas in the order in which to ask them."""
    leader = await cluster.leader()
    named = zip(sorted(cluster.replicas), cluster.server.split(","), strict=True)
    return ",".join(address for _, address in sorted(named, key=lambda one: (one[0] == leader) == (ask == "standby")))


def _cpu_s(cluster: EmbeddedCluster) -> dict[str, float]:
    """So far; by replica, and of etcd and of the client, which also watches for placements."""
    found = {name: proc.cpu_s(daemon.pid) for name, daemon in cluster.replicas.items()}
    return found | {"etcd": proc.cpu_s(cluster.etcd.pid), "client": time.process_time()}


async def _ready(client: AsyncClient, hosts: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while sum(h.record.state == records_pb2.HOST_STATE_READY for h in await client.hosts()) < hosts:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


def spec(number: int) -> job_pb2.JobSpec:
    """All of one shape, but no two alike."""
    return job_pb2.JobSpec(
        name=f"train-{number}", image=IMAGE, command=["python3", "/opt/train.py", f"--run={number}"], cpus=4,
        memory_mib=16384, gpus=job_pb2.GpuRequest(count=1, model=MODEL), env={"RANK": "0", "RUN": str(number)},
        labels={"team": f"t{number % 40}"},
    )  # fmt: skip


async def _submit(store: EtcdStore, client: AsyncClient, specs: list[job_pb2.JobSpec]) -> tuple[float, float]:
    """Seconds until all are acknowledged, and until the allocations of all are committed."""
    jobs = len(specs)
    before = (await store.list(keys.ROOT)).revision
    begun = time.perf_counter()
    placing = asyncio.create_task(_placed(store, before, jobs))
    refused = [r.refused async for r in client.submit_many(specs) if r.HasField("refused")]
    accepted_s = time.perf_counter() - begun
    assert not refused, refused[0]
    async with asyncio.timeout(PATIENCE_S):
        await placing
    placed_s = time.perf_counter() - begun
    stored = (await store.list(keys.JOBS)).items
    states = [job_pb2.JobStatus.FromString(kv.value).state for kv in stored if kv.key.endswith("/status")]
    assert states == [job_pb2.JOB_STATE_STARTING] * jobs
    return accepted_s, placed_s


async def _placed(store: EtcdStore, revision: int, jobs: int) -> None:
    seen: set[str] = set()
    async with aclosing(store.watch(keys.ALLOCATIONS, after_revision=revision)) as batches:
        async for changes in batches:
            seen.update(change.key for change in changes)
            if len(seen) == jobs:
                return


async def _ceiling(store: EtcdStore, jobs: int) -> float:
    stored = [*(await store.list(keys.JOBS)).items, *(await store.list(keys.ALLOCATIONS)).items]
    assert len(stored) == 3 * jobs
    puts = [Put(kv.key.replace(keys.ROOT, "/bench/", 1), kv.value) for kv in stored]
    batches = iter([puts[i : i + OPS] for i in range(0, len(puts), OPS)])
    begun = time.perf_counter()
    await asyncio.gather(*(_write(store, batches) for _ in range(PIPELINED)))
    return time.perf_counter() - begun


async def _write(store: EtcdStore, batches: Iterable[list[Put]]) -> None:
    for batch in batches:  # shared: each worker takes the next
        assert (await store.commit([], batch)).succeeded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    parser.add_argument("--ask", choices=("leader", "standby"), default="standby", help="who is sent the jobs")
    o = parser.parse_args()
    tell = partial(print, flush=True)
    rows = asyncio.run(run(tell, jobs=o.jobs, rounds=o.rounds, replicas=o.replicas, ask=o.ask))
    print_table("submit", rows)


if __name__ == "__main__":
    main()
