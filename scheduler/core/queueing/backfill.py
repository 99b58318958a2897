"""Backfill with a reservation: the first job that fits nowhere has the place where it can start soonest kept for it.

EASY backfill (Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995): later jobs may pass as long as they do not delay
the first one. When a place will be free is known from declared limits of time: a VM is gone a grace after its limit. So
only where all that must leave have limits can there be a reservation; others may well end sooner than nobody knows.
With more `reservations` the first so many jobs have one each, on different hosts, which delays fewer of them.

Conservative backfill (Mu'alem and Feitelson, "Utilization, Predictability, Workloads, and User Runtime Estimates in
Scheduling the IBM SP2 with Backfilling", IEEE TPDS 12(6), 2001) gives one to all that wait, so that nobody delays
anybody who comes before. Here: to the first MOST_KEPT of whom it is known when they could start, each on hosts of its
own. No more than NEW are kept anew in a turn; whoever comes after those waits for the next one.

It keeps places (`claims.py`), and starts and stops nothing. To look for one among 10,000 hosts takes milliseconds, at
first a large part of a second: so it is done with pauses, in which nothing may change (`core/work.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..fitting.ranking import free_units
from ..gangs import backfill as gang_backfill
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..work import Work
from .claims import ends, fits_without, owner, turn
from .leavers import Leavers

NEW, LOOKS = 8, 16  # places that are kept anew in a turn, and looked for, if all that wait are to have one
LATER_S = 1.0  # when to go on, if there are more
HOSTS = 256  # that are looked at for one job, those first that may have GPUs enough the soonest


@dataclass(slots=True)
class Round:
    """One turn's: how many places may still be kept anew, and looked for; and whether others are to wait for the next.

    They wait only where places were found, of which there are so many at most: so nobody waits for ever.
    """

    leavers: Leavers
    left: int = NEW
    looks: int = LOOKS
    over: bool = False


def reserving(cluster: Cluster, job: Job, now: float, turns: Round) -> Work[bool]:
    """The job, or its gang, fits nowhere now: keep it a place, if it is among the first. Returns whether it has one."""
    allowed, claims = cluster.policy.backfill.kept, cluster.books.claims
    mine, owners = owner(cluster, job.id), {owner(cluster, other): other for other in sorted(claims)}
    if not allowed or not cluster.books.limited or mine in owners:
        return mine in owners
    timed = [other for other in owners.values() if claims[other].at_s]
    waiting = sorted(timed, key=lambda other: turn(cluster, cluster.jobs[other]))
    ahead = [other for other in waiting if turn(cluster, cluster.jobs[other]) < turn(cluster, job)]
    if len(ahead) >= allowed:
        return False
    if cluster.policy.backfill.conservative:
        turns.over = turns.left <= 0
        if turns.over or turns.looks <= 0:
            return False
        turns.looks -= 1
    over = {owner(cluster, other) for other in waiting[allowed - 1 :]}  # it comes before these
    for other in [other for other in claims if owner(cluster, other) in over]:
        del claims[other]
    if job.terms.member is not None:
        claims.update((yield from gang_backfill.places(cluster, job, now, turns.leavers)))
    elif (found := (yield from estimating(cluster, job, now, turns.leavers))) is not None:
        claims[job.id] = Claim(found[1], found[0])
    kept = mine in {owner(cluster, other) for other in claims}
    turns.left -= kept
    return kept


def estimating(cluster: Cluster, job: Job, now: float, leavers: Leavers) -> Work[tuple[float, str] | None]:
    """When a host can take the job at the latest, by declared limits, and which; None: nobody knows."""
    if job.terms.member is not None:
        return (yield from gang_backfill.estimating(cluster, job, now, leavers))
    taken = {claim.host for other, claim in cluster.books.claims.items() if other != job.id}
    best: tuple[float, str] | None = None
    for at_s, name in (yield from leavers.soonest(cluster, job, now, HOSTS, taken)):
        if best is not None and at_s >= best[0]:
            break
        host = cluster.hosts[name]
        found_s = free_s(cluster, host, job, now)
        if found_s is not None and (best is None or (found_s, name) < best):
            best = found_s, name
        yield 1 + len(host.allocations)
    return best


def free_s(cluster: Cluster, host: Host, job: Job, now: float) -> float | None:
    """When it can take the job; None: not when all have left that are known to leave."""
    leave = ends(cluster, host, now)
    gone: list[Allocation] = []
    if not fits_without(cluster, host, job, [allocation for _, allocation in leave]):
        return None
    free, gpus = free_units(host), job.request.gpus  # with too few GPUs nothing need be tried
    if free >= gpus and fits_without(cluster, host, job, ()):
        return now
    for at_s, allocation in leave:
        gone.append(allocation)
        free += len(allocation.units)
        if free >= gpus and fits_without(cluster, host, job, gone):
            return at_s
    return None
