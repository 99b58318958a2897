"""Which pending job goes where: the only place that makes allocations.

Jobs are taken by priority, then fair share, then arrival; one that does not fit lets later ones pass. Among hosts: one
where this job has not failed to start (few tries, and what is wrong with a device stays wrong), then the least valuable
GPU that will do, then one NUMA node before several, then the host where the fewest free units would stay (so that whole
hosts stay free for large jobs), then the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import nsmallest
from operator import itemgetter
from typing import Any

from . import backfill, brake, claims, failovers, hold, order, upkeep
from .admission import TRIES, Admission, Choice
from .fit import Fit, fit
from .model import Allocation, Attempt, Cluster, Host, Job, Outcome, Request
from .own import Case, Own, case
from .queue import Lane
from .retry import crashed_on
from .tables import HostState, JobEvent

SHAPES_KEPT = 64  # rankings; the oldest goes

Rank = tuple[int, int, int, str]


@dataclass(slots=True)
class _Ranking:
    """The hosts that can take one shape, as of the version of each that was `seen`; -1: it was not to be placed on."""

    seen: dict[str, int] = field(default_factory=dict)
    fits: dict[str, tuple[Rank, Fit]] = field(default_factory=dict)
    turn: tuple[int, int] = (-1, 0)  # of the placer: which turn this is fresh for, and up to which of its placements

    def refresh(self, cluster: Cluster, request: Request, names: Iterable[str]) -> None:
        """Ask those of these hosts that have changed since the last time."""
        for name in names:
            host = cluster.hosts[name]
            version = host.version if _placeable(cluster, host) else -1
            if self.seen.get(name) == version:
                continue
            self.seen[name] = version
            self.fits.pop(name, None)
            found = _fit(cluster, host, request) if version >= 0 else None
            if found is not None:
                self.fits[name] = _rank(host, found), found


@dataclass(slots=True)
class Placer:
    """Remembers what hosts answered to a shape until they change, and which shapes fit nowhere until something does.

    Belongs to one cluster.
    """

    epoch: int = -1
    hopeless: set[Request] = field(default_factory=set)
    rankings: dict[Request, _Ranking] = field(default_factory=dict)
    admission: Admission = field(default_factory=Admission)
    own: Own = field(default_factory=Own)
    turn: int = 0
    barred: set[str] = field(default_factory=set)  # hosts with a place that is kept from the job asked about last
    taken: list[str] = field(default_factory=list)  # the host of each placement in this turn, which changes no other

    def place(self, cluster: Cluster, now: float, limit: int = 1000) -> int:
        """Place up to `limit` pending jobs; returns how many. The cluster then has their allocations, marked dirty."""
        brake.look(cluster, now)
        upkeep.look(cluster, now)
        order.release(cluster)
        cluster.pending.due(now)
        if not cluster.policy.reservation.hosts:  # nobody looks
            cluster.stale_hosts.clear()
            cluster.stale_jobs.clear()
        if self.epoch != cluster.capacity_epoch:
            self.epoch = cluster.capacity_epoch
            self.hopeless.clear()
        self._next_turn()
        kept = len(cluster.books.claims)
        first = [cluster.jobs[job_id] for job_id in claims.look(cluster, now)]
        if len(first) < kept:
            self.hopeless.clear()  # somebody else may have what was kept, or need it kept anew
        placed = sum(self._place(cluster, job, case(cluster, job), now) for job in first)
        full: set[tuple[Request, Lane]] = set()  # shapes for which a queue, or one of its users, has no room left
        for job_id, request in cluster.pending.offers(self.hopeless, cluster.share, full):
            job = cluster.jobs[job_id]
            if cluster.books.queues.refusal(job):
                full.add((request, job.lane))
                continue
            mine = case(cluster, job)
            if self.admission.out(cluster, job) or self.own.out(cluster, mine):
                continue
            if not self._place(cluster, job, mine, now):
                backfill.reserve(cluster, job, now)
                if self.barred:  # until a claim ends, which is told by nobody
                    full.update({(request, job.lane)} if mine is None else ())
                elif mine is not None:  # others of its shape may be luckier
                    self.own.hopeless.add(mine)
                    self.admission.own_affair(job)
                elif not self.admission.out(cluster, job):
                    self.hopeless.add(request)
                continue
            placed += 1
            if placed >= limit:
                break
        failovers.look(cluster, now)
        return placed

    def _place(self, cluster: Cluster, job: Job, mine: Case | None, now: float) -> bool:
        """Place one job, if any host may take it."""
        choice = None if cluster.books.queues.refusal(job) else self._choose(cluster, job, mine, now)
        if choice is None:
            return False
        _bind(cluster, job, choice.host, choice.fit, now)
        cluster.books.claims.pop(job.id, None)
        self.admission.placed(job, choice)
        self.taken.append(choice.host.name)
        return True

    def _next_turn(self) -> None:
        """Whatever a host may have gone through meanwhile: it is asked anew."""
        self.turn += 1
        self.taken.clear()

    def takers(self, cluster: Cluster, request: Request) -> list[str]:
        """The hosts that have room for the shape now, the best first."""
        self._next_turn()
        return [rank[3] for rank, _ in sorted(self._ranking(cluster, request).fits.values(), key=itemgetter(0))]

    def _choose(self, cluster: Cluster, job: Job, mine: Case | None, now: float) -> Choice | None:
        """The best host for the job that may take it, with what it would take there."""
        fits = self.own.left(cluster, mine, self._ranking(cluster, mine[0] if mine else job.request).fits)
        self.barred = claims.barred(cluster, job, fits, now)
        if self.barred:
            fits = {name: found for name, found in fits.items() if name not in self.barred}
        if not fits:
            return None
        shun, want = _hosts_by_history(job)
        key: Callable[[tuple[Rank, Fit]], Any] = itemgetter(0)
        if (shun | want) & fits.keys():
            key = lambda r: (r[0][3] in shun, r[0][3] not in want, r[0])  # noqa: E731
        if cluster.policy.reservation.hosts:
            best = [(rank[3], found) for rank, found in nsmallest(TRIES, fits.values(), key=key)]
            return self.admission.choose(cluster, job, best, fits)
        rank, found = min(fits.values(), key=key)
        return Choice(cluster.hosts[rank[3]], found)

    def _ranking(self, cluster: Cluster, request: Request) -> _Ranking:
        ranking = self.rankings.get(request)
        if ranking is None:
            if len(self.rankings) >= SHAPES_KEPT:
                del self.rankings[next(iter(self.rankings))]
            ranking = self.rankings[request] = _Ranking()
        turn, seen = ranking.turn
        # With a thousand jobs in a turn, all hosts are asked once, and then only those that took one.
        ranking.refresh(cluster, request, self.taken[seen:] if turn == self.turn else cluster.hosts)
        ranking.turn = self.turn, len(self.taken)
        return ranking


def _hosts_by_history(job: Job) -> tuple[set[str], set[str]]:
    """Hosts that are the last choice for this job, and those that are the first.

    A crash of the VM alone is tried once more where it was, with what is there already, and then elsewhere.
    """
    shun = {a.host for a in job.attempts if a.outcome is Outcome.START_FAILED}
    crashed = crashed_on(job)
    if len(crashed) > 1:
        shun.update(crashed)
    return shun, set(crashed) - shun


def _placeable(cluster: Cluster, host: Host) -> bool:
    """Whether it is ready and its record committed. An allocation on record before the session that it is of would look
    to the next leader like one of the session before, and be given up as lost with it while its VM runs.
    """
    return host.state is HostState.READY and host.name not in cluster.dirty.hosts


def _fit(cluster: Cluster, host: Host, request: Request) -> Fit | None:
    if request.gpus > len(host.units.keys() - host.held.keys()):
        return None  # a full host: told at a glance
    found = fit(host, request, cluster.policy.starts_at_once)
    return found if isinstance(found, Fit) else None


def _rank(host: Host, found: Fit) -> Rank:
    return found.gpu_memory_mib, len(found.nodes), found.leftover, host.name


def _bind(cluster: Cluster, job: Job, host: Host, found: Fit, now: float) -> None:
    job.attempt_count += 1
    job.not_before_s = 0.0
    allocation = Allocation(
        id=f"{job.id}.{job.attempt_count}",
        job=job.id,
        attempt=job.attempt_count,
        host=host.name,
        session=host.session,
        units=found.units,
        nodes=found.nodes,
        cores=found.cores,
        memory_mib=found.memory_mib,
        created_s=now,
        hugepage_size_kib=job.request.hugepage_size_kib,
        unit_identities=tuple(host.units[unit].identity for unit in found.units),
        session_nonce=host.fact.nonce if host.fact is not None else "",
        labels=job.labels,
        apart=job.request.rules.apart if job.request.rules is not None else (),
        whole_host=job.request.rules is not None and job.request.rules.whole_host,
    )
    job.attempts.append(Attempt(job.attempt_count, host.name, found.units, now))
    cluster.reserve(allocation)
    cluster.dirty.allocations.add(allocation.id)
    cluster.dirty.created.add(allocation.id)
    cluster.change_job(job, JobEvent.PLACED, now, f"placed on {host.name}")


def retract(cluster: Cluster, allocation: Allocation, now: float, reason: str) -> None:
    """Undo a placement that the store certainly does not have: the attempt never was."""
    job = cluster.jobs[allocation.job]
    cluster.release(allocation)
    cluster.dirty.allocations.discard(allocation.id)
    cluster.dirty.created.discard(allocation.id)
    job.attempts.pop()
    job.attempt_count -= 1
    hold.apply(job)
    cluster.change_job(job, JobEvent.RETRACTED, now, reason)
