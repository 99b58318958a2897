"""Whether a job may be submitted to its queue at all: what could never start there is refused, with the limit."""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.store.keys import Kind
from gpupool.v1 import job_pb2, records_pb2

from ..core.state.terms import DEFAULT_QUEUE
from ..mirror.mirror import Mirror


def faults(mirror: Mirror, spec: job_pb2.JobSpec) -> Iterator[str]:
    """Every reason why the job could never start in its queue."""
    name, wanted = spec.queue or DEFAULT_QUEUE, settings(mirror, spec.queue or DEFAULT_QUEUE)
    if wanted is None:
        known = ", ".join(sorted({DEFAULT_QUEUE, *(ids[0] for ids in mirror.ids(Kind.QUEUE))}))
        yield f"queue {name!r}: there is none of this name; queues at hand: {known}"
        return
    low = wanted.priority_min if wanted.HasField("priority_min") else spec.priority
    high = wanted.priority_max if wanted.HasField("priority_max") else spec.priority
    if not low <= spec.priority <= high:
        span = f"{low} or more" if spec.priority < low else f"{high} or less"
        yield f"priority is {spec.priority}: in queue {name!r} it must be {span}"
    yield from _beyond(spec, wanted.limit, f"queue {name!r} may use")
    yield from _beyond(spec, wanted.user_limit, f"in queue {name!r} one user may use")
    if wanted.HasField("user_jobs") and not wanted.user_jobs:
        yield f"queue {name!r} lets no user run a job (user_jobs is 0)"
    elif wanted.HasField("user_jobs") and spec.gang.count > wanted.user_jobs:
        yield f"gang.count is {spec.gang.count}: in queue {name!r} one user may run {wanted.user_jobs} jobs"
    if (wanted.HasField("user_limit") or wanted.HasField("user_jobs")) and not spec.user:
        yield f"user is missing: queue {name!r} has limits for each user"


def warnings(mirror: Mirror, spec: job_pb2.JobSpec) -> list[str]:
    """What will keep the job waiting there for now."""
    name = spec.queue or DEFAULT_QUEUE
    wanted = settings(mirror, name)
    if wanted is None or not wanted.suspended:
        return []
    return [f"queue {name!r} is suspended by {wanted.suspended_by}: {wanted.suspended_reason or 'no reason given'}"]


def settings(mirror: Mirror, name: str) -> records_pb2.QueueIntent | None:
    """What operators want of the queue; None: there is no such queue."""
    found = mirror.get(Kind.QUEUE, records_pb2.QueueIntent, name)
    return records_pb2.QueueIntent() if found is None and name == DEFAULT_QUEUE else found


def _beyond(spec: job_pb2.JobSpec, limit: records_pb2.Amounts, who: str) -> Iterator[str]:
    members, each = spec.gang.count or 1, f" for each of {spec.gang.count} members" if spec.gang.count else ""
    if limit.HasField("gpus") and spec.gpus.count * members > limit.gpus:
        yield f"gpus.count is {spec.gpus.count}{each}: {who} {limit.gpus or 'no'} GPUs"
    if limit.HasField("cpus") and spec.cpus * members > limit.cpus:
        yield f"cpus is {spec.cpus}{each}: {who} {limit.cpus or 'no'} CPUs"
    if limit.HasField("memory_mib") and spec.memory_mib * members > limit.memory_mib:
        yield f"memory_mib is {spec.memory_mib}{each}: {who} {limit.memory_mib or 'no'} MiB"
