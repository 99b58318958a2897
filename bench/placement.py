"""How many jobs a second the pure core places: an empty fleet filled up, then one job out and one in, again and again.

    python -m bench.placement [--hosts 100] [--gpus 8] [--shapes 8]

No store, no network: the ceiling of one leader. `shapes` is how many different requests the jobs have among them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from scheduler.core.place import Placer
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import InventoryChanged, JobSubmitted, SessionChanged, UnitReported, VmReported
from scheduler.core.state.facts import GuardKind, InventoryFact, SessionFact, UnitFact, UnitReport, UnitState
from scheduler.core.state.jobs import Job, Outcome, Request
from scheduler.core.state.tables import AllocationState
from scheduler.core.step import step

CORES_A_NODE, NODE_MIB = 32, 512 * 1024


def fleet(hosts: int, gpus: int) -> Cluster:
    """Ready hosts of two NUMA nodes, every unit clean."""
    cluster = Cluster()
    nodes = tuple(
        (node, tuple((2 * c, 2 * c + 1) for c in range(node * CORES_A_NODE, (node + 1) * CORES_A_NODE)), NODE_MIB)
        for node in (0, 1)
    )
    for session in range(1, hosts + 1):
        name = f"h{session:04}"
        units = tuple(UnitFact(f"u{n}", "a100", 81920, n * 2 // gpus, (f"u{n}",)) for n in range(gpus))
        step(cluster, SessionChanged(name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(name, InventoryFact(session, units, nodes, frozenset({"img"}))), 1.0)
        for unit in units:
            step(cluster, UnitReported(name, unit.id, UnitReport(UnitState.FREE, session, "")), 1.0)
    cluster.take_dirty()
    return cluster


def jobs(shapes: int) -> Iterator[JobSubmitted]:
    """One GPU each; the requests differ in memory."""
    n = 0
    while True:
        request = Request("img", 1, "a100", 0, 4, 8192 + n % shapes)
        yield JobSubmitted(Job(f"j{n:07}", request, n, 1.0))
        n += 1


def end(cluster: Cluster, allocation_id: str) -> None:
    """The job exits, and its units are proven clean."""
    gone = cluster.allocations[allocation_id]
    step(cluster, VmReported(gone.host, gone.id, gone.session, AllocationState.ENDED, Outcome.EXITED, exit_code=0), 2.0)
    for unit in gone.units:
        step(cluster, UnitReported(gone.host, unit, UnitReport(UnitState.FREE, gone.session, gone.id)), 2.0)


def measure(hosts: int, gpus: int, shapes: int, rounds: int) -> tuple[float, float]:
    """Placements a second: filling up, and at steady state."""
    cluster, placer, source = fleet(hosts, gpus), Placer(), jobs(shapes)
    total = hosts * gpus
    for _ in range(total):
        step(cluster, next(source), 1.0)
    begun = time.perf_counter()
    assert placer.place(cluster, 1.0, total) == total
    filling = total / (time.perf_counter() - begun)
    spent = 0.0
    for n in range(rounds):
        ids = sorted(cluster.allocations)
        step(cluster, next(source), 2.0)
        begun = time.perf_counter()
        end(cluster, ids[n * 7919 % len(ids)])
        assert placer.place(cluster, 2.0) == 1
        spent += time.perf_counter() - begun
    return filling, rounds / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--shapes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=500)
    options = parser.parse_args()
    print(f"{options.hosts} hosts of {options.gpus} GPUs, one GPU a job")
    print(f"{'shapes':>8} {'filling/s':>12} {'steady/s':>12}")
    for shapes in sorted({1, options.shapes, options.hosts * options.gpus}):
        filling, steady = measure(options.hosts, options.gpus, shapes, options.rounds)
        print(f"{shapes:>8} {filling:>12,.0f} {steady:>12,.0f}")


if __name__ == "__main__":
    main()
