"""A trace with times as a load: openb's default list, whose tasks have when they were created, placed and deleted.

What the trace says is kept; where the daemon knows no such thing, one reading is taken and said in the result: its
units are whole, so a slice of a GPU takes a whole one or is left out; CPUs are whole, so a part of one is one more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from gpupool.errors import InvalidSpec
from gpupool.store.keys import check_name

from ..core.packing import HostSize, Shape
from ..core.packing.sizes import WHOLE
from ..core.state.facts import QueueIntent
from ..core.state.jobs import Request
from ..core.state.rules import Rules
from ..core.state.terms import DEFAULT_QUEUE
from . import traces
from .work import IMAGE, Load, SimHost, Task, host_of

TIMES = ("creation_time", "deletion_time", "scheduled_time")
MILLI = 1000  # of a CPU
ROUND_UP, LEAVE_OUT = "round-up", "leave-out"


@dataclass(frozen=True, slots=True)
class Reading:
    """How the files are read. `hosts`: only so many, evenly from the list; 0: all.

    `queue_from`: a column whose value, in lower case, names the queue, which is a tenant by itself; "": there is one
    queue. Only what was created from `begin_s` to before `end_s` after the first task is replayed.
    """

    scale: float = 1.0
    slices: str = ROUND_UP
    hosts: int = 0
    queue_from: str = ""
    declared: float = 0.0
    begin_s: float = 0.0
    end_s: float = inf


COUNTED = ("never_ran", "still_running", "slices_rounded_up", "slices_left_out", "parts_of_cpus_rounded_up", "outside")


def load_of(nodes: Path, pods: Path, reading: Reading) -> Load:
    """The load. InvalidSpec names the line of the first fault."""
    hosts = _some(traces.read_hosts(nodes), reading.hosts)
    columns = (*traces.PODS, *TIMES, *((reading.queue_from,) if reading.queue_from else ()))
    rows = list(traces.rows(pods, columns))
    trace = _Trace(pods, reading, _ends_s(pods, rows))
    tasks = [task for number, (line, row) in enumerate(rows) if (task := trace.task(line, row, number)) is not None]
    if not tasks:
        raise InvalidSpec([f"{pods}: no task of it ever ran, so there is nothing to replay"])
    tasks = trace.window(tasks)
    queues = {name: QueueIntent(name) for name in sorted({task.queue for task in tasks}) if name != DEFAULT_QUEUE}
    said = {
        "source": "trace", "slices": reading.slices, "rows": len(rows), "scale": reading.scale,
        "declared": reading.declared, **trace.counts,
    }  # fmt: skip
    return Load([_host(host) for host in hosts], tasks, queues, said)


def _some(hosts: Sequence[HostSize], wanted: int) -> Sequence[HostSize]:
    if not 0 < wanted < len(hosts):
        return hosts
    some = [hosts[n * len(hosts) // wanted] for n in range(wanted)]
    if not any(host.gpus for host in some):
        raise InvalidSpec([f"--hosts {wanted}: none of them has a GPU; take more"])
    return some


def _host(size: HostSize) -> SimHost:
    node = size.nodes[0]
    return host_of(size.name, node.gpus, size.model, cpus=node.cpu_milli // MILLI, memory_mib=node.memory_mib)


def _ends_s(path: Path, rows: Sequence[tuple[int, dict[str, str]]]) -> int:
    """When the trace ends: nothing in it was deleted later."""
    ends = (traces.number(path, line, row, "deletion_time") for line, row in rows if row["deletion_time"].strip())
    return max(ends, default=0)


@dataclass(slots=True)
class _Trace:
    """A file's tasks, and what was made of them."""

    path: Path
    reading: Reading
    last_s: int
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(COUNTED, 0)))

    def task(self, line: int, row: dict[str, str], number: int) -> Task | None:
        """The task of one row; None: it is left out, and counted. Raises InvalidSpec."""
        shape = traces.task(self.path, line, row)
        created_s = traces.number(self.path, line, row, "creation_time")
        if not row["scheduled_time"].strip():
            self.counts["never_ran"] += 1
            return None
        run_s = self._run_s(line, row, created_s)
        if shape.gpu_milli % WHOLE:
            if self.reading.slices == LEAVE_OUT:
                self.counts["slices_left_out"] += 1
                return None
            self.counts["slices_rounded_up"] += 1
        self.counts["parts_of_cpus_rounded_up"] += bool(shape.cpu_milli % MILLI)
        limit_s = round(run_s * self.reading.declared + 0.5) if self.reading.declared else 0
        queue = self._queue(line, row)
        return Task(f"t{number:07}", float(created_s), run_s, _request(shape), queue, queue, time_limit_s=limit_s)

    def _run_s(self, line: int, row: dict[str, str], created_s: int) -> float:
        placed_s = traces.number(self.path, line, row, "scheduled_time")
        if placed_s < created_s:
            raise traces.bad(self.path, line, f"scheduled_time is {placed_s}, before creation_time, {created_s}")
        ended_s = max(self.last_s, placed_s)
        if row["deletion_time"].strip():
            ended_s = traces.number(self.path, line, row, "deletion_time")
        if ended_s < placed_s:
            raise traces.bad(self.path, line, f"deletion_time is {ended_s}, before scheduled_time, {placed_s}")
        self.counts["still_running"] += ended_s >= self.last_s  # how long it would have run, nobody knows
        return float(max(1, ended_s - placed_s))

    def _queue(self, line: int, row: dict[str, str]) -> str:
        if not self.reading.queue_from:
            return DEFAULT_QUEUE
        try:
            return check_name(row[self.reading.queue_from].strip().lower(), "queue")
        except ValueError as error:
            raise traces.bad(self.path, line, f"{self.reading.queue_from}: {error}") from None

    def window(self, tasks: Sequence[Task]) -> list[Task]:
        """Those that are replayed, by arrival, which begins at 0. Raises InvalidSpec if there are none."""
        first_s = min(task.at_s for task in tasks)
        inside = [task for task in tasks if self.reading.begin_s <= task.at_s - first_s < self.reading.end_s]
        self.counts["outside"] = len(tasks) - len(inside)
        if not inside:
            raise InvalidSpec([f"{self.path}: nothing was created between --begin and --end"])
        first_s = min(task.at_s for task in inside)
        moved = (replace(task, at_s=round((task.at_s - first_s) / self.reading.scale, 3)) for task in inside)
        return sorted(moved, key=lambda task: (task.at_s, task.id))


def _request(shape: Shape) -> Request:
    """Whole units and whole CPUs."""
    only = shape.models[0] if len(shape.models) == 1 else ""
    rules = Rules(models=shape.models) if len(shape.models) > 1 and shape.gpu_milli else None
    gpus, cpus = -(-shape.gpu_milli // WHOLE), max(1, -(-shape.cpu_milli // MILLI))
    return Request(IMAGE, gpus, only, 0, cpus, shape.memory_mib, rules=rules)
