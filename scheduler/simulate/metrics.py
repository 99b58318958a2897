"""Figures of a simulated load, from what was noted. docs/simulate.md defines each, with its source.

Everything is a pure function of the records: same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean, median
from typing import Any

from ..core.state.tables import JobState
from .recorder import Point
from .work import Task

BOUND_S = 10.0  # below which a run time does not make a slowdown larger
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one job. Times are seconds since the beginning; None: it never came to that."""

    task: Task
    tenant: str
    started_s: float | None
    ended_s: float | None
    state: JobState

    @property
    def wait_s(self) -> float | None:
        """From its submission to the start of its first command."""
        return None if self.started_s is None else self.started_s - self.task.at_s

    @property
    def slowdown(self) -> float | None:
        """Bounded, of a job that did its work: Feitelson et al., "Theory and Practice in Parallel Job Scheduling"
        (JSSPP 1997). The response is the whole of it, restarts and stops for others included.
        """
        if self.ended_s is None or self.state is not JobState.SUCCEEDED:
            return None
        return max(1.0, (self.ended_s - self.task.at_s) / max(self.task.run_s, BOUND_S))


def spread(values: Iterable[float | None]) -> dict[str, Any]:
    """Count, mean, median, 95th percentile (nearest rank) and the largest; all null where there is nothing."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return {"count": 0, "mean": None, "median": None, "p95": None, "max": None}
    p95 = known[ceil(0.95 * len(known)) - 1]
    figures = {"mean": fmean(known), "median": median(known), "p95": p95, "max": known[-1]}
    return {"count": len(known), **{name: round(value, DIGITS) for name, value in figures.items()}}


def by(records: Sequence[Record], key: Callable[[Record], Hashable]) -> dict[str, Any]:
    """Waiting time and slowdown of each group, by its name; numbers in their order."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return {
        str(name): {
            "jobs": len(groups[name]),
            "waiting_s": spread(r.wait_s for r in groups[name]),
            "bounded_slowdown": spread(r.slowdown for r in groups[name]),
        }
        for name in sorted(groups)
    }


def jain(values: Sequence[float]) -> float | None:
    """Jain's index, (sum x)^2 / (n sum x^2): 1 where all have the same, 1/n where one has all (DEC-TR-301, 1984)."""
    squares = sum(value * value for value in values)
    return round(sum(values) ** 2 / (len(values) * squares), DIGITS) if squares else None


def mean_over(points: Sequence[Point], value: Callable[[Point], float], first_s: float, last_s: float) -> float:
    """The mean over a time, each point counting for as long as it stood."""
    return buckets(points, value, first_s, last_s, 1)[0]


def buckets(
    points: Sequence[Point], value: Callable[[Point], float], first_s: float, last_s: float, count: int
) -> list[float]:
    """The means over `count` equal parts of a time; before the first point nothing is in use."""
    width = (last_s - first_s) / count
    sums = [0.0] * count
    if width <= 0:
        return sums
    for number, point in enumerate(points):
        begin = max(point.at_s, first_s)
        end = min(points[number + 1].at_s if number + 1 < len(points) else last_s, last_s)
        found = value(point)
        while begin < end:
            index = min(int((begin - first_s) / width), count - 1)
            edge = first_s + (index + 1) * width if index < count - 1 else end
            until = min(end, edge) if edge > begin else end
            sums[index] += found * (until - begin)
            begin = until
    return [total / width for total in sums]


def service(
    records: Sequence[Record], points: Sequence[Point], tenant_of: Mapping[str, str], first_s: float, last_s: float
) -> dict[str, float]:
    """By tenant, the part of the GPU time that its jobs could have had by the end of the window that they did have.

    A job could have had its run time, from its submission on, as far as the window goes.
    """
    asked: dict[str, float] = {}
    for record in records:
        could_s = max(0.0, min(record.task.run_s, last_s - record.task.at_s))
        asked[record.tenant] = asked.get(record.tenant, 0.0) + record.task.request.gpus * could_s
    had = dict.fromkeys(asked, 0.0)
    for queue in sorted({name for point in points for name, _ in point.by_queue}):
        mean = mean_over(points, lambda point, queue=queue: dict(point.by_queue).get(queue, 0), first_s, last_s)  # type: ignore[misc]
        tenant = tenant_of.get(queue, queue)
        had[tenant] = had.get(tenant, 0.0) + mean * (last_s - first_s)
    return {name: min(1.0, had[name] / asked[name]) for name in sorted(asked) if asked[name]}
