# ruff: noqa: SLF001 - what is timed here is private to those who do it one after the other
"""Where the CPU time of a cold start goes: each part by itself, in one process, without etcd and gRPC.

The records are those of `bench cold`, in memory, as etcd's answers would have them; `--profile` says more of the part
that takes longest, at the price of all figures. What gRPC and asyncio add is in `bench cold` only.

    python -m bench.cold_parts [--hosts 10000] [--jobs 100000] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import logging
import os
import pstats
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from aetcd.rpc import kv_pb2, rpc_pb2

from gpupool.store import etcd, keys
from gpupool.store.keys import Kind
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import KeyValue, Put, Snapshot
from gpupool.store.types import TYPES
from scheduler import heap
from scheduler.core.place import Placer
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.policy import Policy
from scheduler.load import load
from scheduler.mirror.mirror import Mirror
from scheduler.mirror.records import Column, Ids, Stored

from . import full_fleet
from .proc import rss_mib

LOOP = 5_000_000  # additions
PAGE = 10_000  # keys
SHOWN = 45  # lines of a profile


class Parts:
    """CPU seconds, and how many of what, by part."""

    def __init__(self) -> None:
        self.used: dict[str, tuple[float, int]] = {}

    @contextmanager
    def part(self, name: str, count: int = 1) -> Iterator[None]:
        begun = time.thread_time()
        yield
        self.note(name, time.thread_time() - begun, count)

    def note(self, name: str, used_s: float, count: int) -> None:
        before = self.used.get(name, (0.0, 0))
        self.used[name] = before[0] + used_s, before[1] + count


class Timed(Column):
    """Records of a kind, whose reader's time until he is through with them is that kind's."""

    def __init__(self, parts: Parts, kind: Kind, items: list[tuple[Ids, KeyValue]]) -> None:
        super().__init__([ids for ids, _ in items], [kv for _, kv in items])
        self._parts, self._name, self._count = parts, kind.name, len(items)

    def __iter__(self) -> Iterator[tuple[Ids, KeyValue]]:
        begun = time.thread_time()
        yield from super().__iter__()
        if self._count:
            self._parts.note(f"leader: {self._name}", time.thread_time() - begun, self._count)


def pages(hosts: int, jobs: int) -> list[bytes]:
    """All of it, as etcd answers it."""
    sessions = {number: number // 100 + 5 for number in range(hosts)}
    ops = [Put(keys.session(full_fleet.name(n)), full_fleet._session(n)) for n in sessions]
    ops += [op for op in full_fleet._ops(sessions, hosts, jobs) if isinstance(op, Put)]
    revisions = {op.key: sessions[number] for number, op in enumerate(ops[:hosts])}
    ops.sort(key=lambda op: op.key)
    kvs = []
    for number, op in enumerate(ops):
        revision = revisions.get(op.key, 1000 + number // 100)
        kvs.append(
            kv_pb2.KeyValue(
                key=op.key.encode(), value=op.value, create_revision=revision, mod_revision=revision, version=1
            )
        )
    return [rpc_pb2.RangeResponse(kvs=kvs[n : n + PAGE]).SerializeToString() for n in range(0, len(kvs), PAGE)]


async def measured(hosts: int, jobs: int, profile: cProfile.Profile | None) -> Parts:
    """See the module docstring."""
    made = pages(hosts, jobs)
    gc.collect()
    gc.freeze()
    heap.begin()
    parts, items = Parts(), list[KeyValue]()
    with profile or nullcontext():
        for page in made:
            with parts.part("list: parse the page"):
                kvs = rpc_pb2.RangeResponse.FromString(page).kvs
            with parts.part("list: keys and values", len(kvs)):
                await etcd._decode(kvs, items)
        del made, kvs
        mirror = Mirror(MemoryStore(MemoryBackend()), time.time)
        with parts.part("mirror", len(items)):
            await mirror._reset(Snapshot(100_000, tuple(items)))
        del items
        cluster, placer = Cluster(policy=Policy()), Placer()
        with heap.still():
            stored = mirror._records.stored()
            timed: Stored = {kind: Timed(parts, kind, list(stored[kind])) for kind in TYPES}
            with parts.part("leader: all of its load"):
                load(cluster, timed, time.time())
            with parts.part("leader: looks at all hosts", len(cluster.hosts)):
                for _ in placer.begin(cluster):
                    pass
        with parts.part("leader: first turn"):
            placer.place(cluster, time.time())
    return parts


def bound(hosts: int, jobs: int) -> float:
    """Parse each value once."""
    values = [(kv.key, kv.value) for page in pages(hosts, jobs) for kv in rpc_pb2.RangeResponse.FromString(page).kvs]
    begun = time.thread_time()
    for key, value in values:
        found = keys.parse(key.decode())
        assert found is not None
        TYPES[found[0]].FromString(value)
    return time.thread_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level="WARNING")
    profile = cProfile.Profile(time.thread_time) if options.profile else None
    parts = asyncio.run(measured(options.hosts, options.jobs, profile))
    rss = rss_mib(os.getpid())
    begun, total = time.thread_time(), 0
    for number in range(LOOP):
        total += number
    print(f"a bare loop of {LOOP:,} additions takes {time.thread_time() - begun:.2f} s; load {os.getloadavg()[0]:.1f}")
    print(f"{rss:.0f} MiB")
    for name, (used_s, count) in parts.used.items():
        print(f"{used_s:7.3f} s {1e6 * used_s / count:10.1f} us each  {name} ({count:,})")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(SHOWN)


if __name__ == "__main__":
    main()
