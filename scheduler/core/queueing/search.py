"""Whom to ask to stop for one job: the fewest on one host, of those the youngest.

Sets of up to MOST victims are tried by size and age, on all hosts that are looked at, so what is found is the smallest
and youngest there is. Where no such set will do, or they are too many, sets are found greedily, host by host
(`sets.py`).

It only finds them. It must name nobody who could stay, and take no more of a queue than it has borrowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import accumulate, islice
from operator import itemgetter

from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..work import Work
from .claims import fits_without, leaving
from .sets import greedy, kinds, largest_first, needed, sets_of, youngest_first
from .victims import Eligible, Victims, ages, guarantees, loans_only, on_host, within_loans

MOST = 8  # victims, in sets that are all tried
SETS = 300  # of victims on one host and of one size
TRIES = 2000  # fits that are tried for one job, among those
LARGE = 16  # hosts with a larger set, of which the best is taken
_LOOKED, _SETS = 8, 20  # hosts whose VMs are looked through, and sets that are weighed, in the time of a try

Found = tuple[str, Victims]
_Key = tuple[tuple[float, ...], str, tuple[str, ...]]


@dataclass(slots=True)
class _Place:
    """A host, and who may be asked there, the youngest first. `gone`: who leaves already."""

    cluster: Cluster
    job: Job
    host: Host
    ready: Sequence[Allocation]
    gone: Sequence[Allocation]
    free: int  # GPUs, once those are gone
    tries: int = 0
    shut: bool = False  # it has no room though all of them leave
    least: int | None = None  # so many must leave at least, by GPUs; None: all are not enough
    _kinds: list[list[Allocation]] = field(default_factory=list)

    def works(self, victims: Iterable[Allocation]) -> bool:
        """Whether the job fits once these have left too."""
        self.tries += 1
        return fits_without(self.cluster, self.host, self.job, (*self.gone, *victims))

    def failed(self) -> None:
        """A set was not enough. Where all of them are not, no other is: save for who wants to be near one of them."""
        rules = self.job.request.rules
        if self.tries == 1 and not (rules is not None and rules.near):
            self.shut = not self.works(self.ready)

    def __post_init__(self) -> None:
        """Reckoned once."""
        have = accumulate(sorted((len(a.units) for a in self.ready), reverse=True), initial=self.free)
        self.least = next((number for number, gpus in enumerate(have) if gpus >= self.job.request.gpus), None)

    def sets(self, size: int) -> list[tuple[_Key, Victims]]:
        """Those with GPUs enough, the youngest first; of no queue more is taken back than it has borrowed."""
        if self.shut or self.least is None or not self.least <= size <= len(self.ready):
            return []
        if not self._kinds:
            own = {a.id for a in self.ready if guarantees(self.cluster, self.job, a)}  # for them the order counts
            self._kinds = kinds(self.host, self.ready, own)
        able = (youngest_first(victims) for victims in islice(sets_of(size, self._kinds), SETS))
        found = [v for v in able if self._enough(v) and loans_only(self.cluster, self.job, v)]
        return sorted(((ages(v), self.host.name, tuple(sorted(a.id for a in v))), v) for v in found)

    def _enough(self, victims: Sequence[Allocation]) -> bool:
        return self.free + sum(len(a.units) for a in victims) >= self.job.request.gpus

    def orders(self) -> Iterator[list[Allocation]]:
        """In which they may be asked one after the other: first those who have most, or the youngest."""
        for order in (largest_first(self.ready), self.ready):
            yield within_loans(self.cluster, self.job, order)


def search(cluster: Cluster, job: Job, hosts: Sequence[Host], eligible: Eligible) -> Work[Found | None]:
    """A host and who must leave it: the smallest set that there is, the youngest of those; ties end in names."""
    places: list[_Place] = []
    for number, host in enumerate(hosts):
        ready, gone = on_host(cluster, host, eligible), leaving(cluster, host, Claim(host.name))
        free = len(host.units.keys() - host.held.keys()) + sum(len(a.units) for a in gone)
        if ready:
            places.append(_Place(cluster, job, host, ready, gone, free))
        if number % _LOOKED == 0:
            yield 1
    found = yield from _small(places)
    if found is None:
        found = yield from _large(places)
    return found


def _small(places: Sequence[_Place]) -> Work[Found | None]:
    """Sets of up to MOST, by size and age."""
    left = TRIES
    for size in range(1, MOST + 1):
        sets = []
        for number, place in enumerate(places):
            if mine := place.sets(size):
                sets.append([(*one, number) for one in mine])
                yield 1 + len(mine) // _SETS
        for _, victims, number in merge(*sets):
            place = places[number]
            if place.shut:
                continue
            before = place.tries
            if place.works(victims):
                return place.host.name, (yield from needed(victims, place.works))
            place.failed()
            left -= place.tries - before
            yield place.tries - before
            if left <= 0:
                return None
    return None


def _large(places: Sequence[_Place]) -> Work[Found | None]:
    """Larger ones, first where by GPUs the fewest must leave."""
    best: tuple[int, tuple[float, ...], str, Victims] | None = None
    able = [(place.least, place.host.name, place) for place in places if place.least is not None and not place.shut]
    found, left = 0, TRIES
    for least, name, place in sorted(able, key=itemgetter(0, 1)):
        if found == LARGE or left <= 0 or (best is not None and best[0] < least):
            break
        before = place.tries
        victims = yield from greedy(place.orders(), place.works)
        left -= place.tries - before
        if victims is None:
            continue
        found += 1
        if best is None or (len(victims), ages(victims), name) < best[:3]:
            best = len(victims), ages(victims), name, victims
    return None if best is None else best[2:]
