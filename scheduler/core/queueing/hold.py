"""What its owner or an operator wants of one job: that it is held, released, or stopped to start again.

A wish is a level: told twice, or by another leader's mouth, it changes nothing more. A hold keeps a job from starting;
it never stops one. A requeue stops attempts up to a number, so that it cannot stop one that was made after it.
"""

from __future__ import annotations

from ..state.cluster import Cluster
from ..state.facts import JobIntent
from ..state.jobs import Job
from ..state.tables import JobState


def intended(cluster: Cluster, job_id: str, intent: JobIntent, now: float) -> None:
    """What is wanted of the job is now so."""
    job = cluster.jobs.get(job_id)
    if job is None or job.final:
        return
    job.intent = intent
    before = job.hold
    if job.hold and intent.released_s >= job.held_s:
        job.hold, job.host_deaths = "", 0
    if job.state is JobState.PENDING:
        apply(job)
    if job.hold != before:
        cluster.dirty.jobs.add(job.id)
        cluster.capacity_epoch += bool(job.attempts)  # no room is promised to who is held (reserve.py)
        cluster.enqueue(job)
    _requeue(cluster, job, now)


def apply(job: Job) -> None:
    """Hold a job that is pending, or about to be, if that is wanted."""
    intent = job.intent
    if intent.held_s > intent.released_s and not job.hold:
        job.hold, job.held_s = _who(intent.held_by, intent.held_reason), intent.held_s


def _requeue(cluster: Cluster, job: Job, now: float) -> None:
    allocation = cluster.allocations.get(job.allocation_id or "")
    if allocation is None or allocation.stop_reason or allocation.attempt > job.intent.requeue_attempt:
        return
    allocation.stop_reason = f"requeued {_who(job.intent.requeue_by, job.intent.requeue_reason)}"
    allocation.stop_requested_s = now
    cluster.note_stop(allocation)


def _who(by: str, reason: str) -> str:
    return f"by {by}: {reason}" if reason else f"by {by}"
