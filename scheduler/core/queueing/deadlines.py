"""Acting on the times of jobs: who has run or waited for too long ends; who has been finished for long is forgotten.

A VM is only asked to stop, as by a cancel: its guest may save its state, and has the stop grace. What was decided
stands in the job (`ending`), so that the job ends whoever leads then, and however its VM does. A job is kept while
another depends on it, or while anything of it still holds units.
"""

from __future__ import annotations

from ..state import limits
from ..state.cluster import Cluster
from ..state.jobs import Job
from .ends import give_up

AT_ONCE = 1000  # in one turn
AGAIN_S = 60.0  # when to look again at a finished job that is still needed


def enforce(cluster: Cluster, now: float) -> None:
    """Look at the jobs whose time has come."""
    for job_id in cluster.books.timers.due(now, AT_ONCE):
        job = cluster.jobs.get(job_id)
        if job is None:
            continue
        if job.final:
            _retire(cluster, job, now)
        elif why := limits.expired(job, now, lost=lost(cluster, job)):
            give_up(cluster, job, why, now)
        elif limits.expired(job, now):  # its limit; its host's fate decides what becomes of it, or its deadline
            cluster.books.timers.set(job_id, limits.last_stop_s(job))
        else:
            cluster.enqueue(job)  # it was another time's, which is over: note the next


def lost(cluster: Cluster, job: Job) -> bool:
    """Whether it has a VM on a host that is lost: nobody can say that it runs."""
    allocation = cluster.allocations.get(job.allocation_id or "")
    return allocation is not None and allocation.host in cluster.unproven


def _retire(cluster: Cluster, job: Job, now: float) -> None:
    """Forget a finished job, here and in the store, once nobody needs it."""
    needed = bool(cluster.books.dependents.get(job.id)) or cluster.books.arrays.needs(job)
    needed = needed or cluster.books.gangs.needs(job)
    held = any(f"{job.id}.{a.number}" in cluster.allocations for a in job.attempts)
    unseen = bool(cluster.policy.reservation.hosts) and job.id in cluster.stale_jobs  # the reservation looks at it yet
    if needed or held or unseen or job.id in cluster.dirty.jobs:
        cluster.books.timers.set(job.id, now + AGAIN_S)
        return
    del cluster.jobs[job.id]
    cluster.stale_jobs.discard(job.id)
    cluster.books.off_record(job)
    cluster.dirty.retired.add(job.id)
