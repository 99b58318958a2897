"""Decisions a second of the packing core: openb lists, and whole GPUs on hosts with two NUMA nodes, 1,000 and 10,000.

No store, no network: the core alone, on one CPU, in CPU time: it waits for nothing, and what else the machine does is
not its own. The garbage collector is set as in the daemon (`scheduler/heap.py`). openb's files are not ours to ship:
GPUPOOL_OPENB names the folder that has them (openb_node_list_gpu_node.csv, openb_pod_list_*.csv); without it those rows
are left out.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scheduler import heap
from scheduler.core.packing import HostSize, Mix, NodeSize, Packer, Shape
from scheduler.core.packing.sizes import WHOLE
from scheduler.simulate import openb, traces

from .row import Row

FLEETS, ROUNDS = (1_000, 10_000), 30_000
REPEATS = 3
MODELS = ("a100", "a100", "h100", "l40s")
STEADY = 0.95
# Whole GPUs with cores and memory; half of the jobs name a model, some name two.
SIZES = [
    (n, cpus * n, mib * n) for n in (1, 1, 1, 1, 2, 2, 4, 8) for cpus, mib in ((4, 32_000), (8, 64_000), (12, 110_000))
]
NAMED = ((), (), (), ("a100",), ("h100",), ("a100", "h100"))
JOBS = [Shape(1000 * n, 1000 * cpus, mib, models) for n, cpus, mib in SIZES for models in NAMED]


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    heap.begin()
    return [*_openb(tell), *_numa(tell)]


def _openb(tell: Callable[[str], None]) -> list[Row]:
    folder = os.environ.get("GPUPOOL_OPENB")
    if not folder:
        tell("openb: GPUPOOL_OPENB is not set; left out")
        return []
    hosts = traces.read_hosts(Path(folder) / "openb_node_list_gpu_node.csv")
    rows = []
    for path in sorted(Path(folder).glob("openb_pod_list_*.csv")):
        tasks = traces.read_tasks(path)
        speeds = [openb.run(hosts, tasks, 1.3, 42).decisions_per_s for _ in range(REPEATS)]
        rows.append(
            Row(f"openb {path.stem.removeprefix('openb_pod_list_')}", "decisions/s", speeds, target=">= 15,000")
        )
    return rows


def _numa(tell: Callable[[str], None]) -> list[Row]:
    rows = []
    medians: dict[str, list[float]] = {"fill": [], "steady": []}
    for hosts in FLEETS:
        speeds: dict[str, list[float]] = {"fill": [], "steady": []}
        for seed in range(REPEATS):
            tell(f"{hosts} hosts, run {seed + 1} of {REPEATS}")
            for what, speed in zip(speeds, _measured(hosts, seed), strict=True):
                speeds[what].append(speed)
        for what, values in speeds.items():
            row = Row(f"NUMA-strict, {hosts:,} hosts, {what}", "decisions/s", values, target=">= 20,000")
            medians[what].append(row.median)
            rows.append(row)
    for what, (small, large) in medians.items():
        name = f"cost of a decision, {FLEETS[1]:,} hosts against {FLEETS[0]:,}, {what}"
        rows.append(Row(name, "times", [small / large], target="<= 2"))
    return rows


def _measured(hosts: int, seed: int) -> tuple[float, float]:
    """From empty to full, with what fits nowhere counted as decided; then at 95 %: one ends, one arrives.

    An arrival that fits nowhere ends another job instead, so that the fleet stays as full as it was.
    """
    rng = random.Random(seed)
    packer = Packer(fleet(hosts), Mix(Counter(JOBS)))
    queue = [rng.choice(JOBS) for _ in range(hosts * 4)]
    begun = time.process_time()
    placed = [(taken, job.gpu_milli // WHOLE) for job in queue if (taken := packer.place(job)) is not None]
    filling = len(queue) / (time.process_time() - begun)
    used = sum(gpus for _, gpus in placed)
    rng.shuffle(placed)
    while used > STEADY * hosts * 8:
        gone, gpus = placed.pop()
        used -= gpus
        packer.free(gone)
    arrivals = [rng.choice(JOBS) for _ in range(ROUNDS)]
    ends = [rng.random() for _ in range(ROUNDS)]
    begun = time.process_time()
    for job, end in zip(arrivals, ends, strict=True):
        while used > STEADY * hosts * 8:
            place = int(end * len(placed))
            placed[place], placed[-1] = placed[-1], placed[place]
            gone, gpus = placed.pop()
            used -= gpus
            packer.free(gone)
        taken = packer.place(job)
        if taken is not None:
            placed.append((taken, job.gpu_milli // WHOLE))
            used += job.gpu_milli // WHOLE
    return filling, ROUNDS / (time.process_time() - begun)


def fleet(hosts: int) -> list[HostSize]:
    """Hosts of 8 GPUs in two NUMA nodes of 64 logical CPUs and 512 GiB."""
    node = NodeSize(64_000, 512_000, 4)
    return [HostSize(f"h{n:05}", MODELS[n % len(MODELS)], (node, node)) for n in range(hosts)]
