"""Who may be asked to stop for a job, or a gang, that waits: by priority, and for what queues have borrowed.

Victims are those of a lower priority (all, or those that allow it, as the site says), and, for a job within what its
queue is guaranteed, those of queues that use more than they are guaranteed. It asks nobody.

It must never name somebody who could take the place back by the same rules: else both would stop each other for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..state.amounts import NOTHING, Amounts
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..state.tables import AllocationState
from .claims import owner
from .queues import asked_for

_LIVE = (AllocationState.BOUND, AllocationState.PREPARING, AllocationState.RUNNING)

Victims = tuple[Allocation, ...]
Eligible = Callable[[Job], bool]


def may_have_victims(cluster: Cluster, job: Job, count: int = 1) -> bool:
    """At a glance; `count`: it is so many of a gang, all alike."""
    lower = cluster.policy.preemption.lower_priority or bool(cluster.books.preemptible)
    live = cluster.books.live
    return (lower and bool(live) and min(live) < job.priority) or entitled(cluster, job, count)


def entitled(cluster: Cluster, job: Job, count: int = 1) -> bool:
    """Whether its queue would still be within what it is guaranteed."""
    queues, asked = cluster.books.queues, asked_for(job).times(count)
    queue = queues.known.get(job.terms.queue)
    if queue is None or not any(part and sure for part, sure in zip(asked, queue.guaranteed, strict=True)):
        return False
    used, mine = queues.used.get(job.terms.queue, NOTHING).plus(asked), owner(cluster, job.id)
    for other_id, claim in cluster.books.claims.items():  # they will have what others are leaving for them
        other = cluster.jobs.get(other_id)
        if other is None or claim.at_s or other.terms.queue != job.terms.queue or owner(cluster, other_id) == mine:
            continue
        used = used.plus(asked_for(other).times(claim.count))
    return not used.over_given(queue.guaranteed)


def lower(cluster: Cluster, job: Job, victim: Job) -> bool:
    """Whether the victim's priority lets it stop for the job. What another queue is guaranteed is safe from that: else
    its job would take the place back, and so on for ever.
    """
    if victim.priority >= job.priority or not (cluster.policy.preemption.lower_priority or victim.terms.preemptible):
        return False
    if _would_be_stopped_by(cluster, job, victim):
        return False
    used = cluster.books.queues.used.get(victim.terms.queue, NOTHING)
    return victim.terms.queue == job.terms.queue or lent(cluster, victim.terms.queue, used)


def _would_be_stopped_by(cluster: Cluster, job: Job, victim: Job) -> bool:
    """Whether the victim could take its place back as room that is kept for restarts (lent.py), and so on for ever."""
    return bool(cluster.policy.reservation.hosts) and job.terms.preemptible and not victim.terms.preemptible


def borrows(cluster: Cluster, job: Job, victim: Job, count: int = 1) -> bool:
    """Whether the victim's queue uses more than it is guaranteed, and the job's would not."""
    if victim.terms.queue == job.terms.queue or not entitled(cluster, job, count):
        return False
    if _would_be_stopped_by(cluster, job, victim):
        return False
    return lent(cluster, victim.terms.queue, cluster.books.queues.used.get(victim.terms.queue, NOTHING))


def may_stop(cluster: Cluster, job: Job, victim: Job, count: int = 1) -> bool:
    """Whether the victim may be asked to stop for the job at all, by either rule."""
    return lower(cluster, job, victim) or borrows(cluster, job, victim, count)


def lent(cluster: Cluster, name: str, used: Amounts) -> bool:
    """Whether a queue that uses so much borrows; without a guarantee all that it has is borrowed."""
    queue = cluster.books.queues.known.get(name)
    return queue is None or not any(queue.guaranteed) or used.over_given(queue.guaranteed)


def guarantees(cluster: Cluster, job: Job, victim: Allocation) -> bool:
    """Whether only so much may be taken of the victim's queue, for this job, that whom it is taken from counts."""
    name = cluster.jobs[victim.job].terms.queue
    queue = cluster.books.queues.known.get(name)
    return name != job.terms.queue and queue is not None and any(queue.guaranteed)


def on_host(cluster: Cluster, host: Host, eligible: Eligible) -> list[Allocation]:
    """Who may be stopped there, the youngest first."""
    mine = (cluster.allocations[a] for a in host.allocations)
    live = (a for a in mine if a.state in _LIVE and not a.stop_reason and a.job in cluster.jobs)
    found = [a for a in live if cluster.jobs[a.job].allocation_id == a.id and eligible(cluster.jobs[a.job])]
    return sorted(found, key=lambda a: (-a.created_s, a.id))


def loans_only(cluster: Cluster, job: Job, victims: Iterable[Allocation]) -> bool:
    """Whether each that is taken for what its queue borrows is still borrowed when its turn comes."""
    return len(within_loans(cluster, job, victims := list(victims))) == len(victims)


def within_loans(cluster: Cluster, job: Job, victims: Iterable[Allocation]) -> list[Allocation]:
    """Of these, in their order, those by which no other queue loses more than it has borrowed; nor by part of them."""
    used, found = dict(cluster.books.queues.used), []
    for allocation in victims:
        victim = cluster.jobs[allocation.job]
        queue = victim.terms.queue
        if queue != job.terms.queue and not lent(cluster, queue, used.get(queue, NOTHING)):
            continue
        used[queue] = used.get(queue, NOTHING).minus(asked_for(victim))
        found.append(allocation)
    return found


def ages(victims: Iterable[Allocation]) -> tuple[float, ...]:
    """By what sets of one size are compared: the less, the younger is the oldest of them, then the next, and so on."""
    return tuple(sorted((-a.created_s for a in victims), reverse=True))
