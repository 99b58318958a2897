"""Ending a job for good before its command has: a cancel, or the end of its time. It asks; the agent stops the VM."""

from __future__ import annotations

from ..state.cluster import Cluster
from ..state.jobs import Job
from ..state.tables import JobEvent


def cancel(cluster: Cluster, job: Job, why: str, now: float) -> None:
    """Somebody wants its end: at once if it has no VM. Asked twice, or too late, it changes nothing."""
    if job.final or job.cancel_reason is not None:
        return
    job.cancel_reason = why
    cluster.dirty.jobs.add(job.id)
    if job.allocation_id not in cluster.allocations:
        cluster.change_job(job, JobEvent.CANCELLED, now, why)
        return
    _ask(cluster, job, now)
    cluster.allocations[job.allocation_id or ""].stop_reason = why


def give_up(cluster: Cluster, job: Job, why: str, now: float) -> None:
    """It has FAILED: at once if it has no VM, else however that ends."""
    if job.final or job.ending:
        return
    if job.allocation_id not in cluster.allocations:
        cluster.change_job(job, JobEvent.EXPIRED, now, why)
        return
    job.ending = why
    cluster.dirty.jobs.add(job.id)
    _ask(cluster, job, now)
    allocation = cluster.allocations[job.allocation_id or ""]
    allocation.stop_reason = allocation.stop_reason or why


def _ask(cluster: Cluster, job: Job, now: float) -> None:
    cluster.stale_jobs.add(job.id)  # no room need be kept for it any more
    cluster.capacity_epoch += 1
    allocation = cluster.allocations[job.allocation_id or ""]
    allocation.stop_requested_s = allocation.stop_requested_s or now  # a drain may have asked before
    cluster.note_stop(allocation)
