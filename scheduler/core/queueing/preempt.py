"""Preemption: whose VMs are asked to stop, so that a job which waits can start in their place.

Victims are those of a lower priority (all, or those that allow it, as the site says), and, for a job within what its
queue is guaranteed, those of queues that use more than they are guaranteed: borrowed quota is taken back first. Of all
sets of victims on one host that make enough room it takes the smallest, of these the one whose oldest VM is the
youngest, and so on; so never one more than is needed. The place is kept for the job (`claims.py`).

It only asks, as a drain does: a victim's guest may save its state, has its stop grace, and its job goes back to the
queue at no cost. It must stop nobody for a job that would fit without, or that would not fit in spite of it; nor
anything while the mass failure brake is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import combinations, islice

from ..fitting.fit import closed
from ..fitting.ranking import free_units
from ..state.amounts import NOTHING, Amounts
from ..state.books import Claim
from ..state.model import Allocation, Cluster, Host, Job, Party, Request
from ..state.tables import AllocationState
from .claims import fits_without, leaving
from .queue import Lane
from .queues import asked_for

HOSTS = 512  # where victims are looked for: those with the most free GPUs, where the fewest must leave
HEADS = 4  # jobs that are looked at in one turn
PAUSE_S = 1.0  # after a turn in which somebody was looked at: it costs milliseconds, in a large cluster more
MOST = 8  # victims for one job
SETS = 300  # of victims on one host and of one size; more than that only where a host has many VMs
TRIES = 2000  # fits that are tried for one job
_OVER = (AllocationState.ENDED, AllocationState.LOST)
_LIVE = (AllocationState.BOUND, AllocationState.PREPARING, AllocationState.RUNNING)

Victims = tuple[Allocation, ...]
Eligible = Callable[[Job], bool]


@dataclass(slots=True)
class Preempter:
    """Remembers for whom nobody can be stopped until something changes. Belongs to one cluster."""

    seen: tuple[int, int] = (-1, -1)
    due_s: float | None = None  # when somebody is to be looked at for whom there was no time
    _rests_s: float = 0.0
    hopeless: set[tuple[Request, int, str]] = field(default_factory=set)

    def preempt(self, cluster: Cluster, now: float) -> int:
        """Ask VMs to stop for the first jobs of the queue; returns how many. Call it after `place`."""
        self.due_s = None
        if cluster.brake is not None or not cluster.pending:
            return 0
        if now < self._rests_s <= now + PAUSE_S:  # a clock may go back
            self.due_s = self._rests_s
            return 0
        if self.seen != (now_seen := (cluster.capacity_epoch, len(cluster.allocations))):
            self.seen = now_seen
            self.hopeless.clear()
        asked = heads = 0
        shut: set[tuple[Request, Lane]] = set()
        for job_id, request in cluster.pending.offers(set(), cluster.share, shut):
            job = cluster.jobs[job_id]
            shut.add((request, job.lane))
            if isinstance(request, Party):
                continue  # nobody is stopped for a gang
            kind = (request, job.priority, job.terms.queue)
            if _waits_for_leavers(cluster, job_id) or kind in self.hopeless or cluster.books.queues.refusal(job):
                continue
            if not _may_have_victims(cluster, job):
                continue
            asked += self._for(cluster, job, kind, now)
            heads += 1
            self._rests_s = now + PAUSE_S
            if heads >= HEADS:
                self.due_s = self._rests_s
                break
        return asked

    def _for(self, cluster: Cluster, job: Job, kind: tuple[Request, int, str], now: float) -> int:
        found = choose(cluster, job)
        if found is None:
            self.hopeless.add(kind)
            return 0
        host, victims = found
        cluster.books.claims[job.id] = Claim(host)
        for victim in victims:
            victim.stop_reason = f"preempted by {job.id} of priority {job.priority}"
            victim.stop_requested_s, victim.preempted_for = now, job.id
            cluster.dirty.allocations.add(victim.id)
        return len(victims)


def _waits_for_leavers(cluster: Cluster, job_id: str) -> bool:
    """Whether others have been stopped for it; a place that is kept until limits of time are over is no such thing."""
    claim = cluster.books.claims.get(job_id)
    return claim is not None and not claim.at_s


def _may_have_victims(cluster: Cluster, job: Job) -> bool:
    """At a glance."""
    lower = cluster.policy.preemption.lower_priority or bool(cluster.books.preemptible)
    live = cluster.books.live
    return (lower and bool(live) and min(live) < job.priority) or _entitled(cluster, job)


def _entitled(cluster: Cluster, job: Job) -> bool:
    """Whether its queue would still be within what it is guaranteed."""
    queues, asked = cluster.books.queues, asked_for(job)
    queue = queues.known.get(job.terms.queue)
    if queue is None or not any(part and sure for part, sure in zip(asked, queue.guaranteed, strict=True)):
        return False
    used = queues.used.get(job.terms.queue, NOTHING).plus(asked)
    for other_id, claim in cluster.books.claims.items():  # they will have what others are leaving for them
        other = cluster.jobs.get(other_id)
        if other is not None and other is not job and not claim.at_s and other.terms.queue == job.terms.queue:
            used = used.plus(asked_for(other))
    return not used.over_given(queue.guaranteed)


def choose(cluster: Cluster, job: Job) -> tuple[str, Victims] | None:
    """A host, and who must leave it, for the job; nobody, if it is enough to wait for who leaves already."""
    hosts = [h for name, h in sorted(cluster.hosts.items()) if closed(h) is None and len(h.units) >= job.request.gpus]
    kept = _kept(cluster, job)
    free = [host for host in hosts if host.name not in kept]
    if any(_fits_now(cluster, host, job) for host in free):
        return None
    emptying = {a.host for a in cluster.allocations.values() if a.stop_reason or a.state in _OVER}
    for host in (h for h in free if h.name in emptying):
        if fits_without(cluster, host, job, leaving(cluster, host, Claim(host.name))):
            return host.name, ()
    free = nsmallest(HOSTS, free, key=lambda host: (-free_units(host), host.name))
    if _entitled(cluster, job):
        borrowed = _fewest(cluster, job, free, lambda victim: _borrows(cluster, job, victim))
        if borrowed is not None:
            return borrowed
    return _fewest(cluster, job, free, lambda victim: _lower(cluster, job, victim) or _borrows(cluster, job, victim))


def _fewest(cluster: Cluster, job: Job, hosts: Sequence[Host], eligible: Eligible) -> tuple[str, Victims] | None:
    """Members of gangs only where nobody else will do: others of the gang stop with them."""
    found = _search(cluster, job, hosts, lambda victim: victim.terms.member is None and eligible(victim))
    return _search(cluster, job, hosts, eligible) if found is None and cluster.books.gangs else found


def _fits_now(cluster: Cluster, host: Host, job: Job) -> bool:
    """Something else keeps it from a host that has room: how many may start there, a record, room for failover."""
    return job.request.gpus <= free_units(host) and fits_without(cluster, host, job, ())


def _kept(cluster: Cluster, job: Job) -> set[str]:
    """Where another has a claim: who makes room for two at once could not tell whose room it was."""
    return {claim.host for other, claim in cluster.books.claims.items() if other != job.id}


def _lower(cluster: Cluster, job: Job, victim: Job) -> bool:
    """Whether the victim's priority lets it stop for the job. What another queue is guaranteed is safe from that: else
    its job would take the place back, and so on for ever.
    """
    if victim.priority >= job.priority or not (cluster.policy.preemption.lower_priority or victim.terms.preemptible):
        return False
    if _would_be_stopped_by(cluster, job, victim):
        return False
    used = cluster.books.queues.used.get(victim.terms.queue, NOTHING)
    return victim.terms.queue == job.terms.queue or _lent(cluster, victim.terms.queue, used)


def _would_be_stopped_by(cluster: Cluster, job: Job, victim: Job) -> bool:
    """Whether the victim could take its place back as room that is kept for restarts (lent.py), and so on for ever."""
    return bool(cluster.policy.reservation.hosts) and job.terms.preemptible and not victim.terms.preemptible


def _borrows(cluster: Cluster, job: Job, victim: Job) -> bool:
    """Whether the victim's queue uses more than it is guaranteed, and the job's would not."""
    if victim.terms.queue == job.terms.queue or not _entitled(cluster, job):
        return False
    if _would_be_stopped_by(cluster, job, victim):
        return False
    return _lent(cluster, victim.terms.queue, cluster.books.queues.used.get(victim.terms.queue, NOTHING))


def _lent(cluster: Cluster, name: str, used: Amounts) -> bool:
    """Whether a queue that uses so much borrows; without a guarantee all that it has is borrowed."""
    queue = cluster.books.queues.known.get(name)
    return queue is None or not any(queue.guaranteed) or used.over_given(queue.guaranteed)


def _search(cluster: Cluster, job: Job, hosts: Sequence[Host], eligible: Eligible) -> tuple[str, Victims] | None:
    """The smallest set, the youngest of those; ties end in the host's name and the VMs'."""
    mine = [(host, _eligible(cluster, host, eligible)) for host in hosts]
    tries = 0
    for size in range(1, MOST + 1):
        sets = [(host, victims) for host, all_ in mine for victims in _sets(cluster, job, host, all_, size)]
        sets.sort(
            key=lambda pair: (*sorted((-a.created_s for a in pair[1]), reverse=True), pair[0].name, _ids(pair[1]))
        )
        for host, victims in sets:
            gone = leaving(cluster, host, Claim(host.name))
            if fits_without(cluster, host, job, (*gone, *victims)):
                return host.name, victims
            tries += 1
            if tries >= TRIES:
                return None
    return None


def _eligible(cluster: Cluster, host: Host, eligible: Eligible) -> list[Allocation]:
    """Who may be stopped there, the youngest first."""
    mine = (cluster.allocations[a] for a in host.allocations)
    live = (a for a in mine if a.state in _LIVE and not a.stop_reason and a.job in cluster.jobs)
    found = [a for a in live if cluster.jobs[a.job].allocation_id == a.id and eligible(cluster.jobs[a.job])]
    return sorted(found, key=lambda a: (-a.created_s, a.id))


def _sets(cluster: Cluster, job: Job, host: Host, all_: Sequence[Allocation], size: int) -> Iterator[Victims]:
    """Sets of victims with GPUs enough; of no queue more is taken back than it has borrowed."""
    free = len(host.units.keys() - host.held.keys())
    free += sum(len(a.units) for a in leaving(cluster, host, Claim(host.name)))
    if free + sum(sorted((len(a.units) for a in all_), reverse=True)[:size]) < job.request.gpus:
        return
    for victims in islice(combinations(all_, size), SETS):
        if free + sum(len(a.units) for a in victims) >= job.request.gpus and _loans_only(cluster, job, victims):
            yield victims


def _loans_only(cluster: Cluster, job: Job, victims: Iterable[Allocation]) -> bool:
    """Whether each that is taken for what its queue borrows is still borrowed when its turn comes."""
    used = dict(cluster.books.queues.used)
    for allocation in victims:
        victim = cluster.jobs[allocation.job]
        lent = _lent(cluster, victim.terms.queue, used.get(victim.terms.queue, NOTHING))
        if not lent and victim.terms.queue != job.terms.queue:
            return False
        used[victim.terms.queue] = used.get(victim.terms.queue, NOTHING).minus(asked_for(victim))
    return True


def _ids(victims: Victims) -> tuple[str, ...]:
    return tuple(sorted(a.id for a in victims))
