"""What becomes of a gang when one of its members is stopped, lost or at an end: the others follow.

Who ended, other than well, ends the others; a cancel of one is a cancel of all. Where a gang restarts as a whole, the
others are asked to stop, as a drain asks, as soon as one has lost its VM or is asked to stop itself: they go back to
the queue at no cost, and `gangs.py` lets none of them start before all their VMs are dead.

It only asks. Everything is found anew from jobs and allocations, so another leader goes on with it. It must not stop
for a restart what could not start again: nothing while the mass failure brake is on, or fencing is disarmed.
"""

from __future__ import annotations

from ..queueing.ends import cancel, give_up
from ..state import limits
from ..state.cluster import Cluster, Dirty
from ..state.jobs import Job
from ..state.tables import AllocationState, JobState
from ..state.terms import OnLoss

_OVER = (AllocationState.ENDED, AllocationState.LOST)
AGAIN = "its gang starts again: "


def look(cluster: Cluster, now: float) -> int:
    """Bring all gangs of which something has changed up to date; returns how many VMs were asked to stop.

    Call it before anything is placed, and after all that asks VMs to stop.
    """
    gangs = cluster.books.gangs
    names, gangs.touched = sorted(gangs.touched), set()
    asked = 0
    for name in names:
        _end(cluster, name, now)
        asked += _restart(cluster, name, now)
    return asked


def as_one(cluster: Cluster, dirty: Dirty) -> dict[str, str]:
    """The gang of each job whose new allocation must be written in one transaction with those of other members."""
    found = {}
    for allocation_id in dirty.created:
        allocation = cluster.allocations.get(allocation_id)
        job = cluster.jobs.get(allocation.job) if allocation is not None else None
        if job is not None and job.terms.member is not None and job.allocation_id == allocation_id:
            found[job.id] = job.terms.member.gang
    return found


def _end(cluster: Cluster, name: str, now: float) -> None:
    """One that is at an end, or about to be, other than well, ends the others."""
    members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.unfinished(name)]
    over = [cluster.jobs[job_id] for job_id in cluster.books.gangs.doomed(name)]
    if not members:
        return
    cancelled = [job for job in (*over, *members) if job.cancel_reason is not None or job.state is JobState.CANCELLED]
    failed = [job for job in (*over, *members) if _ends(cluster, job, now) or job.state is JobState.FAILED]
    for job in members if cancelled or failed else ():
        if cancelled:
            cancel(cluster, job, _told(cancelled[0], cancelled[0].cancel_reason or cancelled[0].message), now)
        else:
            give_up(cluster, job, _told(failed[0], failed[0].ending or failed[0].message), now)


def _ends(cluster: Cluster, job: Job, now: float) -> bool:
    """Whether it is certain to end: a time limit that its agent has not answered may be that of a VM which is dead."""
    allocation = cluster.allocations.get(job.allocation_id or "")
    return bool(job.ending) and (allocation is None or not limits.unheard(job, allocation, now))


def _told(job: Job, why: str) -> str:
    """Why a member's end is the gang's; told on by one that was ended for it, it stays the same."""
    return why if why.startswith("its gang ends: ") else f"its gang ends: {job.id}: {why}"


def _restart(cluster: Cluster, name: str, now: float) -> int:
    """One that has lost its VM, or is asked to stop, stops the others, if they are to start again together."""
    if cluster.brake is not None or cluster.intent.disarmed:
        cluster.books.gangs.touched.add(name)  # until that is over
        return 0
    members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.unfinished(name)]
    if not members or (member := members[0].terms.member) is None or member.on_loss is not OnLoss.RESTART_ALL:
        return 0
    live = [(job, a) for job in members if (a := cluster.allocations.get(job.allocation_id or "")) is not None]
    gone = [job for job in members if job.state is JobState.PENDING] if live else []
    stops = [(job, a) for job, a in live if a.stop_reason and not job.ending]
    if not gone and not stops:
        return 0
    whys = [(job.id, job.message) for job in gone] + [(job.id, a.stop_reason) for job, a in stops]
    first, why = next((found for found in whys if not found[1].startswith(AGAIN)), whys[0])
    left = [a for _, a in live if not a.stop_reason and a.state not in _OVER]
    for allocation in left:
        allocation.stop_reason = why if why.startswith(AGAIN) else f"{AGAIN}{first}: {why}"
        allocation.stop_requested_s = now
        cluster.note_stop(allocation)
    return len(left)
