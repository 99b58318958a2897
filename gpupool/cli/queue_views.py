"""What tables show of what a job asks of the queue. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from gpupool.client.requests import state_name
from gpupool.v1 import job_pb2

from . import views


def jobs(found: Iterable[job_pb2.Job], now_s: float, *, wide: bool = False) -> views.View:
    """As `views.jobs`, with all elements of an array in one row, where its first one is."""
    listed = list(found)
    header, rows = views.jobs(listed, now_s, wide=wide)
    shown: dict[str, tuple[list[str], list[job_pb2.Job]]] = {}
    for job, row in zip(listed, rows, strict=True):
        shown.setdefault(job.spec.array.id or job.id, (row, []))[1].append(job)
    return header, [_array(header, row, jobs) if jobs[0].spec.array.id else row for row, jobs in shown.values()]


def _array(header: Sequence[str], row: list[str], jobs: list[job_pb2.Job]) -> list[str]:
    """The row of an array's first element, made into that of all that were found."""
    array = jobs[0].spec.array
    states = Counter(job.status.state for job in jobs)
    told = ", ".join(f"{count} {state_name(state)}" for state, count in sorted(states.items()))
    at_once = f", {array.parallel} at once" if array.parallel else ""
    blank = [text if column in views.SHARED else "" for column, text in zip(header, row, strict=True)]
    blank[0], blank[2], blank[-1] = array.id, told, f"array of {array.count}{at_once}"
    return blank


def job_facts(job: job_pb2.Job) -> list[tuple[str, str]]:
    """Lines of `show`."""
    spec = job.spec
    times = (
        ("time limit", spec.time_limit_s),
        ("start within", spec.start_within_s),
        ("end within", spec.end_within_s),
    )
    array = spec.array
    return [
        ("array", f"{array.id}, element {array.index} of {array.count}" if array.id else ""),
        ("depends on", ", ".join(f"{d.job} ({_when(d)})" for d in spec.dependencies)),
        *((what, f"{seconds} s" if seconds else "") for what, seconds in times),
        ("ending", job.status.ending if not job.status.finished_s else ""),
    ]


def _when(dependency: job_pb2.Dependency) -> str:
    names = {job_pb2.Dependency.ANY: "any end", job_pb2.Dependency.NOT_OK: "not ok"}
    return names.get(dependency.when, "ok")
