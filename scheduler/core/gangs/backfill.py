"""When and where a gang has room, by declared limits of time: the places that backfill keeps for it, on several hosts.

The more have left, the more room there is, so the first moment at which all members have seats is found by bisection
over the moments at which somebody is gone. It looks at copies of hosts and changes nothing, with pauses as a search for
victims (`core/work.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..fitting.fit import Fit, fit
from ..fitting.own import failed_on
from ..fitting.scratch import without
from ..queueing.claims import ends, owner
from ..queueing.leavers import Leavers
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..work import Work
from .arrange import Hosts, Seat, arrange, hosts_of, shuns
from .ask import ask_of

HOSTS = 128  # that are looked at, those first that may have GPUs enough for one member the soonest

_Ends = dict[str, list[tuple[float, Allocation]]]


def places(cluster: Cluster, job: Job, now: float, leavers: Leavers) -> Work[dict[str, Claim]]:
    """The places to be kept for all that are placed with the job: for each host one, under a member's name."""
    found = yield from _soonest(cluster, job, now, leavers)
    if found is None:
        return {}
    at_s, seats = found
    by_host: dict[str, list[str]] = {}
    for member, seat in seats.items():
        by_host.setdefault(seat.host, []).append(member)
    return {members[0]: Claim(host, at_s, len(members)) for host, members in sorted(by_host.items())}


def estimating(cluster: Cluster, job: Job, now: float, leavers: Leavers) -> Work[tuple[float, str] | None]:
    """When all have room at the latest, and on which hosts; None: nobody knows."""
    found = yield from _soonest(cluster, job, now, leavers)
    return None if found is None else (found[0], hosts_of(found[1].values()))


def _soonest(cluster: Cluster, job: Job, now: float, leavers: Leavers) -> Work[tuple[float, dict[str, Seat]] | None]:
    members = [cluster.jobs[job_id] for job_id in cluster.books.gangs.party(job)]
    mine = owner(cluster, job.id)
    taken = {claim.host for other, claim in cluster.books.claims.items() if owner(cluster, other) != mine}
    near = {name: at_s for at_s, name in (yield from leavers.soonest(cluster, job, now, HOSTS, taken))}
    leave: _Ends = {name: ends(cluster, cluster.hosts[name], now) for name in near}
    yield 1 + len(near) // 4
    times = sorted({now, *(at_s for name in near for at_s, _ in leave[name])})
    low, high, best = 0, len(times) - 1, None
    if len(seats := (yield from _seats(cluster, members, near, leave, times[high]))) < len(members):
        return None
    best = times[high], seats
    while low < high:
        middle = (low + high) // 2
        seats = yield from _seats(cluster, members, near, leave, times[middle])
        if len(seats) == len(members):
            high, best = middle, (times[middle], seats)
        else:
            low = middle + 1
    return best


def _seats(
    cluster: Cluster, members: Sequence[Job], near: dict[str, float], leave: _Ends, at_s: float
) -> Work[dict[str, Seat]]:
    """Seats for the members once all have left who are gone by then; fewer than members, if there are not enough."""
    ask = ask_of(cluster, members)
    then: dict[str, Host] = {}
    fits: dict[str, Fit] = {}
    for name in sorted(name for name, soonest_s in near.items() if soonest_s <= at_s):
        host = then[name] = without(cluster.hosts[name], [a for gone_s, a in leave[name] if gone_s <= at_s])
        if not shuns(ask, host) and isinstance(found := fit(host, ask.request), Fit):
            fits[name] = found
        yield 1
    firsts = {name: fits[name] for name in sorted(fits, key=lambda name: (*fits[name].order, name))}
    seats = arrange(ask, Hosts(firsts, then.__getitem__), {member.id: failed_on(member) for member in members})
    yield 1 + len(seats)
    return seats
