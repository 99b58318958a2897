"""Which pending job goes where: the only place that makes allocations.

Jobs are taken by priority, then fair share, then arrival; one that does not fit lets later ones pass. Among hosts: one
where this job has not failed to start (few tries, and what is wrong with a device stays wrong), then, once there are
jobs enough on record to tell what is to come, one NUMA node before several, and where the least is lost for them
(`valuation.py`); then the least valuable GPU that will do, then one NUMA node before several, then the host where the
fewest free units would stay (so that whole hosts stay free for large jobs), then the name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter

from .failover import brake, failovers
from .failover.retry import crashed_on
from .fitting import own
from .fitting.alike import Alike
from .fitting.fit import Fit
from .fitting.own import Case, Own, case
from .fitting.ranking import FreeUnits, Rank, Ranking
from .fitting.valuation import Valuation
from .gangs import make_room
from .gangs import place as gang_place
from .gangs.refusals import Refusals
from .queueing import backfill, claims, hold, lent, order, upkeep
from .queueing.leavers import Leavers
from .queueing.queue import Lane
from .reservation.admission import TRIES, Admission, Choice
from .state.cluster import Cluster
from .state.hosts import Allocation, Host
from .state.jobs import Attempt, Job, Outcome, Party, Request
from .state.tables import JobEvent
from .work import Work, done

_ASKED = 10  # hosts that are asked in the time of a try
ANSWERS_KEPT = 640_000  # of hosts to shapes; the ranking that was not asked for the longest goes


@dataclass(slots=True)
class Placer:
    """Remembers what hosts answered to a shape until they change, and which shapes fit nowhere until something does.

    Belongs to one cluster.
    """

    epoch: int = -1
    hopeless: set[Request] = field(default_factory=set)
    rankings: dict[Request, Ranking] = field(default_factory=dict)  # the last that was asked is last
    admission: Admission = field(default_factory=Admission)
    own: Own = field(default_factory=Own)
    refusals: Refusals = field(default_factory=Refusals)  # of gangs
    free: FreeUnits = field(default_factory=FreeUnits)
    values: Valuation = field(default_factory=Valuation)
    alike: Alike = field(default_factory=Alike)
    leavers: Leavers = field(default_factory=Leavers)
    due_s: float | None = None  # when to look for places for more of those that wait
    barred: set[str] = field(default_factory=set)  # hosts with a place that is kept from the job asked about last

    def begin(self, cluster: Cluster) -> Iterator[None]:
        """What the first turn would do for all hosts at once, one at a time; nothing may change meanwhile."""
        yield from self.values.begin(cluster)
        yield from self.free.begin(cluster)

    def place(self, cluster: Cluster, now: float, limit: int = 1000) -> int:
        """Place up to `limit` pending jobs; returns how many. The cluster then has their allocations, marked dirty."""
        return done(self.placing(cluster, now, limit))

    def placing(self, cluster: Cluster, now: float, limit: int = 1000) -> Work[int]:
        """The same, with pauses in which nothing may change the cluster: wherever all hosts are looked at."""
        brake.look(cluster, now)
        upkeep.look(cluster, now)
        order.release(cluster)
        cluster.pending.due(now)
        for number, _ in enumerate(self.values.begin(cluster)):
            yield int(number % _ASKED == 0)
        if not cluster.policy.reservation.hosts:  # nobody looks
            cluster.stale_hosts.clear()
            cluster.stale_jobs.clear()
        if self.epoch < 0:
            yield from make_room.mending(cluster)
        if self.epoch != cluster.capacity_epoch:
            self.epoch = cluster.capacity_epoch
            self.hopeless.clear()
        self.admission.begin()
        kept = len(cluster.books.claims)
        first = [cluster.jobs[job_id] for job_id in (yield from claims.looking(cluster, now))]
        if len(first) < kept:
            self.hopeless.clear()  # somebody else may have what was kept, or need it kept anew
        placed = sum(self._try(cluster, job, case(cluster, job), now) for job in first)
        turns, self.due_s = backfill.Round(self.leavers), None
        full: set[tuple[Request, Lane]] = set()  # shapes for which a queue, or one of its users, has no room left
        for job_id, request in cluster.pending.offers(self.hopeless, cluster.share, full):
            job = cluster.jobs[job_id]
            if cluster.books.queues.refusal(job, request.count if isinstance(request, Party) else 1):
                full.add((request, job.lane))
                continue
            mine = case(cluster, job)
            if self.admission.out(cluster, job) or self.own.out(cluster, mine):
                continue
            yield from self._rank(cluster, job)
            got = self._try(cluster, job, mine, now, asked=True)
            placed += got
            if not got:
                kept = yield from backfill.reserving(cluster, job, now, turns)
                if turns.over:  # nobody who comes later may take what this one is to have
                    self.due_s = now + backfill.LATER_S
                    break
                if kept and cluster.policy.backfill.conservative:
                    continue  # another of its shape may have a place kept too
                self._waits(cluster, job, request, mine, full)
                continue
            if placed >= limit:
                break
        failovers.look(cluster, now)
        if cluster.policy.reservation.hosts:
            lent.look(cluster, lambda: self.admission.known(cluster), now)
        return placed

    def _try(self, cluster: Cluster, job: Job, mine: Case | None, now: float, *, asked: bool = False) -> int:
        """Place one job, or all of its gang that are placed with it; returns how many. `asked`: its queue has room."""
        if job.terms.member is not None:
            return gang_place.place(self, cluster, job, now)
        return int((asked or not cluster.books.queues.refusal(job)) and self._place(cluster, job, mine, now))

    def _waits(
        self, cluster: Cluster, job: Job, shape: Request, mine: Case | None, full: set[tuple[Request, Lane]]
    ) -> None:
        """Those just like it need not be asked for now."""
        if self.barred:  # until a claim ends, which is told by nobody
            full.update({(shape, job.lane)} if mine is None else ())
        elif isinstance(shape, Party):
            self._gang_waits(cluster, job, shape)
        elif mine is not None:  # others of its shape may be luckier
            self.own.hopeless.add(mine)
            self.admission.own_affair(job)
        elif not self.admission.out(cluster, job):
            self.hopeless.add(shape)

    def _gang_waits(self, cluster: Cluster, job: Job, shape: Party) -> None:
        """Gangs just like it need not be asked until something is set free."""
        members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.party(job)]
        if all(case(cluster, member) is None for member in members) and not cluster.policy.reservation.hosts:
            self.hopeless.add(shape)

    def _place(self, cluster: Cluster, job: Job, mine: Case | None, now: float) -> bool:
        """Place one job, if any host may take it."""
        choice = self._choose(cluster, job, mine, now)
        if choice is None:
            return False
        self.bind(cluster, job, choice, now)
        cluster.books.claims.pop(job.id, None)
        return True

    def bind(self, cluster: Cluster, job: Job, choice: Choice, now: float) -> None:
        """Place the job there."""
        _bind(cluster, job, choice.host, choice.fit, now)
        self.alike.taken(choice.host, job.request, choice.fit)
        self.admission.placed(job, choice)

    def unbind(self, cluster: Cluster, job: Job, now: float) -> None:
        """As if it had not been placed in this turn."""
        retract(cluster, cluster.allocations[job.allocation_id or ""], now, "")

    def ranked(self, cluster: Cluster, request: Request) -> Ranking:
        """The hosts that can take one job of the shape now."""
        return self._ranking(cluster, request)

    def takers(self, cluster: Cluster, request: Request) -> Iterator[str]:
        """The hosts that have room for the shape now, the best first. Draw from it only while nothing changes."""
        return (rank[-1] for rank, _ in self._ranking(cluster, request).in_order())

    def _choose(self, cluster: Cluster, job: Job, mine: Case | None, now: float) -> Choice | None:
        """The best host for the job that may take it, with what it would take there."""
        ranking = self._ranking(cluster, mine[0] if mine else job.request)
        others = mine or job.attempts or cluster.books.claims or cluster.policy.reservation.hosts
        if not others:  # as for most: nothing but the shape counts
            self.barred = set()
            first = ranking.best()
            return Choice(cluster.hosts[first[0][-1]], first[1]) if first is not None else None
        left = _Left(cluster, ranking.fits, mine)
        self.barred = {name for name in claims.barred(cluster, job, ranking.fits, now) if name in left}
        left.barred = self.barred
        best = _in_turn(ranking, left, *_hosts_by_history(job))
        if cluster.policy.reservation.hosts:
            tries = [(rank[-1], found) for rank, found in islice(best, TRIES)]
            return self.admission.choose(cluster, job, tries, left) if tries else None
        chosen = next(best, None)
        return Choice(cluster.hosts[chosen[0][-1]], chosen[1]) if chosen is not None else None

    def _rank(self, cluster: Cluster, job: Job) -> Work[None]:
        """Where all hosts are to be asked about the job's shape, do it with pauses."""
        request = own.asked(cluster, job)
        ranking = self.rankings.get(request)
        if ranking is None or ranking.stale():
            self.values.refresh(cluster)
            ranking = self._kept(cluster, request)
            for number, _ in enumerate(ranking.refreshing(cluster, request, self.free)):
                yield int(number % _ASKED == 0)

    def _ranking(self, cluster: Cluster, request: Request) -> Ranking:
        ranking = self._kept(cluster, request)
        self.values.refresh(cluster)
        ranking.refresh(cluster, request, self.free)
        return ranking

    def _kept(self, cluster: Cluster, request: Request) -> Ranking:
        ranking = self.rankings.pop(request, None)
        if ranking is None:
            ranking = Ranking(self.values, self.alike)
            if len(self.rankings) * len(cluster.hosts) >= ANSWERS_KEPT:
                del self.rankings[next(iter(self.rankings))]
        self.rankings[request] = ranking  # the last, as the one that was asked for last
        return ranking


