"""How full the daemon's own placer gets openb's hosts with whole GPUs, with a mix and without, beside the packing core.

    GPUPOOL_OPENB=FOLDER python -m bench quality [--list default] [--seed 42] [--every 1]

The protocol is that of `gpupool simulate openb`, but each slice of a GPU is a whole one, as a passthrough GPU is, and
each part of a core a whole core. The placer learns its mix from the first arrivals, as it would in service.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from pathlib import Path

from scheduler.core.fitting.valuation import Valuation
from scheduler.core.packing import HostSize, Mix, NodeSize, Packer, Shape
from scheduler.core.packing.sizes import WHOLE
from scheduler.core.place import Placer
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import InventoryChanged, JobSubmitted, SessionChanged, UnitReported
from scheduler.core.state.facts import GuardKind, InventoryFact, SessionFact, UnitFact, UnitReport, UnitState
from scheduler.core.state.jobs import Job, Request
from scheduler.core.state.policy import Policy
from scheduler.core.state.rules import Rules
from scheduler.core.step import step
from scheduler.simulate.openb import arrivals
from scheduler.simulate.traces import read_hosts, read_tasks

GPU_MIB = 16384


class Unlearned(Valuation):
    """Knows no mix, ever."""

    def learn(self, cluster: Cluster) -> None:
        """Do not."""


def whole(task: Shape) -> Shape:
    """The task with nothing but whole GPUs and cores."""
    return task._replace(gpu_milli=-(-task.gpu_milli // WHOLE) * WHOLE, cpu_milli=_cpus(task) * 1000)


def _cpus(task: Shape) -> int:
    return max(1, math.ceil(task.cpu_milli / 1000))


def cluster_of(hosts: list[HostSize]) -> Cluster:
    """The hosts, ready and clean."""
    cluster = Cluster(policy=Policy(starts_at_once=0))
    for session, host in enumerate(hosts, 1):
        (node,) = host.nodes
        units = tuple(UnitFact(f"u{n}", host.model, GPU_MIB, 0, (f"u{n}",)) for n in range(node.gpus))
        cores = tuple((n,) for n in range(node.cpu_milli // 1000))
        inventory = InventoryFact(session, units, ((0, cores, node.memory_mib),), frozenset({"img"}))
        step(cluster, SessionChanged(host.name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(host.name, inventory), 1.0)
        for unit in units:
            step(cluster, UnitReported(host.name, unit.id, UnitReport(UnitState.FREE, session, "")), 1.0)
    cluster.take_dirty()
    return cluster


def request_of(task: Shape) -> Request:
    """As a user would ask for it."""
    models = task.models
    rules = Rules(models=models) if len(models) > 1 else None
    name = models[0] if len(models) == 1 else ""
    return Request("img", task.gpu_milli // WHOLE, name, 0, _cpus(task), task.memory_mib, rules=rules)


def by_placer(hosts: list[HostSize], tasks: list[Shape], capacity: int, values: Valuation) -> list[float]:
    """Allocated per cent at 100 and at the end; decisions a second."""
    cluster, placer = cluster_of(hosts), Placer(values=values)
    begun, asked, given, at_100 = time.process_time(), 0, 0, 0
    for n, task in enumerate(tasks):
        step(cluster, JobSubmitted(Job(f"j{n:06}", request_of(task), n, 1.0)), 1.0)
        if placer.place(cluster, 1.0):
            given += task.gpu_milli
        cluster.pending.discard(f"j{n:06}")  # what fits nowhere is dropped
        cluster.take_dirty()
        asked += task.gpu_milli
        at_100 = given if asked < capacity else at_100
    return [100 * at_100 / capacity, 100 * given / capacity, len(tasks) / (time.process_time() - begun)]


def by_packer(hosts: list[HostSize], tasks: list[Shape], capacity: int) -> list[float]:
    """The same by the packing core, which knows the mix from the start."""
    begun, asked, given, at_100 = time.process_time(), 0, 0, 0
    packer = Packer(hosts, Mix(Counter(tasks)))
    for task in tasks:
        given += task.gpu_milli if packer.place(task) is not None else 0
        asked += task.gpu_milli
        at_100 = given if asked < capacity else at_100
    return [100 * at_100 / capacity, 100 * given / capacity, len(tasks) / (time.process_time() - begun)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", default="default", help="of tasks: openb_pod_list_NAME.csv")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--every", type=int, default=1, help="take one host in so many, and as much less is asked for")
    options = parser.parse_args()
    folder = Path(os.environ["GPUPOOL_OPENB"])
    hosts = [
        HostSize(h.name, h.model, (NodeSize(h.nodes[0].cpu_milli // 1000 * 1000, *h.nodes[0][1:]),))
        for h in read_hosts(folder / "openb_node_list_gpu_node.csv")[:: options.every]
    ]
    capacity = WHOLE * sum(host.gpus for host in hosts)
    tasks = [whole(task) for task in read_tasks(folder / f"openb_pod_list_{options.list}.csv")]
    queue = arrivals(tasks[:: options.every], capacity, 1.3, options.seed)
    print(f"{len(hosts)} hosts, {capacity // WHOLE} GPUs, {len(queue)} tasks of {len(set(queue))} shapes")
    print(f"{'':>24} {'% at 100':>9} {'% at 130':>9} {'decisions/s':>12}")
    for name, found in (
        ("placer without a mix", by_placer(hosts, queue, capacity, Unlearned())),
        ("placer", by_placer(hosts, queue, capacity, Valuation())),
        ("packing core", by_packer(hosts, queue, capacity)),
    ):
        print(f"{name:>24} {found[0]:>9.2f} {found[1]:>9.2f} {found[2]:>12,.0f}")


if __name__ == "__main__":
    main()
