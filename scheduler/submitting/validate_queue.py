"""Whether what a job asks of the queue makes sense: every fault with its path, its value and the way out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpupool.v1 import job_pb2

MAX_DEPENDENCIES = 1000
MAX_TIME_S = 366 * 24 * 3600
MAX_ARRAY = 10_000
MAX_ARRAY_BYTES = 32 * 1024 * 1024  # of all elements' specs: etcd keeps 2 GiB by default
DEFAULT_GRACE_S = 15  # where the job names none

_JOB = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def queue_faults(spec: job_pb2.JobSpec) -> Iterator[str]:
    """All that is wrong with what `spec` asks of the queue."""
    yield from _dependencies(spec)
    yield from _times(spec)
    yield from _array(spec)


def _dependencies(spec: job_pb2.JobSpec) -> Iterator[str]:
    if len(spec.dependencies) > MAX_DEPENDENCIES:
        yield f"dependencies: {len(spec.dependencies)} of them, at most {MAX_DEPENDENCIES} are allowed"
        return
    seen: set[str] = set()
    for n, dependency in enumerate(spec.dependencies):
        where = f"dependencies[{n}]"
        if not _JOB.fullmatch(dependency.job):
            yield f"{where}.job {dependency.job!r} is no job's id; `gpupool jobs` lists them"
        elif dependency.job in seen:
            yield f"{where}.job {dependency.job!r} stands there twice; say once which end is waited for"
        seen.add(dependency.job)
        if dependency.when not in job_pb2.Dependency.When.values():
            yield f"{where}.when is {dependency.when}: it must be ok, any or not_ok"


def _times(spec: job_pb2.JobSpec) -> Iterator[str]:
    for name in ("time_limit_s", "start_within_s", "end_within_s", "keep_s"):
        if getattr(spec, name) > MAX_TIME_S:
            yield f"{name} is {getattr(spec, name)}: it must be at most {MAX_TIME_S} (seconds; a year); 0: no limit"
    grace_s = spec.stop_grace_s or DEFAULT_GRACE_S
    if 0 < spec.end_within_s <= grace_s:
        yield (
            f"end_within_s is {spec.end_within_s}: the stop grace alone takes {grace_s} seconds of it; give it more, "
            "or set stop_grace_s lower"
        )
    if 0 < spec.end_within_s < spec.start_within_s:
        ends = f"end_within_s is {spec.end_within_s}"
        yield f"start_within_s is {spec.start_within_s}: it must have ended by then, as {ends}"


def _array(spec: job_pb2.JobSpec) -> Iterator[str]:
    count, size = spec.array.count, spec.ByteSize()
    if count > MAX_ARRAY:
        yield f"array.count is {count}: at most {MAX_ARRAY} elements are allowed; submit several arrays"
    elif count * size > MAX_ARRAY_BYTES:
        yield (
            f"array.count is {count}: with specs of {size} bytes at most {MAX_ARRAY_BYTES // size} are allowed; keep "
            "data in a volume, not in env"
        )
    if spec.array.parallel and not count:
        yield f"array.parallel is {spec.array.parallel}, but array.count is 0: say how many elements there are"
    if spec.array.id or spec.array.index:
        yield "array.id and array.index are set by the scheduler; leave them out"
