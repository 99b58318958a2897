"""Places that are kept: for a job that others were stopped for, or that waits for their limits of time to pass.

A claim names a host and no units: what counts is that the job fits there once those have left who are about to leave.
Another job may have what is free there as long as that stays true, or, where the claim is for a time, if it is gone by
then itself. So nothing idles for a claim that the claim does not need. A claim is given up once its job waits no more,
or its host can no longer take it, and whoever has one is placed before all others. A gang has a claim on each host that
it needs (each under the name of one of its members there), and loses all of them together.

Nothing of it is stored but what allocations say they stop for (`preempted_for`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

from ..fitting import own
from ..fitting.fit import Fit, closed, fit
from ..fitting.own import asked, case
from ..fitting.scratch import join, without
from ..gangs.arrange import seats, shuns
from ..gangs.ask import ask_of
from ..state import limits
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..state.reasons import Reason, Refusal
from ..state.tables import AllocationState, JobState
from ..work import Work

_LOOK = 3  # what a look at a claim costs, in tries (`core/work.py`)
_OVER = (AllocationState.ENDED, AllocationState.LOST)


def looking(cluster: Cluster, now: float) -> Work[list[str]]:
    """Give up the claims that mean nothing any more; returns who has one, in the order of the queue: of a gang one."""
    held, lost = cluster.books.claims, set()
    leads: dict[str, str] = {}
    for job_id in sorted(held):
        job, claim = cluster.jobs.get(job_id), held[job_id]
        host = cluster.hosts.get(claim.host)
        lead = cluster.books.gangs.lead(job) if job is not None else ""
        waits = job is not None and job.state is JobState.PENDING and lead and not cluster.pending.parked(lead)
        if not waits or job is None or host is None or not _holds(cluster, host, job, claim, now):
            lost.add(owner(cluster, job_id))
        leads[job_id] = lead
        yield _LOOK
    for job_id in [job_id for job_id in held if owner(cluster, job_id) in lost]:
        del held[job_id]
    return sorted({leads[job_id] for job_id in held}, key=lambda lead: turn(cluster, cluster.jobs[lead]))


def owner(cluster: Cluster, job_id: str) -> str:
    """Whose claim it is: a job's, or its gang's."""
    job = cluster.jobs.get(job_id)
    return job.terms.member.gang if job is not None and job.terms.member is not None else job_id


def turn(cluster: Cluster, job: Job) -> tuple[bool, int, int, float, int, str]:
    """Its place in the order of the queue."""
    lost = cluster.books.gangs.first(job)
    first = -job.restart_priority if lost else 0
    return not lost, first, -job.priority, cluster.share(job.lane), job.arrival, job.id


def _holds(cluster: Cluster, host: Host, job: Job, claim: Claim, now: float) -> bool:
    if claim.at_s and claim.at_s < now:
        return False  # somebody did not leave when he should have: look anew
    if closed(host) is not None:
        return False
    return _room(cluster, without(host, leaving(cluster, host, claim)), job, claim.count)


def _room(cluster: Cluster, host: Host, job: Job, count: int) -> bool:
    """Whether this copy of a host has room for so many like the job."""
    if job.terms.member is None:
        return takes(cluster, host, job) is not None
    ask = ask_of(cluster, [job])
    return not shuns(ask, host) and len(seats(ask, host, count)) >= count


def leaving(cluster: Cluster, host: Host, claim: Claim) -> list[Allocation]:
    """Who is about to leave the host, as the claim sees it."""
    mine = (cluster.allocations[a] for a in sorted(host.allocations))
    if claim.at_s:
        return [a for a in mine if a.state in _OVER or _gone_s(cluster, a) <= claim.at_s]
    return [a for a in mine if a.stop_reason or a.state in _OVER]


def gone_by(cluster: Cluster, allocation: Allocation) -> float:
    """When its VM is gone at the latest, by its limits of time; infinity: nobody knows."""
    job = cluster.jobs.get(allocation.job)
    known = limits.gone_by_s(job) if job is not None and job.allocation_id == allocation.id else None
    return inf if known is None else known


def _gone_s(cluster: Cluster, allocation: Allocation) -> float:
    """The same; who was asked to stop is gone a grace later."""
    at_s = gone_by(cluster, allocation)
    if allocation.stop_reason and allocation.job in cluster.jobs:
        grace_s = allocation.stop_grace_s or cluster.jobs[allocation.job].terms.stop_grace_s
        at_s = min(at_s, allocation.stop_requested_s + grace_s)
    return at_s


def ends(cluster: Cluster, host: Host, now: float) -> list[tuple[float, Allocation]]:
    """Who leaves the host when, the first first."""
    mine = [cluster.allocations[name] for name in host.allocations]
    found = [(max(at_s, now), a) for a in mine if (at_s := _gone_s(cluster, a)) < inf]
    return sorted(found, key=lambda end: (end[0], end[1].id))


def barred(cluster: Cluster, job: Job, names: Collection[str], now: float) -> set[str]:
    """Those of these hosts that fit the job, where it would take a place that is kept for another."""
    found, mine_id = set(), owner(cluster, job.id)
    for other_id, claim in sorted(cluster.books.claims.items()):
        if claim.host not in names or claim.host in found or owner(cluster, other_id) == mine_id:
            continue
        if _before(cluster, job, cluster.jobs[other_id], claim):
            continue  # of two with places on one host, the first waits for the other least of all
        if job.terms.time_limit_s and now + job.terms.time_limit_s + job.terms.stop_grace_s <= claim.at_s:
            continue  # it is gone by then
        if claim.at_s and turn(cluster, job) < turn(cluster, cluster.jobs[other_id]):
            continue  # nobody has made that place for the other, and this one comes before it
        host, other = cluster.hosts[claim.host], cluster.jobs[other_id]
        mine = takes(cluster, host, job)
        left = without(host, leaving(cluster, host, claim))
        if (
            job.terms.member is not None
            or mine is None
            or not _room(cluster, join(left, mine, job.id, job.request, job.labels), other, claim.count)
        ):
            found.add(claim.host)
    places = {claim.host for claim in cluster.books.claims.values() if claim.host in names}
    return found | _crowded(cluster, job, places - found)


def _before(cluster: Cluster, job: Job, other: Job, claim: Claim) -> bool:
    """Whether the job has a place on the claim's host too, and comes first: else both could wait for each other."""
    mine = cluster.books.claims.get(job.id)
    return mine is not None and mine.host == claim.host and turn(cluster, job) < turn(cluster, other)


