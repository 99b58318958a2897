"""The order among jobs to be restarted, where one names others that must run, or be over, before it.

It decides only who waits for whom. It must not let jobs wait for ever because they name each other: whoever leads back
to the job itself is not waited for. A first start waits for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..state.cluster import Cluster
from ..state.jobs import Job
from ..state.tables import JobState


def awaited(cluster: Cluster, job: Job) -> list[Job]:
    """Jobs that must run or be over before this one may restart, by id."""
    return [other for other in _named(cluster, job) if not _leads_to(cluster, other, job)]


def passed_over(cluster: Cluster, job: Job) -> list[Job]:
    """Jobs that it names and does not wait for, since they wait for it in turn, by id."""
    return [other for other in _named(cluster, job) if _leads_to(cluster, other, job)]


def release(cluster: Cluster) -> None:
    """Let go whoever waits for nobody any longer, and stop whoever has to wait again."""
    for job_id in sorted(cluster.ordered):
        job = cluster.jobs[job_id]
        parked = cluster.held_up(job) or bool(awaited(cluster, job))
        if parked != cluster.pending.parked(job_id):
            cluster.queue(job, parked=parked)


def _named(cluster: Cluster, job: Job) -> Iterator[Job]:
    """Unfinished jobs that do not run and that `job`, which waits for a restart, names."""
    if job.state is not JobState.PENDING or not job.attempts:
        return
    ids = {job_id for name in job.after for job_id in cluster.named(name)} - {job.id}
    for job_id in sorted(ids):
        if cluster.jobs[job_id].state is not JobState.RUNNING:
            yield cluster.jobs[job_id]


def _leads_to(cluster: Cluster, start: Job, goal: Job) -> bool:
    seen: set[str] = set()
    todo = [start]
    while todo:
        job = todo.pop()
        if job.id == goal.id:
            return True
        if job.id not in seen:
            seen.add(job.id)
            todo += _named(cluster, job)
    return False
