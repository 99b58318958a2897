"""Whether the jobs that a submission depends on are there: a job may only name jobs that were submitted before it.

So no circle can come about: of two jobs that name each other, each would have to be first.
"""

from __future__ import annotations

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Store
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from ..mirror.mirror import FINAL, Mirror
from .submission import element_id, job_id_of, many


async def unknown(store: Store, mirror: Mirror, request: scheduler_pb2.SubmitRequest) -> list[str]:
    """A fault for each dependency on a job that nobody knows. A submission that is repeated was judged before."""
    if not request.spec.dependencies:
        return []
    await _expand(store, mirror, request.spec)
    repeated = _repeated(mirror, request.idempotency_key)
    faults = []
    for n, dependency in enumerate(request.spec.dependencies):
        if not repeated and not await _known(store, mirror, dependency.job):
            faults.append(
                f"dependencies[{n}].job {dependency.job!r}: no such job; a job can only depend on jobs that were "
                "submitted before it (so that none wait for each other) and are still kept; `gpupool jobs` lists them"
            )
    return faults


def drop_ended(mirror: Mirror, spec: job_pb2.JobSpec) -> str:
    """Leave the spec those dependencies that are still to be waited for; why it could never start, "": it could."""
    never, left = "", list[job_pb2.Dependency]()
    for dependency in spec.dependencies:
        state = mirror.state_of(dependency.job)
        good = (state == job_pb2.JOB_STATE_SUCCEEDED) == (dependency.when != job_pb2.Dependency.NOT_OK)
        if state not in FINAL:
            left.append(dependency)
        elif not (good or dependency.when == job_pb2.Dependency.ANY or never):
            ended = job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")
            never = f"would be CANCELLED at once, as it can never start: {dependency.job} is {ended}"
    del spec.dependencies[:]
    spec.dependencies.extend(left)
    return never


def _repeated(mirror: Mirror, key: str) -> bool:
    return bool(key) and mirror.has(Kind.JOB_SPEC, job_id_of(key.encode()))


async def _expand(store: Store, mirror: Mirror, spec: job_pb2.JobSpec) -> None:
    """Who depends on an array or a gang depends on each of its elements, or members."""
    found: list[job_pb2.Dependency] = []
    for dependency in spec.dependencies:
        count = await _count(store, mirror, dependency.job)
        ids = [element_id(dependency.job, n) for n in range(count)] or [dependency.job]
        found += [job_pb2.Dependency(job=job, when=dependency.when) for job in ids]
    del spec.dependencies[:]
    spec.dependencies.extend(found)


async def _count(store: Store, mirror: Mirror, array: str) -> int:
    """How many elements the array has, or members the gang; 0: it is none."""
    try:
        key, first = keys.job_spec(element_id(array, 0)), element_id(array, 0)
    except ValueError:
        return 0
    record = mirror.get(Kind.JOB_SPEC, records_pb2.JobRecord, first)
    if record is None and not mirror.has(Kind.JOB_SPEC, array):
        kv = await store.get(key)
        record = records_pb2.JobRecord.FromString(kv.value) if kv is not None else None
    return many(record.spec) if record is not None else 0


async def _known(store: Store, mirror: Mirror, job: str) -> bool:
    if mirror.has(Kind.JOB_SPEC, job):
        return True
    try:
        key = keys.job_spec(job)
    except ValueError:
        return False  # no name at all: told as a fault of its own
    return await store.get(key) is not None  # so new that this replica has not heard of it