def _crowded(cluster: Cluster, job: Job, names: Collection[str]) -> set[str]:
    """Hosts where several have places that were made for them, and the job fits beside each, but not beside all."""
    kept: dict[str, list[Job]] = {}
    for other_id, claim in sorted(cluster.books.claims.items()):
        other, mine = cluster.jobs[other_id], owner(cluster, other_id) == owner(cluster, job.id)
        if not mine and claim.host in names and not claim.at_s and not _before(cluster, job, other, claim):
            kept.setdefault(claim.host, []).append(other)
    return {name for name, others in kept.items() if len(others) > 1 and not _beside(cluster, job, name, others)}


def _beside(cluster: Cluster, job: Job, name: str, others: Iterable[Job]) -> bool:
    host = cluster.hosts[name]
    left = without(host, leaving(cluster, host, Claim(name)))
    for one in (job, *sorted(others, key=lambda other: turn(cluster, other))):
        mine = takes(cluster, host if one is job else left, one)
        if mine is None:
            return False
        left = join(left, mine, one.id, one.request, one.labels)
    return True


def told(cluster: Cluster, job: Job, names: Collection[str], now: float) -> dict[str, Refusal]:
    """Why those of these hosts that fit the job are none for it."""
    whose = {claim.host: owner(cluster, other) for other, claim in sorted(cluster.books.claims.items())}
    return {
        name: Refusal(Reason.KEPT_FOR_ANOTHER, f"its room is kept for job {whose[name]}")
        for name in sorted(barred(cluster, job, names, now))
    }


def in_words(cluster: Cluster, job: Job) -> str:
    """What is said of a place that is kept for the job; "": there is none."""
    if job.terms.member is not None:
        mine = [c for other, c in cluster.books.claims.items() if owner(cluster, other) == job.terms.member.gang]
        kept = ", ".join(f"{c.host} ({c.count})" if c.count > 1 else c.host for c in sorted(mine, key=lambda c: c.host))
        return f"; places are kept for its gang on {kept}" if mine else ""
    claim = cluster.books.claims.get(job.id)
    if claim is None or claim.host not in cluster.hosts:
        return ""
    stops = [cluster.allocations[a] for a in sorted(cluster.hosts[claim.host].allocations)]
    for_it = [a.job for a in stops if a.preempted_for == job.id]
    who = f", which {', '.join(for_it)} {'leaves' if len(for_it) == 1 else 'leave'} for it" if for_it else ""
    return f"; a place on {claim.host} is kept for it{who}"


def takes(cluster: Cluster, host: Host, job: Job) -> Fit | None:
    """What the job would take of the host, if it may go there; however many start there at the moment."""
    mine, found = case(cluster, job), fit(host, asked(cluster, job))
    if mine is not None and own.barred(host, mine) is not None:
        return None
    return found if isinstance(found, Fit) else None


def fits_without(cluster: Cluster, host: Host, job: Job, gone: Iterable[Allocation]) -> bool:
    """Whether the host could take the job if these had left, and their units were clean."""
    return takes(cluster, without(host, gone), job) is not None
