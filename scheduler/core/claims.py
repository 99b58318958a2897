"""Places that are kept: for a job that others were stopped for, or that waits for their limits of time to pass.

A claim names a host and no units: what counts is that the job fits there once those have left who are about to leave.
Another job may have what is free there as long as that stays true, or, where the claim is for a time, if it is gone by
then itself. So nothing idles for a claim that the claim does not need. A claim is given up once its job waits no more,
or its host can no longer take it, and whoever has one is placed before all others.

Nothing of it is stored but what allocations say they stop for (`preempted_for`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import inf

from . import limits, own
from .books import Claim
from .facts import UnitReport, UnitState
from .fit import Fit, closed, fit
from .model import Allocation, Cluster, Host, Job, Node
from .own import asked, case
from .reasons import Reason, Refusal
from .rules import Labels, Rules
from .tables import AllocationState, JobState

_OVER = (AllocationState.ENDED, AllocationState.LOST)


@dataclass(frozen=True, slots=True)
class _Guest:
    """A job that might be on a host, as its neighbours mind it."""

    id: str
    labels: Labels
    apart: Labels
    whole_host: bool


def look(cluster: Cluster, now: float) -> list[str]:
    """Give up the claims that mean nothing any more; returns who has one, in the order of the queue."""
    for job_id in sorted(cluster.books.claims):
        job, claim = cluster.jobs.get(job_id), cluster.books.claims[job_id]
        host = cluster.hosts.get(claim.host)
        waits = job is not None and job.state is JobState.PENDING and not cluster.pending.parked(job_id)
        if not waits or job is None or host is None or not _holds(cluster, host, job, claim, now):
            del cluster.books.claims[job_id]
    return sorted(cluster.books.claims, key=lambda job_id: turn(cluster, cluster.jobs[job_id]))


def turn(cluster: Cluster, job: Job) -> tuple[bool, int, int, float, int, str]:
    """Its place in the order of the queue."""
    first = -job.restart_priority if job.lost else 0
    return not job.lost, first, -job.priority, cluster.share(job.lane), job.arrival, job.id


def _holds(cluster: Cluster, host: Host, job: Job, claim: Claim, now: float) -> bool:
    if claim.at_s and claim.at_s < now:
        return False  # somebody did not leave when he should have: look anew
    return closed(host) is None and fits_without(cluster, host, job, leaving(cluster, host, claim))


def leaving(cluster: Cluster, host: Host, claim: Claim) -> list[Allocation]:
    """Who is about to leave the host, as the claim sees it."""
    mine = (cluster.allocations[a] for a in sorted(host.allocations))
    return [a for a in mine if a.stop_reason or a.state in _OVER or gone_by(cluster, a) <= claim.at_s]


def gone_by(cluster: Cluster, allocation: Allocation) -> float:
    """When its VM is gone at the latest, by its limits of time; infinity: nobody knows."""
    job = cluster.jobs.get(allocation.job)
    known = limits.gone_by_s(job) if job is not None and job.allocation_id == allocation.id else None
    return inf if known is None else known


def barred(cluster: Cluster, job: Job, names: Collection[str], now: float) -> set[str]:
    """Those of these hosts that fit the job, where it would take a place that is kept for another."""
    found = set()
    for other_id, claim in sorted(cluster.books.claims.items()):
        if other_id == job.id or claim.host not in names or claim.host in found:
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
        if mine is None or takes(cluster, _with(left, mine, job), other) is None:
            found.add(claim.host)
    return found | _crowded(cluster, job, {*names} - found)


def _before(cluster: Cluster, job: Job, other: Job, claim: Claim) -> bool:
    """Whether the job has a place on the claim's host too, and comes first: else both could wait for each other."""
    mine = cluster.books.claims.get(job.id)
    return mine is not None and mine.host == claim.host and turn(cluster, job) < turn(cluster, other)


def _crowded(cluster: Cluster, job: Job, names: Collection[str]) -> set[str]:
    """Hosts where several have places that were made for them, and the job fits beside each, but not beside all."""
    kept: dict[str, list[Job]] = {}
    for other_id, claim in sorted(cluster.books.claims.items()):
        other = cluster.jobs[other_id]
        if other_id != job.id and claim.host in names and not claim.at_s and not _before(cluster, job, other, claim):
            kept.setdefault(claim.host, []).append(other)
    return {name for name, others in kept.items() if len(others) > 1 and not _beside(cluster, job, name, others)}


def _beside(cluster: Cluster, job: Job, name: str, others: Iterable[Job]) -> bool:
    host = cluster.hosts[name]
    left = without(host, leaving(cluster, host, Claim(name)))
    for one in (job, *sorted(others, key=lambda other: turn(cluster, other))):
        mine = takes(cluster, host if one is job else left, one)
        if mine is None:
            return False
        left = _with(left, mine, one)
    return True


def told(cluster: Cluster, job: Job, names: Collection[str], now: float) -> dict[str, Refusal]:
    """Why those of these hosts that fit the job are none for it."""
    whose = {claim.host: other for other, claim in sorted(cluster.books.claims.items()) if other != job.id}
    return {
        name: Refusal(Reason.KEPT_FOR_ANOTHER, f"its room is kept for job {whose[name]}")
        for name in sorted(barred(cluster, job, names, now))
    }


def in_words(cluster: Cluster, job: Job) -> str:
    """What is said of a place that is kept for the job; "": there is none."""
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


def without(host: Host, gone: Iterable[Allocation]) -> Host:
    """A copy of the host, as far as `fit` looks at it, on which these have left and their units are clean."""
    nodes = {n.id: Node(n.id, n.cores, n.memory_mib, set(n.free_cores), n.free_memory_mib) for n in host.nodes.values()}
    for node in nodes.values():
        node.hugepages = {size: replace(pool) for size, pool in host.nodes[node.id].hugepages.items()}
    held, reports, company, there = dict(host.held), dict(host.reports), host.company.copy(), set(host.allocations)
    for allocation in gone:
        company.leave(allocation)
        there.discard(allocation.id)
        for unit in allocation.units:
            if held.get(unit) != allocation.id:
                continue
            del held[unit]
            if unit not in reports or reports[unit].state is not UnitState.QUARANTINED:
                reports[unit] = UnitReport(UnitState.FREE, host.session, allocation.id)
        for node_id, memory_mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            if (found := nodes.get(node_id)) is not None:
                _change(found, allocation.hugepage_size_kib, -memory_mib)
                found.free_cores |= set(allocation.cores).intersection(found.cores)
    return replace(host, nodes=nodes, held=held, reports=reports, company=company, allocations=there)


def _with(host: Host, found: Fit, job: Job) -> Host:
    """The copy, once it has given this to the job."""
    rules = job.request.rules or Rules()
    host.company.join(_Guest(job.id, job.labels, rules.apart, rules.whole_host))
    host.allocations.add(job.id)
    for unit in found.units:
        host.held[unit] = "-"
    for node_id, memory_mib in zip(found.nodes, found.memory_mib, strict=True):
        node = host.nodes[node_id]
        _change(node, 0, memory_mib)
        node.free_cores -= set(found.cores)
    return host


def _change(node: Node, hugepage_size_kib: int, memory_mib: int) -> None:
    if not hugepage_size_kib:
        node.free_memory_mib -= memory_mib
    elif (pool := node.hugepages.get(hugepage_size_kib)) is not None:
        pool.lend(memory_mib, seen=False)
