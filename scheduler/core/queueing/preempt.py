"""Preemption: whose VMs are asked to stop, so that a job which waits can start in their place.

Victims are those of a lower priority (all, or those that allow it, as the site says), and, for a job within what its
queue is guaranteed, those of queues that use more than they are guaranteed: borrowed quota is taken back first. Of all
sets of victims on one host that make enough room it takes the smallest, of these the one whose oldest VM is the
youngest, and so on (`search.py`); never one of which anybody could stay. The place is kept for the job (`claims.py`).
Who may be a victim is `victims.py`'s affair; for gangs victims are sought on several hosts at once
(`gangs/make_room.py`). To look may take a large part of a second: so it is done with pauses (`preempting`).

It only asks, as a drain does: a victim's guest may save its state, has its stop grace, and its job goes back to the
queue at no cost. It must stop nobody for a job that would fit without, or that would not fit in spite of it; nor
anything while the mass failure brake is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from ..fitting.fit import closed
from ..fitting.own import case
from ..fitting.ranking import free_units
from ..gangs import make_room
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job, Party, Request
from ..state.tables import AllocationState
from ..work import Work, done
from .claims import fits_without, leaving, owner
from .queue import Lane
from .search import Found, search
from .victims import Eligible, Victims, borrows, entitled, may_have_victims, may_stop

HOSTS = 512  # where victims are looked for: those with the most free GPUs, where the fewest must leave
HEADS = 4  # jobs that are looked at in one turn
PAUSE_S = 1.0  # after a turn in which somebody was looked at: it costs milliseconds, in a large cluster more
_GLANCES, _HEADS = 20, 10  # hosts, or VMs, that are glanced at in the time of a try; and jobs that wait
_OVER = (AllocationState.ENDED, AllocationState.LOST)


@dataclass(slots=True)
class Preempter:
    """Remembers for whom nobody can be stopped until something changes. Belongs to one cluster."""

    seen: tuple[int, int] = (-1, -1)
    due_s: float | None = None  # when somebody is to be looked at for whom there was no time
    _rests_s: float = 0.0
    hopeless: set[tuple[Request, int, str]] = field(default_factory=set)

    def preempt(self, cluster: Cluster, now: float) -> int:
        """Ask VMs to stop for the first jobs of the queue; returns how many. Call it after `place`."""
        return done(self.preempting(cluster, now))

    def preempting(self, cluster: Cluster, now: float) -> Work[int]:
        """The same, with pauses in which nothing may change the cluster."""
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
        for number, (job_id, request) in enumerate(cluster.pending.offers(set(), cluster.share, shut)):
            yield int(number % _HEADS == 0)
            job = cluster.jobs[job_id]
            shut.add((request, job.lane))
            party = [cluster.jobs[member] for member in cluster.books.gangs.party(job)]
            kind = (request, job.priority, _whose(cluster, party))
            if make_room.made(cluster, job) >= len(party) or kind in self.hopeless:
                continue
            if cluster.books.queues.refusal(job, len(party)) or not may_have_victims(cluster, job, len(party)):
                continue
            asked += yield from self._for(cluster, party, kind, now)
            heads += 1 + isinstance(request, Party)  # which costs more: see gangs/fewest.py
            self._rests_s = now + PAUSE_S
            if heads >= HEADS:
                self.due_s = self._rests_s
                break
        return asked

    def _for(self, cluster: Cluster, party: Sequence[Job], kind: tuple[Request, int, str], now: float) -> Work[int]:
        if isinstance(kind[0], Party):
            rooms = yield from make_room.choose(cluster, party)
        else:
            found = yield from choose(cluster, party[0])
            rooms = None if found is None else {found[0]: (1, found[1])}
        if rooms is None:
            self.hopeless.add(kind)
            return 0
        make_room.keep(cluster, party, rooms)
        return sum(_ask(cluster, party[0], rooms[host][1], now) for host in sorted(rooms))


def _ask(cluster: Cluster, job: Job, victims: Victims, now: float) -> int:
    """Ask those to leave who are on a host where a place is kept for the job, or for one of its gang."""
    who = job.id if job.terms.member is None else f"gang {job.terms.member.gang}"
    mine = owner(cluster, job.id)
    kept = {c.host: name for name, c in sorted(cluster.books.claims.items()) if owner(cluster, name) == mine}
    for victim in victims:
        victim.stop_reason = f"preempted by {who} of priority {job.priority}"
        victim.stop_requested_s, victim.preempted_for = now, kept[victim.host]
        cluster.note_stop(victim)
    return len(victims)


def _whose(cluster: Cluster, party: Sequence[Job]) -> str:
    """For whom else nobody can be stopped if for these nobody can."""
    job = party[0]
    own = job.terms.member is not None and any(case(cluster, member) is not None for member in party)
    return f"{job.terms.queue}/{owner(cluster, job.id)}" if own else job.terms.queue


def choose(cluster: Cluster, job: Job) -> Work[Found | None]:
    """A host, and who must leave it, for the job; nobody, if it is enough to wait for who leaves already."""
    gpus, kept = job.request.gpus, _kept(cluster, job)
    free: list[Host] = []
    emptying: list[Host] = []
    for number, (name, host) in enumerate(sorted(cluster.hosts.items())):
        yield int(number % _GLANCES == 0)
        if name in kept or len(host.units) < gpus or closed(host) is not None:
            continue
        free.append(host)
        if any(a.stop_reason or a.state in _OVER for a in map(cluster.allocations.__getitem__, host.allocations)):
            emptying.append(host)
        if gpus <= free_units(host):
            if fits_without(cluster, host, job, ()):
                return None  # something else keeps it from there: how many may start, a record, room for failover
            yield 1
    for host in emptying:
        if fits_without(cluster, host, job, leaving(cluster, host, Claim(host.name))):
            return host.name, ()
        yield 1
    free = nsmallest(HOSTS, free, key=lambda host: (-free_units(host), host.name))
    yield 1 + len(cluster.hosts) // _GLANCES
    if entitled(cluster, job):
        borrowed = yield from _fewest(cluster, job, free, lambda victim: borrows(cluster, job, victim))
        if borrowed is not None:
            return borrowed
    return (yield from _fewest(cluster, job, free, lambda victim: may_stop(cluster, job, victim)))


def _fewest(cluster: Cluster, job: Job, hosts: Sequence[Host], eligible: Eligible) -> Work[Found | None]:
    """Members of gangs only where nobody else will do: others of the gang stop with them."""
    found = yield from search(cluster, job, hosts, lambda victim: victim.terms.member is None and eligible(victim))
    if found is None and cluster.books.gangs:
        found = yield from search(cluster, job, hosts, eligible)
    return found


def _kept(cluster: Cluster, job: Job) -> set[str]:
    """Where another has a claim: who makes room for two at once could not tell whose room it was."""
    return {claim.host for other, claim in cluster.books.claims.items() if other != job.id}
