"""Preemption: whose VMs are asked to stop, so that a job which waits can start in their place.

Victims are those of a lower priority (all, or those that allow it, as the site says), and, for a job within what its
queue is guaranteed, those of queues that use more than they are guaranteed: borrowed quota is taken back first. Of all
sets of victims on one host that make enough room it takes the smallest, of these the one whose oldest VM is the
youngest, and so on; so never one more than is needed. The place is kept for the job (`claims.py`). Who may be a victim
is `victims.py`'s affair; for gangs victims are sought on several hosts at once (`gangs/make_room.py`).

It only asks, as a drain does: a victim's guest may save its state, has its stop grace, and its job goes back to the
queue at no cost. It must stop nobody for a job that would fit without, or that would not fit in spite of it; nor
anything while the mass failure brake is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import combinations, islice

from ..fitting.fit import closed
from ..fitting.own import case
from ..fitting.ranking import free_units
from ..gangs import make_room
from ..gangs.fewest import Rooms
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job, Party, Request
from ..state.tables import AllocationState
from .claims import fits_without, leaving, owner
from .queue import Lane
from .victims import Eligible, Victims, ages, borrows, entitled, loans_only, lower, may_have_victims, on_host

HOSTS = 512  # where victims are looked for: those with the most free GPUs, where the fewest must leave
HEADS = 4  # jobs that are looked at in one turn
PAUSE_S = 1.0  # after a turn in which somebody was looked at: it costs milliseconds, in a large cluster more
MOST = 8  # victims for one job
SETS = 300  # of victims on one host and of one size; more than that only where a host has many VMs
TRIES = 2000  # fits that are tried for one job
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
            party = [cluster.jobs[member] for member in cluster.books.gangs.party(job)]
            kind = (request, job.priority, _whose(cluster, party))
            if make_room.made(cluster, job) >= len(party) or kind in self.hopeless:
                continue
            if cluster.books.queues.refusal(job, len(party)) or not may_have_victims(cluster, job, len(party)):
                continue
            asked += self._for(cluster, party, kind, now)
            heads += 1 + isinstance(request, Party)  # which costs more: see gangs/fewest.py
            self._rests_s = now + PAUSE_S
            if heads >= HEADS:
                self.due_s = self._rests_s
                break
        return asked

    def _for(self, cluster: Cluster, party: Sequence[Job], kind: tuple[Request, int, str], now: float) -> int:
        rooms = make_room.choose(cluster, party) if isinstance(kind[0], Party) else _alone(cluster, party[0])
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
        cluster.dirty.allocations.add(victim.id)
    return len(victims)


def _alone(cluster: Cluster, job: Job) -> Rooms | None:
    found = choose(cluster, job)
    return None if found is None else {found[0]: (1, found[1])}


def _whose(cluster: Cluster, party: Sequence[Job]) -> str:
    """For whom else nobody can be stopped if for these nobody can."""
    job = party[0]
    own = job.terms.member is not None and any(case(cluster, member) is not None for member in party)
    return f"{job.terms.queue}/{owner(cluster, job.id)}" if own else job.terms.queue


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
    if entitled(cluster, job):
        borrowed = _fewest(cluster, job, free, lambda victim: borrows(cluster, job, victim))
        if borrowed is not None:
            return borrowed
    return _fewest(cluster, job, free, lambda victim: lower(cluster, job, victim) or borrows(cluster, job, victim))


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


def _search(cluster: Cluster, job: Job, hosts: Sequence[Host], eligible: Eligible) -> tuple[str, Victims] | None:
    """The smallest set, the youngest of those; ties end in the host's name and the VMs'."""
    mine = [(host, on_host(cluster, host, eligible)) for host in hosts]
    tries = 0
    for size in range(1, MOST + 1):
        sets = [(host, victims) for host, all_ in mine for victims in _sets(cluster, job, host, all_, size)]
        sets.sort(key=lambda pair: (*ages(pair[1]), pair[0].name, _ids(pair[1])))
        for host, victims in sets:
            gone = leaving(cluster, host, Claim(host.name))
            if fits_without(cluster, host, job, (*gone, *victims)):
                return host.name, victims
            tries += 1
            if tries >= TRIES:
                return None
    return None


def _sets(cluster: Cluster, job: Job, host: Host, all_: Sequence[Allocation], size: int) -> Iterator[Victims]:
    """Sets of victims with GPUs enough; of no queue more is taken back than it has borrowed."""
    free = len(host.units.keys() - host.held.keys())
    free += sum(len(a.units) for a in leaving(cluster, host, Claim(host.name)))
    if free + sum(sorted((len(a.units) for a in all_), reverse=True)[:size]) < job.request.gpus:
        return
    for victims in islice(combinations(all_, size), SETS):
        if free + sum(len(a.units) for a in victims) >= job.request.gpus and loans_only(cluster, job, victims):
            yield victims


def _ids(victims: Victims) -> tuple[str, ...]:
    return tuple(sorted(a.id for a in victims))
