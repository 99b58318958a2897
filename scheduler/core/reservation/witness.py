"""Finding room for several restarts at once: an assignment to hosts with exact resources, or that none was found.

It must never return an assignment that would not hold: each restart in it was taken, by `fit`, from a copy of its host
on which all the others of that host are taken too. That none exists is said only by a search that was complete; one
that reached its bound says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..fitting.fit import Fit, fit
from ..state.hosts import Host
from ..state.jobs import NumaPolicy, Request
from .room import Rooms, Take, occupy, trial

FITS_MAX = 400  # questions to hosts in one search
STATES_MAX = 1000  # partial assignments in one: answers are kept, so many may be looked at with few questions
_NUMA = {NumaPolicy.REQUIRED: 0, NumaPolicy.PREFERRED: 1, NumaPolicy.NONE: 2}


def in_order(wanted: Iterable[Request]) -> tuple[Request, ...]:
    """Largest and pickiest first: those that find a place last are the easy ones."""
    return tuple(sorted(wanted, key=size))


def size(r: Request) -> tuple[object, ...]:
    """A total order of requests."""
    hard = (-r.gpus, not r.model, _NUMA[r.numa], -r.cpus, -r.memory_mib, -r.gpu_memory_mib)
    return *hard, r.model, r.image, r.hugepage_size_kib, "" if r.rules is None else repr(r.rules)


@dataclass(frozen=True, slots=True)
class Found:
    """`takes` None: no assignment was found; `complete`: as none exists, not as the search was given up."""

    takes: tuple[Take, ...] | None
    complete: bool = True


@dataclass(slots=True)
class _Search:
    rooms: Rooms
    avoid: Collection[str]
    left: int
    states: int = STATES_MAX

    @property
    def over(self) -> bool:
        """Its bound is reached."""
        return self.left <= 0 or self.states <= 0

    def ask(self, name: str, made: Host | None, request: Request) -> Fit | None:
        """Whether the host, or the copy of it that is in use, takes the request too."""
        self.left -= 1
        if made is None:
            return self.rooms.fit(name, request)
        found = fit(made, request)
        return found if isinstance(found, Fit) else None


def find(rooms: Rooms, wanted: Sequence[Request], avoid: Collection[str], kept: Sequence[Take] = ()) -> Found:
    """Room for all of `wanted` (in order), on no host of `avoid`; `kept` are takes that hold, for some of it."""
    if not wanted:
        return Found(())
    search = _Search(rooms, avoid, FITS_MAX)
    missing = list((Counter(wanted) - Counter(take.request for take in kept)).elements())
    if kept and (takes := _greedy(search, in_order(missing), kept, emptiest=True)) is not None:
        return Found(takes)
    if rooms.too_few(wanted, avoid):
        return Found(None)
    for emptiest in (True, False):
        if (takes := _greedy(search, wanted, (), emptiest=emptiest)) is not None:
            return Found(takes)
        if search.left <= 0:
            return Found(None, complete=False)
    search.left = FITS_MAX
    return _Exact(search, wanted).run()


def most(rooms: Rooms, wanted: Sequence[Request], avoid: Collection[str]) -> tuple[Take, ...]:
    """Room for some of `wanted`, each in turn where it finds any."""
    search = _Search(rooms, avoid, FITS_MAX)
    made: dict[str, Host] = {}
    takes = (_first(search, request, made, emptiest=False) for request in wanted)
    return tuple(take for take in takes if take is not None)


def _greedy(
    search: _Search, wanted: Sequence[Request], kept: Sequence[Take], *, emptiest: bool
) -> tuple[Take, ...] | None:
    made: dict[str, Host] = {}
    for take in kept:
        made[take.host] = made.get(take.host) or trial(search.rooms.host(take.host))
        occupy(made[take.host], take)
    takes = list(kept)
    for request in wanted:
        found = _first(search, request, made, emptiest=emptiest)
        if found is None:
            return None
        takes.append(found)
    return tuple(takes)


def _first(search: _Search, request: Request, made: dict[str, Host], *, emptiest: bool) -> Take | None:
    """The first host that takes the request, those in use first."""
    for name in _hosts(search, request, made, emptiest=emptiest):
        if search.left <= 0:
            return None
        found = search.ask(name, made.get(name), request)
        if found is not None:
            take = Take(request, name, found)
            if name not in made:
                made[name] = trial(search.rooms.host(name))
            occupy(made[name], take)
            return take
    return None


def _hosts(search: _Search, request: Request, made: Collection[str], *, emptiest: bool) -> Iterator[str]:
    yield from sorted(made)
    for name in search.rooms.candidates(request, search.avoid, emptiest=emptiest):
        if name not in made:
            yield name


@dataclass(slots=True)
class _Exact:
    """Tries every assignment, hosts of one kind being alike, until one holds, or the bound is reached."""

    search: _Search
    wanted: Sequence[Request]
    used: dict[str, tuple[Take, ...]] = field(default_factory=dict)
    failed: set[object] = field(default_factory=set)
    packed: dict[tuple[str, tuple[Request, ...]], tuple[Take, ...] | None] = field(default_factory=dict)

    def _kind(self, name: str) -> object:
        """Where more is demanded than amounts, each host is its own kind: labels and neighbours differ."""
        return name if any(request.rules is not None for request in self.wanted) else self.search.rooms.kind(name)

    def run(self) -> Found:
        if self._from(0):
            return Found(tuple(take for _, takes in sorted(self.used.items()) for take in takes))
        return Found(None, complete=not self.search.over)

    def _from(self, index: int) -> bool:
        if index == len(self.wanted):
            return True
        self.search.states -= 1
        state = index, frozenset(Counter(self._load(name) for name in self.used).items())
        if state in self.failed:
            return False
        request = self.wanted[index]
        for name in self._choices(request):
            if self.search.over:
                return False
            before = self.used.get(name, ())
            takes = self._pack(name, before, request)
            if takes is None:
                continue
            self.used[name] = takes
            if self._from(index + 1):
                return True
            if before:
                self.used[name] = before
            else:
                del self.used[name]
        self.failed.add(state)
        return False

    def _choices(self, request: Request) -> Iterator[str]:
        """Hosts in use, and one of each kind that is not."""
        loads = set()
        for name in sorted(self.used):
            if (load := self._load(name)) not in loads:
                loads.add(load)
                yield name
        kinds = set()
        for name in self.search.rooms.candidates(request, self.search.avoid, emptiest=False):
            if name not in self.used and (kind := self._kind(name)) not in kinds:
                kinds.add(kind)
                yield name

    def _load(self, name: str) -> tuple[object, tuple[Request, ...]]:
        """What kind of host, with what on it."""
        return self._kind(name), in_order(take.request for take in self.used[name])

    def _pack(self, name: str, before: tuple[Take, ...], request: Request) -> tuple[Take, ...] | None:
        """All of this on one host, in whatever order fits."""
        wanted = in_order([*(take.request for take in before), request])
        key = name, wanted
        if key not in self.packed:
            self.packed[key] = self._any_order(name, self.search.rooms.host(name), wanted)
        return self.packed[key]

    def _any_order(self, name: str, made: Host, wanted: tuple[Request, ...]) -> tuple[Take, ...] | None:
        if not wanted:
            return ()
        for request in dict.fromkeys(wanted):
            found = self.search.ask(name, made, request) if self.search.left > 0 else None
            if found is None:
                continue
            take = Take(request, name, found)
            index = wanted.index(request)
            rest = self._any_order(name, trial(made, [take]), (*wanted[:index], *wanted[index + 1 :]))
            if rest is not None:
                return take, *rest
        return None
