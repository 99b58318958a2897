"""Whose VMs are asked to stop so that a gang which waits can start: for all of its members at once, or nobody.

The fewest, of those the youngest (`fewest.py`); the places are kept for the gang, on each host under the name of one of
its members (`queueing/claims.py`). It only finds them; `queueing/preempt.py` asks.

It must name nobody for a gang that has room without, or would not have room in spite of it: so the places are tried
once more, all together, before anybody is named. Where the site keeps room for restarts, whether a gang may start is
known only when it starts, so nobody is named for a first start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nsmallest
from math import inf

from ..fitting.fit import Fit, closed, fit
from ..fitting.own import failed_on
from ..fitting.ranking import free_units
from ..queueing.claims import owner
from ..queueing.victims import Eligible, borrows, entitled, may_stop, on_host, within_loans
from ..reservation.domains import ran_before
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..state.rules import HOST
from ..work import Work
from .arrange import Ask, Hosts, arranged, shuns
from .ask import ask_of
from .fewest import Rooms, Search

HOSTS = 512  # where victims are looked for: those with the most free GPUs
_GLANCES, _LOOKED, _FITS = 30, 8, 5  # hosts that are glanced at, looked through, and asked, in the time of a try


def choose(cluster: Cluster, members: Sequence[Job]) -> Work[Rooms | None]:
    """Where the members go, and who must leave for them; None: nobody helps, or it has room already."""
    kept = cluster.policy.reservation
    if kept.hosts and not kept.warn and not any(map(ran_before, members)):
        return None
    ask, open_ = ask_of(cluster, members), (yield from _hosts(cluster, members))
    able = [host for host in open_ if free_units(host) >= ask.request.gpus]
    yield 1 + len(open_) // _GLANCES
    if (yield from _seated(ask, len(members), able)):
        return None
    job, count = members[0], len(members)
    hosts = nsmallest(HOSTS, open_, key=lambda host: (-free_units(host), host.name))
    yield 1 + len(open_) // _GLANCES
    if entitled(cluster, job, count):
        found = yield from _fewest(cluster, members, ask, hosts, lambda victim: borrows(cluster, job, victim, count))
        if found is not None:
            return found
    return (yield from _fewest(cluster, members, ask, hosts, lambda victim: may_stop(cluster, job, victim, count)))


def made(cluster: Cluster, job: Job) -> int:
    """For how many of those that are placed with the job others leave already, or have left.

    A place that is kept until limits of time are over is no such thing.
    """
    mine = owner(cluster, job.id)
    claims = (claim for other, claim in cluster.books.claims.items() if owner(cluster, other) == mine)
    return sum(claim.count for claim in claims if not claim.at_s)


def keep(cluster: Cluster, members: Sequence[Job], rooms: Rooms) -> None:
    """Keep them these places, on each host under the name of one of the members there, and no others."""
    claims, mine = cluster.books.claims, owner(cluster, members[0].id)
    for other in [other for other in claims if owner(cluster, other) == mine]:
        del claims[other]
    left = [member.id for member in members]
    for host, (count, _) in sorted(rooms.items()):
        claims[left[0]] = Claim(host, 0.0, count)
        left = left[count:]


def mending(cluster: Cluster) -> Work[None]:
    """As a new leader begins: all that allocations say is who leaves for whom. Keep what else each gang needs."""
    jobs = [cluster.jobs[job_id] for job_id in sorted(cluster.books.claims) if job_id in cluster.jobs]
    leads = {job.terms.member.gang: job for job in reversed(jobs) if job.terms.member is not None}
    for _, job in sorted(leads.items()):
        members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.party(job)]
        if not cluster.books.gangs.lead(job) or made(cluster, job) >= len(members):
            continue
        search = Search(cluster, ask_of(cluster, members), len(members))
        rooms = yield from search.fewest((yield from _hosts(cluster, members)))
        if rooms is not None:
            keep(cluster, members, rooms)


def _hosts(cluster: Cluster, members: Sequence[Job]) -> Work[list[Host]]:
    """Where any of the members may go, and no place is kept for another."""
    mine, gpus = owner(cluster, members[0].id), members[0].request.gpus
    taken = {claim.host for other, claim in cluster.books.claims.items() if owner(cluster, other) != mine}
    taken = taken.union(*map(failed_on, members))
    open_ = []
    for number, (name, host) in enumerate(sorted(cluster.hosts.items())):
        if name not in taken and len(host.units) >= gpus and closed(host) is None:
            open_.append(host)
        yield int(number % _GLANCES == 0)
    return open_


def _seated(ask: Ask, count: int, hosts: Iterable[Host]) -> Work[bool]:
    """Whether there are seats for all of them on these hosts, or copies of hosts, as they are."""
    able: dict[str, Host] = {}
    fits: dict[str, Fit] = {}
    enough = count + len(ask.used) if not ask.pack and ask.spread in ("", HOST) else inf
    for number, host in enumerate(hosts):
        if len(fits) >= enough:  # each has room for one at least: so many will do
            break
        found = fit(host, ask.request)
        if isinstance(found, Fit) and not shuns(ask, host):
            able[host.name], fits[host.name] = host, found
        yield int(number % _FITS == 0)
    names = dict.fromkeys([str(number) for number in range(count)], frozenset[str]())
    for seats in arranged(ask, Hosts(fits, able.__getitem__), names):
        if len(seats) == count:
            return True
        yield 1 + len(seats)
    return False


def _fewest(
    cluster: Cluster, members: Sequence[Job], ask: Ask, hosts: Sequence[Host], eligible: Eligible
) -> Work[Rooms | None]:
    """Members of gangs only where nobody else will do: others of the gang stop with them."""
    ready: list[Allocation] = []
    for number, host in enumerate(hosts):
        ready += on_host(cluster, host, eligible)
        yield int(number % _LOOKED == 0)
    ready.sort(key=lambda a: (-a.created_s, a.id))
    single = [a for a in ready if cluster.jobs[a.job].terms.member is None]
    for some in (single, ready) if len(single) < len(ready) else (ready,):
        search = Search(cluster, ask, len(members), _by_host(within_loans(cluster, members[0], some)))
        yield 1 + len(some) // _GLANCES
        rooms = yield from search.fewest(hosts)
        if rooms is not None and (yield from _seated(ask, len(members), search.then(rooms))):
            return rooms
    return None


def _by_host(allocations: Iterable[Allocation]) -> dict[str, list[Allocation]]:
    found: dict[str, list[Allocation]] = {}
    for allocation in allocations:
        found.setdefault(allocation.host, []).append(allocation)
    return found
