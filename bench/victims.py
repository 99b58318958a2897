"""How long the search for victims takes, and the longest that it keeps an event loop: the core alone, in CPU time.

    python -m bench victims, or python -m bench.victims [--hosts 10000]

A fleet of hosts with 8 GPUs, and some with 16, all full of jobs of one or two GPUs and of priority 0, and then one job
or gang of a higher priority at a time: such as have victims, and such as must be told that nobody would do. The longest
part is the most CPU time between two moments at which others may run; on a machine that others load the wall says
nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace

from scheduler import heap
from scheduler.core.place import Placer
from scheduler.core.queueing.preempt import Preempter
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import InventoryChanged, JobSubmitted, SessionChanged, UnitReported, VmReported
from scheduler.core.state.facts import GuardKind, InventoryFact, SessionFact, UnitFact, UnitReport, UnitState
from scheduler.core.state.jobs import Job, NumaPolicy, Request
from scheduler.core.state.policy import Policy, PreemptionPolicy
from scheduler.core.state.tables import AllocationState, JobState
from scheduler.core.state.terms import Member, Terms
from scheduler.core.step import step
from scheduler.core.work import Work, pauses

from .row import Row

HOSTS, RACK, LARGE_EVERY = 10_000, 40, 50
NODE_CORES, NODE_MIB = 32, 512 * 1024
TARGET = "<= 50"
LOW = [Request("img", n, "a100", 0, n * 4, n * 50_000) for n in (1, 1, 1, 2)]

Wanted = tuple[str, int, Request, str, str]  # in words, members (0: a single job), shape, spread, pack
ONE = Request("img", 8, "a100", 0, 32, 400_000, NumaPolicy.NONE)
CASES: tuple[Wanted, ...] = (
    ("one job of 8 GPUs", 0, ONE, "", ""),
    ("one job of 16 GPUs", 0, replace(ONE, gpus=16), "", ""),
    ("one job of 4 GPUs on one NUMA node", 0, replace(ONE, gpus=4, cpus=40, numa=NumaPolicy.REQUIRED), "", ""),
    ("one job that no host could take", 0, replace(ONE, cpus=500), "", ""),
    ("gang of 4 with 8 GPUs", 4, ONE, "host", ""),
    ("gang of 4 with 16 GPUs", 4, replace(ONE, gpus=16), "host", ""),
    ("gang of 16 with 8 GPUs, one rack", 16, ONE, "host", "rack"),
    ("gang of 64 with 1 GPU", 64, replace(ONE, gpus=1, cpus=8, memory_mib=60_000), "", ""),
    ("gang of 64 with 4 GPUs", 64, replace(ONE, gpus=4, cpus=8, memory_mib=60_000), "", ""),
    ("gang of 8 that no host could take", 8, replace(ONE, cpus=500), "host", ""),
)


async def run(tell: Callable[[str], None], hosts: int = HOSTS) -> list[Row]:
    """See the module docstring."""
    with heap.still():  # as a scheduler begins
        cluster, placer = full(hosts)
    heap.begin()
    tell(f"{hosts} hosts with {len(cluster.allocations)} VMs, all full")
    rows = []
    for wanted in CASES:
        asked, parts = look(cluster, placer, wanted)
        times = f"{1000 * sum(parts):.0f} ms in {len(parts)} parts, the longest {1000 * max(parts):.0f} ms"
        tell(f"{wanted[0]}: {asked} asked to stop, {times}")
        rows.append(Row(f"{wanted[0]} ({asked} victims): all of its search, CPU", "ms", [1000 * sum(parts)]))
        rows.append(Row(f"{wanted[0]}: its longest part, CPU", "ms", [1000 * max(parts)], target=TARGET))
    return rows


def full(hosts: int, limited: float = 0.0) -> tuple[Cluster, Placer]:
    """A cluster without room; so many of its VMs, as a share, have limits of time."""
    cluster = Cluster(policy=replace(Policy(), preemption=PreemptionPolicy(lower_priority=True), starts_at_once=0))
    nodes = tuple(
        (n, tuple((2 * c, 2 * c + 1) for c in range(n * NODE_CORES, (n + 1) * NODE_CORES)), NODE_MIB) for n in (0, 1)
    )
    for session in range(1, hosts + 1):
        name, gpus = f"h{session:05}", 8 if session % LARGE_EVERY else 16
        units = tuple(UnitFact(f"u{n:02}", "a100", 81920, n * 2 // gpus, (f"u{n}",)) for n in range(gpus))
        labels = (("rack", f"r{session // RACK:03}"),)
        fact = InventoryFact(session, units, nodes, frozenset({"img"}), labels=labels)
        step(cluster, SessionChanged(name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(name, fact), 1.0)
        for unit in units:
            step(cluster, UnitReported(name, unit.id, UnitReport(UnitState.FREE, session, "")), 1.0)
    cluster.take_dirty()
    placer, rng, number = Placer(), random.Random(7), 0
    while (free := sum(len(h.units) - len(h.held) for h in cluster.hosts.values())) > 0:
        for _ in range(max(1, free // 2)):
            request = rng.choice(LOW)
            terms = Terms(time_limit_s=rng.randrange(3600, 90_000)) if limited and rng.random() < limited else Terms()
            step(cluster, JobSubmitted(Job(f"j{number:07}", request, number, 1.0, terms=terms)), 1.0)
            number += 1
        placer.place(cluster, 2.0 + number / 1000, 1_000_000)
        for job_id in list(cluster.pending):
            cluster.pending.discard(job_id)
            del cluster.jobs[job_id]
        cluster.take_dirty()
        cluster.take_log()
    for vm in list(cluster.allocations.values()) if limited else ():
        step(cluster, VmReported(vm.host, vm.id, vm.session, AllocationState.RUNNING, started_s=vm.created_s), 100.0)
    return cluster, placer


def look(cluster: Cluster, placer: Placer, wanted: Wanted) -> tuple[int, list[float]]:
    """How many were asked to stop for it, and how long each part of the search took; then all is as before."""
    _, count, request, spread, pack = wanted
    jobs = [
        Job(
            f"new-{n}", request, 10**7, 1.0, priority=9,
            terms=Terms(member=Member("new", n, count, spread=spread, pack=pack) if count else None),
        )
        for n in range(max(1, count))
    ]  # fmt: skip
    for job in reversed(jobs):
        step(cluster, JobSubmitted(job), 3.0)
    placer.place(cluster, 1e6)
    assert all(job.state is JobState.PENDING for job in jobs)
    parts = timed(Preempter().preempting(cluster, 1e6))
    asked = sum(bool(vm.preempted_for) for vm in cluster.allocations.values())
    for allocation in cluster.allocations.values():
        if allocation.preempted_for:
            allocation.stop_reason = allocation.preempted_for = ""
    cluster.books.claims.clear()
    for job in jobs:
        cluster.pending.discard(job.id)
        cluster.books.gangs.forget(job)
        del cluster.jobs[job.id]
    return asked, parts


def timed(work: Work[object]) -> list[float]:
    """The CPU time between any two pauses, as the leader makes them."""
    parts: list[float] = []
    begun = time.process_time()
    for _ in pauses(work):
        parts.append(time.process_time() - begun)
        begun = time.process_time()
    parts.append(time.process_time() - begun)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    asyncio.run(run(print, parser.parse_args().hosts))


if __name__ == "__main__":
    main()
