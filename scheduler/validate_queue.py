"""Whether what a job asks of the queue makes sense: every fault with its path, its value and the way out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpupool.v1 import job_pb2

MAX_DEPENDENCIES = 1000

_JOB = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def queue_faults(spec: job_pb2.JobSpec) -> Iterator[str]:
    """All that is wrong with what `spec` asks of the queue."""
    yield from _dependencies(spec)


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
