"""A scheduler begins with 10,000 hosts, 80,000 GPUs and 100,000 jobs in a real etcd: how long until it decides, what it
weighs, and how long its event loop ever stands still, while it begins and afterwards, under work.

The clock runs from the process's start to the commit of its first placement: one job of those that wait fits. The lower
bound is what this process needs to list the same keys and parse each value once, and no more.

    python -m bench.cold_start [--hosts 10000] [--jobs 100000] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import IO

from gpupool.client import AsyncClient
from gpupool.embedded.daemons import remove_tree
from gpupool.embedded.etcd import EmbeddedEtcd, die_with_us
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.keys import parse
from gpupool.store.port import Delete, Put
from gpupool.store.types import TYPES
from gpupool.v1 import job_pb2, records_pb2

from . import full_fleet, proc
from .fleet import IMAGE, MODEL, UNITS, unit_id
from .row import Row, print_table

HOSTS, JOBS, WORK_S = 10_000, 100_000, 20.0
PATIENCE_S = 600.0


async def run(
    tell: Callable[[str], None], *, hosts: int = HOSTS, jobs: int = JOBS, seconds: float = WORK_S
) -> list[Row]:
    """See the module docstring."""
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    etcd = EmbeddedEtcd(folder / "etcd")
    try:
        await etcd.start()
        store = EtcdStore([etcd.endpoint], timeout_s=60.0)
        tell(f"writing {hosts} hosts and {jobs} jobs")
        count = await full_fleet.write(store, hosts, jobs)
        tell(f"{count} keys are written")
        return await _measured(tell, store, etcd.endpoint, folder, (hosts, jobs, seconds))
    finally:
        await etcd.stop()
        remove_tree(folder)


async def _measured(
    tell: Callable[[str], None], store: EtcdStore, endpoint: str, folder: Path, size: tuple[int, int, float]
) -> list[Row]:
    hosts, jobs, seconds = size
    bound_s, bound_cpu_s = await _bound(store)
    tell(f"listing and parsing takes {bound_s:.1f} s, {bound_cpu_s:.1f} s of CPU")
    pulse, announce = folder / "pulse", folder / "address"
    begun, revision = time.monotonic(), (await store.list(keys.LEADER)).revision
    command = [*die_with_us(), sys.executable, "-m", "bench.watched", str(pulse), "--etcd", endpoint]
    command += ["--listen", "127.0.0.1:0", "--announce", str(announce), "--log-level", "warning"]
    with (folder / "log").open("wb") as log, _started(command, log) as process:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await _first_placement(store, revision)
            took_s, cpu_s = time.monotonic() - begun, proc.cpu_s(process.pid)
            tell(f"the first placement came after {took_s:.1f} s, {cpu_s:.1f} s of CPU")
            await asyncio.sleep(3.0)
            begins, rss_mib = json.loads(pulse.read_text()), proc.rss_mib(process.pid)
            pulse.unlink()
            await asyncio.sleep(3.0)
            used_s, idle_s = proc.cpu_s(process.pid), time.monotonic()
            await asyncio.sleep(5.0)
            idle = (proc.cpu_s(process.pid) - used_s) / (time.monotonic() - idle_s)
            async with AsyncClient(announce.read_text(), timeout_s=60.0) as client:
                done = await _work(store, client, hosts, seconds)
            await asyncio.sleep(1.5)
            works = json.loads(pulse.read_text())
        finally:
            process.terminate()
            tail = (folder / "log").read_text()[-1500:]
    if tail:
        tell(tail)
    await store.close()
    what, target = f"{hosts:,} hosts, {jobs:,} jobs", "0 over 50 ms"
    limit = "list the same keys, parse each value once"
    return [
        Row(f"process start to first placement committed, {what}", "s", [took_s], bound_s, limit, "<= 10"),
        Row("of that, its CPU time", "s", [cpu_s], bound_cpu_s, limit),
        Row("resident memory then", "MiB", [rss_mib], target="<= 1,024"),
        Row("CPU while nothing happens, of one core", "%", [100 * idle]),
        Row("largest stall while it begins, its own CPU", "ms", [1000 * begins["cpu_s"]], target="<= 50"),
        Row("the same, on the wall", "ms", [1000 * begins["wall_s"]]),
        Row(f"largest stall under {done:.0f} ends and submissions a second, its own CPU", "ms",
            [1000 * works["cpu_s"]], target="<= 50"),
        Row("the same, on the wall", "ms", [1000 * works["wall_s"]]),
        Row("stalls over 50 ms of its CPU, in all", "", [begins["over_50_ms_of_cpu"] + works["over_50_ms_of_cpu"]],
            target=target),
    ]  # fmt: skip


def _started(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


async def _bound(store: EtcdStore) -> tuple[float, float]:
    begun, used = time.monotonic(), time.process_time()
    for kv in (await store.list(keys.ROOT)).items:
        found = parse(kv.key)
        assert found is not None
        TYPES[found[0]].FromString(kv.value)
    return time.monotonic() - begun, time.process_time() - used


async def _first_placement(store: EtcdStore, revision: int) -> None:
    async with aclosing(store.watch(keys.ALLOCATIONS, after_revision=revision)) as batches:
        async for changes in batches:
            if any(change.kv is not None for change in changes):
                return


async def _work(store: EtcdStore, client: AsyncClient, hosts: int, seconds: float) -> float:
    """VMs end, their units come back clean, and jobs are submitted that take their place; how many a second."""
    until, done = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        numbers = range(done, min(done + 20, hosts * UNITS - 2))
        gone = [await store.get(_allocation(number)) for number in numbers]
        for kv in (kv for kv in gone if kv is not None):
            await _end(store, records_pb2.Allocation.FromString(kv.value))
        specs = (
            job_pb2.JobSpec(
                name=f"more-{number}", image=IMAGE, command=["true"], cpus=8, memory_mib=64 * 1024, priority=1,
                gpus=job_pb2.GpuRequest(count=1, model=MODEL),
            )
            for number in numbers
        )  # fmt: skip
        refused = [r.refused async for r in client.submit_many(specs) if r.HasField("refused")]
        assert not refused, refused[0]
        done += len(numbers)
    return done / seconds


def _allocation(number: int) -> str:
    return keys.allocation(full_fleet.name(number // UNITS), f"{full_fleet.job_id(number)}.1")


async def _end(store: EtcdStore, gone: records_pb2.Allocation) -> None:
    report = records_pb2.VmReport(
        session=gone.session, state=records_pb2.ALLOCATION_STATE_ENDED, outcome=job_pb2.OUTCOME_EXITED, exit_code=0
    )
    clean = records_pb2.UnitReport(
        state=records_pb2.UNIT_STATE_FREE, session=gone.session, allocation=gone.id, proof="flr"
    )
    unit = unit_id([unit_id(n) for n in range(UNITS)].index(gone.units[0]))
    await store.commit([], [Put(keys.vm(gone.host, gone.id), report.SerializeToString())])
    await store.commit([], [Put(keys.unit(gone.host, unit), clean.SerializeToString())])
    await store.commit([], [Delete(keys.vm(gone.host, gone.id))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--seconds", type=float, default=WORK_S)
    o = parser.parse_args()
    rows = asyncio.run(run(lambda text: print(text, flush=True), hosts=o.hosts, jobs=o.jobs, seconds=o.seconds))
    print_table("cold start", rows)


if __name__ == "__main__":
    main()
