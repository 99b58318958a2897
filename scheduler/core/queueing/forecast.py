"""When a job, or a gang, may start, by declared limits of time, once those ahead of it in the queue have started.

Those are put, one after the other, where by limits they have room the soonest, each for as long as it declares or for
ever; then the job itself, beside them. It looks at copies of hosts and changes nothing; like a search for victims it
says what it costs (`core/work.py`), as nobody need wait for an answer in one go.

An estimate: VMs end before their limits, jobs come and go, shares change, and placement may choose other hosts. Of a
gang that is ahead all members have places, not all at once. Who is kept from starting by a quota takes no place. No
more than AHEAD jobs and TRIES tries are counted, and `Start` says how many were not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import inf

from ..fitting.fit import Fit, closed
from ..fitting.scratch import join, without
from ..gangs import backfill as gang_backfill
from ..gangs.arrange import Seat, cell_of, hosts_of
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..state.rules import HOST
from ..work import Work
from . import backfill
from .claims import ends, owner, takes
from .leavers import Leavers

AHEAD = 100  # jobs or gangs that are counted
TRIES = 2000  # hosts at some moment that are tried, for all of them
EACH = 32  # for each member of those that are ahead
MINE = 512  # for the job itself
_HOSTS, _SUMS = 2, 1000  # hosts whose VMs' ends are looked up, and sums that are made, in the time of a try


@dataclass(frozen=True, slots=True)
class Start:
    """When and where. Of `ahead` jobs that come before it so many were `counted`: if not all, it may well be later."""

    at_s: float
    where: str
    counted: int = 0
    ahead: int = 0
    kept: bool = False  # a place is kept for it, so nobody who is ahead matters


@dataclass(slots=True)
class _Line:
    """A host in time: who leaves it when, and who is to come: from when, until when."""

    host: Host
    leave: list[tuple[float, Allocation]]
    booked: list[tuple[float, float, Job, Fit]] = field(default_factory=list)
    free: list[tuple[float, int]] = field(default_factory=list)  # GPUs from when on, whoever comes

    def soonest_s(self, gpus: int) -> float:
        """When it may have so many GPUs at the earliest."""
        return next((at_s for at_s, free in self.free if free >= gpus), inf)

    def moments(self, gpus: int) -> list[float]:
        """When it may have so many GPUs, beside those who have come by then: when somebody leaves, or is to leave."""
        ends_s = {at_s for at_s, _ in self.free} | {to_s for _, to_s, _, _ in self.booked if to_s < inf}
        return [at_s for at_s in sorted(ends_s) if self._left(at_s) >= gpus]

    def _left(self, at_s: float) -> int:
        free = max((free for since_s, free in self.free if since_s <= at_s), default=0)
        return free - sum(job.request.gpus for from_s, to_s, job, _ in self.booked if from_s <= at_s < to_s)

    def at(self, from_s: float, to_s: float) -> Host:
        """A copy: without those who are gone at the beginning, with all who come before the end."""
        host = without(self.host, [a for at_s, a in self.leave if at_s <= from_s])
        for began_s, ends_s, job, found in self.booked:
            if began_s < to_s and ends_s > from_s:
                late = began_s > from_s  # others have its memory yet
                taken = replace(found, memory_mib=(0,) * len(found.memory_mib)) if late else found
                join(host, taken, job.id, job.request, job.labels)
        return host


@dataclass(slots=True)
class _Forecast:
    cluster: Cluster
    now: float
    lines: dict[str, _Line] = field(default_factory=dict)
    left: int = TRIES
    _orders: dict[int, list[tuple[float, str]]] = field(default_factory=dict)

    def begin(self, taken: Collection[str]) -> Work[None]:
        """Look up who leaves when. Not of these hosts."""
        for number, (name, host) in enumerate(sorted(self.cluster.hosts.items())):
            if name not in taken and closed(host) is None:
                leave = ends(self.cluster, host, self.now)
                counts = accumulate((len(a.units) for _, a in leave), initial=len(host.units.keys() - host.held.keys()))
                times = [self.now, *(at_s for at_s, _ in leave)]
                self.lines[name] = _Line(host, leave, free=list(zip(times, counts, strict=True)))
            yield int(number % _HOSTS == 0)

    def start(self, job: Job, tries: int) -> Work[tuple[float, list[Seat]] | None]:
        """When all that start with the job have places, and where; they have them from then on. None: nobody knows."""
        found: list[tuple[float, Seat, Job]] = []
        for member_id in self.cluster.books.gangs.party(job):
            member = self.cluster.jobs[member_id]
            place = yield from self._place(member, [seat for _, seat, _ in found], tries)
            if place is None:
                for _, seat, _ in found:
                    self.lines[seat.host].booked.pop()
                return None
            line = self.lines[place[1].host]
            line.booked.append((place[0], place[0] + _runs_s(member), member, place[1].found))
            found.append((*place, member))
        at_s = max((place[0] for place in found), default=self.now)
        return at_s, [seat for _, seat, _ in found]

    def _place(self, job: Job, beside: list[Seat], tries: int) -> Work[tuple[float, Seat] | None]:
        best: tuple[float, Seat] | None = None
        order = yield from self._order(job.request.gpus)
        for at_s, name in order:
            if at_s == inf or tries <= 0 or (best is not None and at_s >= best[0]):
                break
            line = self.lines[name]
            if not _may(job, line.host, [self.lines[seat.host].host for seat in beside]):
                continue
            yield len(line.booked) ** 2 // _SUMS
            for moment in line.moments(job.request.gpus):
                if tries <= 0 or (best is not None and moment >= best[0]):
                    break
                tries, self.left = tries - 1, self.left - 1
                yield 1
                if (fits := takes(self.cluster, line.at(moment, moment + _runs_s(job)), job)) is not None:
                    best = moment, Seat(name, fits)
                    break
        return best

    def _order(self, gpus: int) -> Work[list[tuple[float, str]]]:
        """The hosts, those first that may have so many GPUs the soonest."""
        if gpus not in self._orders:
            self._orders[gpus] = sorted((line.soonest_s(gpus), name) for name, line in self.lines.items())
            yield 1 + len(self.lines) // 50
        return self._orders[gpus]


def _may(job: Job, host: Host, beside: list[Host]) -> bool:
    """Whether a member of a gang may be there, beside those of its gang that have places; roots are not looked at."""
    member = job.terms.member
    if member is None:
        return True
    spread, pack = (kind if kind != "pcie_root" else "" for kind in (member.spread, member.pack))
    if spread and (not (mine := cell_of(host, spread)) or mine in {cell_of(other, spread) for other in beside}):
        return False
    kind = HOST if member.pack == "pcie_root" else pack
    return not kind or (bool(mine := cell_of(host, kind)) and {cell_of(other, kind) for other in beside} <= {mine})


def _runs_s(job: Job) -> float:
    """How long it has what it has, at most; infinity: nobody knows."""
    return job.terms.time_limit_s + job.terms.stop_grace_s if job.terms.time_limit_s else inf


def forecast(cluster: Cluster, job: Job, now: float) -> Work[Start | None]:
    """When the job may start, those ahead of it counted. None: nobody knows."""
    mine, claims = owner(cluster, job.id), cluster.books.claims
    kept = sorted(other_id for other_id in claims if owner(cluster, other_id) == mine)
    if kept and job.terms.member is None:
        at_s = backfill.free_s(cluster, cluster.hosts[claims[kept[0]].host], job, now)
        return None if at_s is None else Start(at_s, claims[kept[0]].host, kept=True)
    lead = cluster.books.gangs.lead(job) or job.id
    count = max(0, cluster.pending.position(lead, cluster.share) - 1)
    if job.terms.member is not None and (kept or not count):  # this minds where its members may be together
        found = yield from gang_backfill.estimating(cluster, job, now, Leavers())
        return None if found is None else Start(*found, kept=bool(kept))
    ahead: list[Job] = []
    for other_id, _ in cluster.pending.offers(set(), cluster.share):
        if other_id == lead or len(ahead) == min(count, AHEAD):
            break
        ahead.append(cluster.jobs[other_id])
    theirs = {owner(cluster, other.id) for other in ahead}
    play = _Forecast(cluster, now)
    yield from play.begin({claim.host for other_id, claim in claims.items() if owner(cluster, other_id) not in theirs})
    counted = 0
    for other in ahead:
        if play.left <= 0:
            break
        counted += 1
        if cluster.books.queues.refusal(other, len(cluster.books.gangs.party(other))) is None:
            yield from play.start(other, EACH)
    place = yield from play.start(job, MINE)
    return None if place is None else Start(place[0], hosts_of(place[1]), counted, count)


def in_words(found: Start | None, now: float) -> str:
    """What is said of an estimate; "": there is none."""
    if found is None or found.at_s <= now:
        return ""
    when = f"; by declared limits of time there is room on {found.where} in {found.at_s - now:.0f} s"
    if found.kept:
        return f"{when} at the latest (an estimate: its place is kept)"
    if not found.ahead:
        return f"{when} at the latest (an estimate: nobody is ahead of it)"
    if found.counted < found.ahead:
        return f"{when} at least (an estimate: after {found.counted} of the {found.ahead} that are ahead of it)"
    them = "the 1 that is" if found.ahead == 1 else f"the {found.ahead} that are"
    return f"{when} (an estimate: after {them} ahead of it)"
