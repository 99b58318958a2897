"""Placing a gang: all of its members that wait together, in one turn, or none of them.

Seats for all are found on copies of hosts (`arrange.py`); only then are the members bound. Where the site keeps room
for restarts, members are bound one by one and each is judged as any job; if one may not be, all are taken back and
nothing has happened. How many VMs may start on a host keeps a gang from it, but does not count its own members.

It must never leave some of a gang bound and others not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from ..failover.retry import crashed_on
from ..fitting import own
from ..fitting.fit import Fit
from ..fitting.ranking import Ranking
from ..queueing import claims
from ..reservation.admission import TRIES, Admission, Choice
from ..reservation.domains import ran_before
from ..state.cluster import Cluster
from ..state.jobs import Job, Outcome, Request
from ..state.rules import HOST
from .arrange import Ask, Hosts, Seat, arrange, shuns
from .ask import ask_of
from .refusals import Refusals, key_of

GANG_TRIES = TRIES // 4  # arrangements, if the site keeps room for restarts


class Places(Protocol):
    """What the placer knows and does for single jobs."""

    admission: Admission
    refusals: Refusals
    barred: set[str]

    def ranked(self, cluster: Cluster, request: Request) -> Ranking:
        """The hosts that can take one of this shape."""

    def bind(self, cluster: Cluster, job: Job, choice: Choice, now: float) -> None:
        """Place the job there."""

    def unbind(self, cluster: Cluster, job: Job, now: float) -> None:
        """As if it had not been."""


def place(places: Places, cluster: Cluster, job: Job, now: float) -> int:
    """Place all that are placed together with the job, if they have room; returns how many."""
    members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.party(job)]
    if cluster.books.queues.refusal(job, len(members)):
        return 0
    ask = ask_of(cluster, members)
    places.barred = claims.barred(cluster, job, places.ranked(cluster, ask.request).fits, now)
    key = key_of(cluster, members, ask, places.barred)
    if places.refusals.out(cluster, places.admission.moved, key):
        return 0
    if _try(places, cluster, members, ask, now):
        return len(members)
    places.refusals.known.add(key)
    return 0


def _try(places: Places, cluster: Cluster, members: Sequence[Job], ask: Ask, now: float) -> bool:
    """Bind them all where they have seats, and where that leaves the room that is kept for restarts."""
    ranking = places.ranked(cluster, ask.request)
    admitted = not cluster.policy.reservation.hosts or any(ran_before(member) for member in members)
    refused: set[str] = set()
    for _ in range(1 if admitted else GANG_TRIES):
        usable = ((rank[-1], found) for rank, found in ranking.in_order() if rank[-1] not in places.barred | refused)
        seats = find(cluster, members, ask, usable)
        if len(seats) < len(members):
            return False
        host = _bind(places, cluster, members, seats, now, judge=not admitted)
        if not host:
            return True
        refused.add(host)
    return False


def find(cluster: Cluster, members: Sequence[Job], ask: Ask, hosts: Iterable[tuple[str, Fit]]) -> dict[str, Seat]:
    """Seats for the members on these hosts, which come in their order; fewer than members, if there are not enough."""
    bars = {member.id: own.failed_on(member) for member in members}
    bad = {a.host for job in members for a in job.attempts if a.outcome is Outcome.START_FAILED}
    bad |= {host for job in members if len(crashed := crashed_on(job)) > 1 for host in crashed}
    hosts = ((name, found) for name, found in hosts if not ask.shunned or not shuns(ask, cluster.hosts[name]))
    if not ask.pack and ask.spread in ("", HOST):  # each host has room for one at least: so many will do
        hosts = islice(hosts, len(members) + len(ask.used) + len(bad.union(*bars.values())))
    usable = dict(hosts)
    if bad & usable.keys():  # last, then
        usable = {name: usable[name] for name in sorted(usable, key=lambda name: name in bad)}
    return arrange(ask, Hosts(usable, cluster.hosts.__getitem__), bars)


def _bind(
    places: Places, cluster: Cluster, members: Sequence[Job], seats: Mapping[str, Seat], now: float, *, judge: bool
) -> str:
    """Bind them all; or, if room for restarts forbids one, none: then the host where it was to be."""
    mark = _Mark.of(cluster, members)
    bound: list[Job] = []
    for member in members:
        taken = seats[member.id]
        choice: Choice | None = Choice(cluster.hosts[taken.host], taken.found)
        if judge:
            choice = places.admission.choose(cluster, member, [(taken.host, taken.found)], [taken.host])
        if choice is None:
            places.admission.own_affair(member)
            for other in reversed(bound):
                places.unbind(cluster, other, now)
            mark.restore(cluster, now)
            return taken.host
        places.bind(cluster, member, choice, now)
        bound.append(member)
    for attempt in (a for member in members for a in member.attempts[:-2]):
        attempt.warnings = ()  # statuses of all members go into one transaction
    for member in members:
        cluster.books.claims.pop(member.id, None)
    return ""


@dataclass(slots=True)
class _Mark:
    """What a placement that was taken back has left behind, as it was: for others nothing has happened."""

    epoch: int
    log: int
    clean: set[str]
    said: dict[str, tuple[str, float]]

    @classmethod
    def of(cls, cluster: Cluster, members: Iterable[Job]) -> _Mark:
        said = {member.id: (member.message, member.not_before_s) for member in members}
        return cls(cluster.capacity_epoch, len(cluster.log), set(said) - cluster.dirty.jobs, said)

    def restore(self, cluster: Cluster, now: float) -> None:
        cluster.capacity_epoch = self.epoch
        del cluster.log[self.log :]
        cluster.dirty.jobs -= self.clean
        for job_id, (message, not_before_s) in self.said.items():
            job = cluster.jobs[job_id]
            job.message = message
            job.not_before_s = not_before_s if not_before_s > now else 0.0  # what is due would be due again and again
            cluster.enqueue(job)
