"""What a no-op job's whole life costs without etcd, gRPC and other processes: agents, a leader and a store in one.

The same lives as `bench.lifecycle` has, on a store in memory; only this process is measured, so a machine that others
load tells the same. Calls of Python functions a life do not depend on the machine at all.

    python -m bench.life_parts [--hosts 4] [--jobs 256] [--profile FILE] [--calls]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import logging
import pstats
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpupool.store import keys
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Put
from gpupool.v1 import records_pb2
from scheduler.core.state.policy import Policy
from scheduler.mirror.mirror import Mirror
from scheduler.replica import Replica

from .agents import agent
from .lifecycle import GPUS, IMAGE, MODEL, PATIENCE_S, TMPFS, _count_clean, _count_ready, _spec, _succeeded

PUTS = 100


class Pool:
    """Agents and a scheduler on one store."""

    def __init__(self, folder: Path, hosts: int) -> None:
        image = folder / "images" / IMAGE
        image.mkdir(parents=True)
        for name in ("vmlinuz", "initrd.img", "root.img"):
            (image / name).touch()
        (image / "manifest.json").write_text(json.dumps({}))
        backend = MemoryBackend()
        self.store = MemoryStore(backend)
        self._gpus = hosts * GPUS
        self._hosts = hosts
        self._agents = [
            agent(f"h{number:03}", MemoryStore(backend), folder, folder / "images", f"{GPUS}x{MODEL}")
            for number in range(hosts)
        ]
        mirror = Mirror(self.store, time.time)
        self._replica = Replica("s1", "s1:1", self.store, mirror, Policy(), time.time)
        self._tasks: list[asyncio.Task[object]] = []

    async def begin(self) -> None:
        """Until every GPU is proven clean and every host ready."""
        runs = [one.run() for one in self._agents]
        self._tasks = [asyncio.create_task(run) for run in (*runs, self._replica.run())]
        async with asyncio.timeout(PATIENCE_S):
            while not await self._ready():  # noqa: ASYNC110 - it is asked, not watched
                await asyncio.sleep(0.05)

    async def _ready(self) -> bool:
        return await _count_clean(self.store) == self._gpus and await _count_ready(self.store) == self._hosts

    async def lives(self, jobs: int, name: str) -> int:
        """All from the first submission until all is over and clean; returns the revisions that it took."""
        before = (await self.store.list(keys.LEADER)).revision
        ending = asyncio.create_task(_succeeded(self.store, before, jobs))
        spec = _spec()
        puts = [
            Put(
                keys.job_spec(f"{name}{number:05}"),
                records_pb2.JobRecord(spec=spec, submitted_s=time.time()).SerializeToString(),
            )
            for number in range(jobs)
        ]
        for first in range(0, jobs, PUTS):
            await self.store.commit([], puts[first : first + PUTS])
        await ending
        while (left := await self.store.list(keys.ALLOCATIONS)).items:  # noqa: ASYNC110 - it is asked, not watched
            await asyncio.sleep(0.02)
        assert await _count_clean(self.store) == self._gpus
        return left.revision - before

    async def end(self) -> None:
        """No task is left."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task


@dataclass(frozen=True, slots=True)
class Found:
    """Of all lives together; `threads_s`: CPU time of threads beside the event loop's, libvirt's above all."""

    cpu_s: float
    threads_s: float
    taken_s: float
    revisions: int


async def measured(hosts: int, jobs: int, profile: cProfile.Profile | None) -> Found:
    """See Found."""
    with tempfile.TemporaryDirectory(prefix="gpupool-bench-", dir=TMPFS) as folder:
        pool = Pool(Path(folder), hosts)
        await pool.begin()
        await pool.lives(hosts * GPUS, "w")
        gc.collect()
        used, alone, begun = time.process_time(), time.thread_time(), time.perf_counter()
        if profile:
            profile.enable()
        revisions = await pool.lives(jobs, "j")
        if profile:
            profile.disable()
        cpu_s = time.process_time() - used
        found = Found(cpu_s, cpu_s - (time.thread_time() - alone), time.perf_counter() - begun, revisions)
        await pool.end()
    return found


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=256)
    parser.add_argument("--profile", type=Path, help="where to leave a cProfile of the event loop's thread")
    parser.add_argument("--calls", action="store_true", help="count calls of functions; costs time")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    profile = cProfile.Profile(time.thread_time) if options.profile or options.calls else None
    found, jobs = asyncio.run(measured(options.hosts, options.jobs, profile)), options.jobs
    print(
        f"{1000 * found.cpu_s / jobs:.2f} ms of CPU a life, {1000 * found.threads_s / jobs:.2f} of them in threads; "
        f"{found.revisions / jobs:.2f} revisions a life, {jobs / found.taken_s:.0f} lives/s"
    )
    if profile and options.calls:
        print(f"{pstats.Stats(profile).total_calls / jobs:.0f} calls a life")  # type: ignore[attr-defined]
    if profile and options.profile:
        profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
