"""The protocol of the FGD paper (Weng et al., USENIX ATC 2023): how much of a cluster can be allocated.

The tasks of a list arrive in random order, and then more, drawn from the list, until they ask for `inflate` times the
GPUs that there are; no more arrive then, though there be more in the list. Each is placed for good or, if it fits
nowhere, dropped. Nothing is moved or freed.
"""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from ..core.packing import HostSize, Mix, Packer, Shape
from ..core.packing.sizes import WHOLE

COLLECT_EVERY = 100_000  # objects made
MARKS = (1.0, 1.3)  # of the GPUs that there are: when so many have been asked for, the protocol looks


@dataclass(frozen=True, slots=True)
class Run:
    """One seed. The percentages are of the cluster's GPUs, when so many per cent had been asked for, or at the end, if
    it never came to that.
    """

    seed: int
    alloc_pct_at_100: float
    alloc_pct_at_130: float
    decisions_per_s: float
    tasks: int
    failed_tasks: int


def run(hosts: Sequence[HostSize], tasks: Sequence[Shape], inflate: float, seed: int) -> Run:
    """The time is this process's CPU time for all decisions, and for making the packer, which knows nothing yet."""
    capacity = WHOLE * sum(host.gpus for host in hosts)
    queue = arrivals(tasks, capacity, inflate, seed)
    counts = Counter(tasks)
    limits = gc.get_threshold()
    gc.set_threshold(
        COLLECT_EVERY, *limits[1:]
    )  # it would search all states each time, and finds nothing before the end
    begun = time.process_time()
    place = Packer(hosts, Mix(counts)).place
    asked = given = failed = 0
    seen: list[int] = []
    mark, marks = MARKS[0] * capacity, iter((*MARKS[1:], inf))
    for task in queue:
        if place(task) is None:
            failed += 1
        else:
            given += task.gpu_milli
        asked += task.gpu_milli
        while asked >= mark:
            seen.append(given)
            mark = next(marks) * capacity
    spent_s = time.process_time() - begun
    gc.set_threshold(*limits)
    at_100, at_130 = (100 * part / capacity for part in (*seen, given, given)[:2])
    return Run(seed, at_100, at_130, len(queue) / spent_s, len(queue), failed)


def arrivals(tasks: Sequence[Shape], capacity: int, inflate: float, seed: int) -> list[Shape]:
    """The tasks in the order of this seed, up to the first with which `inflate` times the capacity is asked for."""
    rng = random.Random(seed)  # noqa: S311  (an experiment that can be repeated)
    queue = list(tasks)
    rng.shuffle(queue)
    asked, wanted = 0, inflate * capacity
    for number, task in enumerate(queue):
        if asked >= wanted:
            return queue[:number]
        asked += task.gpu_milli
    while asked < wanted:
        task = rng.choice(tasks)
        queue.append(task)
        asked += task.gpu_milli
    return queue
