"""How long it takes to look for places that backfill keeps, and the longest that it keeps an event loop: core alone.

    python -m bench places, or python -m bench.places [--hosts 10000]

The fleet of `victims`, full, of jobs with limits of time, or half of them with; then jobs of many shapes that fit
nowhere, and turns of placement. In CPU time, by parts as there: between two moments at which others may run. Then what
`explain` of a gang and `failover plan` take.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace

from scheduler import heap
from scheduler.core.explain import explaining
from scheduler.core.failover.plan import planning
from scheduler.core.place import Placer
from scheduler.core.queueing.ends import cancel
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import JobSubmitted
from scheduler.core.state.jobs import Job, Request
from scheduler.core.state.policy import CONSERVATIVE, EASY, BackfillPolicy
from scheduler.core.state.terms import Member, Terms
from scheduler.core.step import step
from scheduler.core.work import Work

from .row import Row
from .victims import HOSTS, ONE, full, timed

SHAPES, GANG, TURNS = 50, 8, 8
NOW_S = 200.0  # after all that the fleet has placed
TARGET = "<= 50"

Note = Callable[[str, Work[object]], None]


async def run(tell: Callable[[str], None], hosts: int = HOSTS) -> list[Row]:
    """See the module docstring."""
    rows: list[Row] = []

    def note(what: str, work: Work[object]) -> None:
        parts = timed(work)
        tell(f"{what}: {1000 * sum(parts):.0f} ms in {len(parts)} parts, the longest {1000 * max(parts):.1f} ms")
        rows.append(Row(f"{what}: all of it, CPU", "ms", [1000 * sum(parts)]))
        rows.append(Row(f"{what}: its longest part, CPU", "ms", [1000 * max(parts)], target=TARGET))

    for share, words in ((1.0, "all VMs with limits"), (0.5, "half of them")):
        gc.collect()
        _fleet(note, hosts, share, words)
    return rows


def _fleet(note: Note, hosts: int, share: float, words: str) -> None:
    with heap.still():
        cluster, placer = full(hosts, share)
    heap.begin()
    jobs = [_submit(cluster, f"new-{n:02}", n) for n in range(SHAPES)]
    _mode(cluster, placer, EASY)
    note(f"the turn that keeps the first place, {words}", placer.placing(cluster, NOW_S))
    note(f"the next turn, {words}", placer.placing(cluster, NOW_S))
    cluster.capacity_epoch += 1
    note(f"a turn after something was set free, {words}", placer.placing(cluster, NOW_S))
    cancel(cluster, jobs[0], "bench", NOW_S)
    note(f"the next place, when that job is gone, {words}", placer.placing(cluster, NOW_S))
    step(cluster, JobSubmitted(Job("small", Request("img", memory_mib=64), 0, 1.0, priority=9)), NOW_S)
    note(f"the first job of a shape that fits everywhere, {words}", placer.placing(cluster, NOW_S))
    if share == 1.0:
        _mode(cluster, placer, CONSERVATIVE)
        for number in range(1, TURNS + 1):
            note(f"conservative, turn {number}, {words}", placer.placing(cluster, NOW_S))
        _others(note, cluster, placer)


def _others(note: Note, cluster: Cluster, placer: Placer) -> None:
    """Of a gang: its place, and why it waits; and a plan, which uses the cluster up."""
    for number in reversed(range(GANG)):
        member = Member("gang", number, GANG, spread="host")
        job = Job(f"gang-{number}", ONE, 10**7, 1.0, priority=9, terms=Terms(member=member))
        step(cluster, JobSubmitted(job), NOW_S)
    _mode(cluster, placer, EASY)
    note(f"the turn that keeps places for a gang of {GANG}", placer.placing(cluster, NOW_S))
    note(f"explain of a gang of {GANG}", explaining(cluster, cluster.jobs["gang-0"], NOW_S))
    note("failover plan of one host", planning(cluster, ["h00001"], NOW_S))


def _submit(cluster: Cluster, name: str, number: int) -> Job:
    job = Job(name, replace(ONE, memory_mib=ONE.memory_mib + number), 10**6 + number, 1.0, priority=5)
    step(cluster, JobSubmitted(job), NOW_S)
    return job


def _mode(cluster: Cluster, placer: Placer, mode: str) -> None:
    cluster.policy = replace(cluster.policy, backfill=BackfillPolicy(mode=mode))
    cluster.books.claims.clear()
    placer.hopeless.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=HOSTS)
    asyncio.run(run(print, parser.parse_args().hosts))


if __name__ == "__main__":
    main()