@dataclass(slots=True)
class _Left:
    """Of the hosts that fit a shape, those that one job may use."""

    cluster: Cluster
    fits: Mapping[str, tuple[Rank, Fit]]
    mine: Case | None
    barred: Collection[str] = ()

    def __contains__(self, name: object) -> bool:
        if name not in self.fits or name in self.barred or not isinstance(name, str):
            return False
        return self.mine is None or own.barred(self.cluster.hosts[name], self.mine) is None


def _in_turn(ranking: Ranking, left: _Left, shun: set[str], want: set[str]) -> Iterator[tuple[Rank, Fit]]:
    """The hosts that are left in the order in which to try them, with what each would give."""
    yield from sorted((ranking.fits[name] for name in want if name in left), key=itemgetter(0))
    for found in ranking.in_order():
        if (name := found[0][-1]) not in shun and name not in want and name in left:
            yield found
    yield from sorted((ranking.fits[name] for name in shun if name in left), key=itemgetter(0))


def _hosts_by_history(job: Job) -> tuple[set[str], set[str]]:
    """Hosts that are the last choice for this job, and those that are the first.

    A crash of the VM alone is tried once more where it was, with what is there already, and then elsewhere.
    """
    if not job.attempts:
        return set(), set()
    shun = {a.host for a in job.attempts if a.outcome is Outcome.START_FAILED}
    crashed = crashed_on(job)
    if len(crashed) > 1:
        shun.update(crashed)
    return shun, set(crashed) - shun


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
        unit_identities=tuple([host.units[unit].identity for unit in found.units]),
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
