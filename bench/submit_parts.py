# ruff: noqa: SLF001 - what is timed here is private to those who do it one after the other
"""Where the CPU time of a job goes between its submission and its placement: each part by itself, in one process.

What etcd and gRPC do is left out: `bench.submit` tells that by process. The parts are the real API, mirror and leader,
each called in turn for the same jobs, timed by this thread's CPU clock, beside a bare loop on the same machine.

    python -m bench.submit_parts [--jobs 4000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aetcd.rpc import kv_pb2

from gpupool.client.requests import BATCH, keyed
from gpupool.store import etcd_wire, keys
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Guard, Op, Put
from gpupool.v1 import scheduler_pb2
from scheduler.api.jobs_api import JobsApi
from scheduler.core.state.policy import Policy
from scheduler.election import Term
from scheduler.leader import Leader
from scheduler.load import load
from scheduler.mirror.mirror import Mirror
from scheduler.mirror.records import News
from scheduler.submitting.submission import SUBMIT_BATCH, accepted

from .fleet import UNITS, write_fleet
from .submit import SPARE, spec

LOOP = 5_000_000  # additions


class Parts:
    """See the module docstring."""

    def __init__(self) -> None:
        self.used_s: dict[str, float] = {}
        self.store = MemoryStore(MemoryBackend())
        self.mirror = Mirror(self.store, time.time)
        self.api = JobsApi(self.store, self.mirror, policy=Policy(), wall=time.time, token=lambda: os.urandom(16))
        term = Term(1, 1)
        self.leader = Leader(self.store, term, wall=time.time, policy=Policy(), mirror=self.mirror)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.thread_time()
        yield
        self.used_s[name] = self.used_s.get(name, 0.0) + time.thread_time() - begun

    async def begin(self, hosts: int) -> None:
        """A fleet that is ready, and known to both."""
        await write_fleet(self.store, hosts)
        await self.mirror._reset(await self.store.list(keys.ROOT))
        load(self.leader.cluster, self.mirror._records.stored(), time.time())
        self.leader.cluster.take_dirty()
        self.leader.cluster.take_log()

    async def batch(self, wire: bytes) -> None:
        """One message of a client, until all its jobs are placed."""
        with self.part("API: read the message"):
            requests = scheduler_pb2.SubmitBatchRequest.FromString(wire).requests
        await self.api._known.refresh()
        specs = [request.spec for request in requests]
        for first in range(0, len(requests), SUBMIT_BATCH):
            with self.part("API: check"):
                results, good = await self.api._check_some(requests[first : first + SUBMIT_BATCH], specs)
            with self.part("API: transaction and answers"):
                guards, puts = [one.guard for _, one in good], [one.put for _, one in good]
                etcd_wire.encode_txn(guards, puts).SerializeToString()
                for index, one in good:
                    results[index].ok.CopyFrom(accepted(one, created=True))
                scheduler_pb2.SubmitResults(results=results).SerializeToString()
            self.leader._hear(await self._committed("mirror: the spec", puts))
            await self._turn()

    async def _turn(self) -> None:
        leader, now = self.leader, time.time()
        with self.part("leader: facts"):
            await leader._drain()
        with self.part("leader: placement"):
            await leader._place(now)
        with self.part("leader: log"):
            leader._log_transitions()
        batches = leader._batches(leader._job_groups(leader.cluster.take_dirty()))
        while True:
            with self.part("leader: records"):
                batch = next(batches, None)
            if batch is None:
                return
            guards: list[Guard] = list(dict.fromkeys(guard for group in batch for guard in group.guards))
            ops = [op for group in batch for op in group.ops]
            with self.part("leader: transaction"):
                etcd_wire.encode_txn(guards, ops).SerializeToString()
            leader._hear(await self._committed("mirror: status and allocation", ops))

    async def _committed(self, name: str, ops: Sequence[Op]) -> list[News]:
        """Written, and heard of as a watch would tell it."""
        revision = (await self.store.commit([], ops)).revision
        events = [
            kv_pb2.Event(
                kv=kv_pb2.KeyValue(key=op.key.encode(), value=op.value, create_revision=revision, mod_revision=revision)
            )
            for op in ops
            if isinstance(op, Put)
        ]
        with self.part(name):
            changes = [etcd_wire.decode_event(event) for event in events]
            return [news for change in changes if (news := self.mirror._apply(change)) is not None]


async def measured(jobs: int) -> dict[str, float]:
    """CPU seconds by part."""
    parts = Parts()
    await parts.begin((jobs + SPARE) // UNITS)
    gc.collect()
    gc.freeze()
    for first in range(0, jobs, BATCH):
        specs = [spec(number) for number in range(first, min(jobs, first + BATCH))]
        with parts.part("client: requests"):
            requests = [keyed(one) for one in specs]
            wire = scheduler_pb2.SubmitBatchRequest(requests=requests).SerializeToString()
        await parts.batch(wire)
    assert len((await parts.store.list(keys.ALLOCATIONS)).items) == jobs
    return parts.used_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4000)
    jobs = parser.parse_args().jobs
    with Path(os.devnull).open("w") as nowhere:
        logging.basicConfig(level="INFO", stream=nowhere, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
        used = asyncio.run(measured(jobs))
    begun, total = time.thread_time(), 0
    for number in range(LOOP):
        total += number
    print(f"a bare loop of {LOOP:,} additions takes {time.thread_time() - begun:.2f} s; load {os.getloadavg()[0]:.1f}")
    for name, used_s in used.items():
        print(f"{1e6 * used_s / jobs:7.1f} us  {name}")
    print(f"{1e6 * sum(used.values()) / jobs:7.1f} us  all of it")


if __name__ == "__main__":
    main()
