"""Whether the jobs that a submission depends on are there: a job may only name jobs that were submitted before it.

So no circle can come about: of two jobs that name each other, each would have to be first.
"""

from __future__ import annotations

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Store
from gpupool.v1 import records_pb2, scheduler_pb2

from .mirror import Mirror
from .submission import job_id_of


async def unknown(store: Store, mirror: Mirror, request: scheduler_pb2.SubmitRequest) -> list[str]:
    """A fault for each dependency on a job that nobody knows. A submission that is repeated was judged before."""
    if not request.spec.dependencies or _repeated(mirror, request.idempotency_key):
        return []
    faults = []
    for n, dependency in enumerate(request.spec.dependencies):
        if not await _known(store, mirror, dependency.job):
            faults.append(
                f"dependencies[{n}].job {dependency.job!r}: no such job; a job can only depend on jobs that were "
                "submitted before it (so that none wait for each other) and are still kept; `gpupool jobs` lists them"
            )
    return faults


def _repeated(mirror: Mirror, key: str) -> bool:
    return bool(key) and mirror.get(Kind.JOB_SPEC, records_pb2.JobRecord, job_id_of(key.encode())) is not None


async def _known(store: Store, mirror: Mirror, job: str) -> bool:
    if mirror.get(Kind.JOB_SPEC, records_pb2.JobRecord, job) is not None:
        return True
    try:
        key = keys.job_spec(job)
    except ValueError:
        return False  # no name at all: told as a fault of its own
    return await store.get(key) is not None  # so new that this replica has not heard of it
