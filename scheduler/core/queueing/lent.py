"""Room that is kept for restarts, lent meanwhile to preemptible jobs, which leave it at once when it is needed.

To the reservation a preemptible job is not there: no room is kept for its own restart, and what it has counts as free.
So it may start where others may not. When something that ran waits for its restart, and its room is lent, those who
have it are asked to stop, whatever the priorities, with no more than GRACE_S; the place is kept for it (`claims.py`).

It must stop nobody who is not preemptible, nobody whose leaving is not needed or would not do, and nothing while the
mass failure brake is on. It only asks, and what was asked stands in the allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..fitting.scratch import without
from ..reservation.room import Take, standing
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..state.tables import AllocationState
from .claims import leaving, owner, turn

GRACE_S = 30  # of what was lent; a job's own grace, if that is shorter
MOST = 64  # restarts that are looked at in one turn
_LIVE = (AllocationState.BOUND, AllocationState.PREPARING, AllocationState.RUNNING)


class Promises(Protocol):
    """What the reservation says."""

    def owed(self) -> list[Job]:
        """What ran and waits for its restart."""
        ...

    def meant_for(self, job: Job) -> list[Take]:
        """Where all that was lost with the job has room, be it lent."""
        ...

    def anywhere(self, job: Job, avoid: set[str]) -> Take | None:
        """Room for the job alone, be it lent, on none of these hosts."""
        ...


def look(cluster: Cluster, known: Callable[[], Promises], now: float) -> int:
    """Ask for what is needed of what is lent; returns how many were asked. Call it once placement has placed."""
    if cluster.brake is not None or not cluster.books.preemptible:
        return 0
    spoken_for = {job_id for job_id, claim in cluster.books.claims.items() if not claim.at_s}
    avoid = {claim.host for claim in cluster.books.claims.values()}
    used: list[Take] = []
    wanted: list[tuple[Job, Take]] = []
    short: set[str] = set()  # gangs of which not all have room
    promises = known()
    for job in _due(cluster, promises.owed(), now):
        take = _next(promises.meant_for(job), job, cluster.books.claims.get(job.id), used)
        if take is not None:
            used.append(take)
        if job.id in spoken_for:
            continue
        take = take or promises.anywhere(job, avoid)
        if take is not None:
            avoid.add(take.host)
            wanted.append((job, take))
        elif job.terms.member is not None:
            short.add(owner(cluster, job.id))
    return sum(_call_in(cluster, job, take, now) for job, take in wanted if owner(cluster, job.id) not in short)


def _due(cluster: Cluster, owed: list[Job], now: float) -> list[Job]:
    """Those that could start now, in the order of the queue."""
    leads = ((job, cluster.books.gangs.lead(job)) for job in owed if job.not_before_s <= now)
    waits = [job for job, lead in leads if lead and not cluster.pending.parked(lead)]
    may = [job for job in waits if not cluster.books.queues.refusal(job)]
    return sorted(may, key=lambda job: turn(cluster, job))[:MOST]


def _next(meant: list[Take], job: Job, claim: Claim | None, used: list[Take]) -> Take | None:
    """Its own part of what is meant for all; if it has a place already, the one there."""
    mine = [take for take in meant if take.request == job.request and take not in used]
    if claim is not None and not claim.at_s:
        mine.sort(key=lambda take: take.host != claim.host)
    return mine[0] if mine else None


def _call_in(cluster: Cluster, job: Job, take: Take, now: float) -> int:
    """Ask those to stop who are in the way; nobody, if the place is free, or cannot be had so."""
    host = cluster.hosts[take.host]
    victims = in_the_way(cluster, host, take)
    if victims is None:
        return 0
    cluster.books.claims[job.id] = Claim(host.name)
    for victim in victims:
        grace_s = cluster.jobs[victim.job].terms.stop_grace_s
        victim.stop_reason = f"its room is kept for restarts, and {job.id} restarts"
        victim.stop_requested_s, victim.preempted_for = now, job.id
        victim.stop_grace_s = GRACE_S if grace_s > GRACE_S else 0
        cluster.note_stop(victim)
    return len(victims)


def in_the_way(cluster: Cluster, host: Host, take: Take) -> list[Allocation] | None:
    """Who must be asked to stop so that this can be had; None: it can be had now, or not so.

    First whoever has units or cores of it; for want of memory, others, the youngest first.
    """
    if standing(host, [take]):
        return None
    gone = leaving(cluster, host, Claim(host.name))
    lent = [a for a in (cluster.allocations[name] for name in host.allocations) if _lent(cluster, a)]
    lent.sort(key=lambda a: (not _overlaps(a, take), -a.created_s, a.id))
    victims = [a for a in lent if _overlaps(a, take)]
    for more in (*lent[len(victims) :], None):
        if standing(without(host, [*gone, *victims]), [take]):
            return victims
        if more is not None:
            victims.append(more)
    return None


def _lent(cluster: Cluster, allocation: Allocation) -> bool:
    job = cluster.jobs.get(allocation.job)
    live = allocation.state in _LIVE and not allocation.stop_reason
    return live and job is not None and job.terms.preemptible and job.allocation_id == allocation.id


def _overlaps(allocation: Allocation, take: Take) -> bool:
    return not set(allocation.units).isdisjoint(take.fit.units) or not set(allocation.cores).isdisjoint(take.fit.cores)
