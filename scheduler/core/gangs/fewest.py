"""The fewest victims that make room for all members of a gang, on whatever hosts: the search behind `make_room.py`.

On each host it finds the smallest set of victims that makes room for one member, for two, and so on; of sets of one
size the one whose oldest VM is the youngest. How many members go to which host is then chosen so that all victims
together are the fewest, and of those the youngest. Both costs add up host by host and keep their order when the same is
added to both, so dynamic programming over hosts (over what `spread` names, within each that `pack` names) is exact for
the hosts that it looks at. Those are the ones where, at a glance, the fewest must leave for one member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import combinations, islice

from ..fitting.ranking import free_units
from ..fitting.scratch import without
from ..queueing.claims import leaving
from ..queueing.victims import Victims, ages
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from .arrange import PCIE_ROOT, Ask, cell_of, seats, shuns

HOSTS = 16  # that are looked at, or twice as many as the gang needs at least, if that is more
MOST = 8  # victims on one host
SETS = 300  # of victims on one host and of one size
TRIES = 600  # copies of hosts, and members on them, for one gang: some 50 ms

Rooms = dict[str, tuple[int, Victims]]  # by host: for how many members there is room once these have left
_NEVER = 1_000_000


@dataclass(frozen=True, slots=True, order=True)
class _Cost:
    """What is to be as small as can be."""

    count: int = 0
    ages: tuple[float, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, host: str, victims: Victims) -> _Cost:
        return cls(len(victims), ages(victims), tuple(sorted((host, a.id) for a in victims)))

    def plus(self, other: _Cost) -> _Cost:
        if not other.count:
            return self
        both = tuple(sorted((*self.ages, *other.ages), reverse=True))
        return _Cost(self.count + other.count, both, tuple(sorted((*self.names, *other.names))))


@dataclass(frozen=True, slots=True)
class _Option:
    """So many members on a host, once these have left it."""

    host: str
    count: int
    victims: Victims
    cost: _Cost


@dataclass(slots=True)
class Search:
    """One gang's. `ready`: by host who may be asked there, the youngest first; `left`: how many more tries it has."""

    cluster: Cluster
    ask: Ask
    count: int
    ready: dict[str, list[Allocation]] = field(default_factory=dict)
    left: int = TRIES
    _gone: dict[str, list[Allocation]] = field(default_factory=dict)

    def fewest(self, hosts: Sequence[Host]) -> Rooms | None:
        """Where the members go, and who must leave for them; None: nothing was found."""
        best: tuple[_Cost, list[_Option]] | None = None
        for group in self._groups(hosts):
            found = _spread_out(self.count, self._cells(self._nearest(group)))
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return None if best is None else {option.host: (option.count, option.victims) for option in best[1]}

    def then(self, rooms: Rooms) -> list[Host]:
        """These hosts, once all have left."""
        hosts = ((self.cluster.hosts[name], victims) for name, (_, victims) in sorted(rooms.items()))
        return [without(host, (*self.leaving(host), *victims)) for host, victims in hosts]

    def leaving(self, host: Host) -> list[Allocation]:
        """Who leaves it already."""
        if host.name not in self._gone:
            self._gone[host.name] = leaving(self.cluster, host, Claim(host.name))
        return self._gone[host.name]

    def _groups(self, hosts: Sequence[Host]) -> Iterator[list[Host]]:
        """The hosts of which all seats must be: by what `pack` names, where the fewest GPUs are missing first."""
        if not self.ask.pack:
            yield list(hosts)
            return
        one = self.ask.pack == PCIE_ROOT
        home = self.ask.home.rpartition("/")[0] if one else self.ask.home
        groups: dict[str, list[Host]] = {}
        for host in hosts:
            value = host.name if one else cell_of(host, self.ask.pack)
            if value and home in ("", value):
                groups.setdefault(value, []).append(host)
        wanted = self.count * self.ask.request.gpus
        missing = {value: max(0, wanted - sum(map(self._free, group))) for value, group in groups.items()}
        for value in nsmallest(HOSTS, groups, key=lambda value: (missing[value], value)):
            yield groups[value]

    def _free(self, host: Host) -> int:
        return free_units(host) + sum(len(a.units) for a in self.leaving(host))

    def _nearest(self, hosts: Sequence[Host]) -> list[Host]:
        """Those where the fewest must leave for one member, by GPUs."""
        gpus, need = self.ask.request.gpus, {host.name: self._needs(host) for host in hosts}
        able = [host for host in hosts if need[host.name] < _NEVER]
        most = max((len(host.units) for host in able), default=0)
        each = 1 if self.ask.spread not in ("", PCIE_ROOT) or not gpus else max(1, most // gpus)
        enough = max(HOSTS, 2 * -(-self.count // each))
        return nsmallest(enough, able, key=lambda host: (need[host.name], -free_units(host), host.name))

    def _needs(self, host: Host) -> int:
        free = self._free(host)
        for number, units in enumerate(sorted((len(a.units) for a in self.ready.get(host.name, ())), reverse=True)):
            if free >= self.ask.request.gpus:
                return number
            free += units
        return len(self.ready.get(host.name, ())) if free >= self.ask.request.gpus else _NEVER

    def _cells(self, hosts: Sequence[Host]) -> list[list[_Option]]:
        """What there is to choose from: of each cell one option. A cell is a host, or what `spread` names."""
        by_cell: dict[str, list[_Option]] = {}
        label = self.ask.spread if self.ask.spread != PCIE_ROOT else ""
        for host in hosts:
            options = self._options(host)
            if self.left <= 0:  # of this host not all is known; what was found of others is
                break
            by_cell.setdefault(cell_of(host, label) if label else host.name, []).extend(options)
        return [sorted(options, key=lambda o: (o.cost, o.host, o.count)) for options in by_cell.values() if options]

    def _options(self, host: Host) -> list[_Option]:
        """For each number of members the smallest set of victims that makes room for so many, the youngest of those."""
        ready = self.ready.get(host.name, [])
        have = self._room(host, ())
        most = self._room(host, tuple(ready)) if ready and have < self.count else have
        found = [_Option(host.name, count, (), _Cost()) for count in range(1, have + 1)]
        for size in range(1, min(MOST, len(ready)) + 1):
            if have >= most:
                break
            if not self._enough_gpus(host, sorted(ready, key=lambda a: -len(a.units))[:size], have + 1):
                continue
            for victims in sorted(islice(combinations(ready, size), SETS), key=lambda v: _Cost.of(host.name, v)):
                if not self._enough_gpus(host, victims, have + 1) or (room := self._room(host, victims)) <= have:
                    continue
                cost = _Cost.of(host.name, victims)
                found += [_Option(host.name, count, victims, cost) for count in range(have + 1, room + 1)]
                have = room
        return found

    def _enough_gpus(self, host: Host, victims: Sequence[Allocation], count: int) -> bool:
        """Whether so many members find GPUs at all, at a glance."""
        return self._free(host) + sum(len(a.units) for a in victims) >= count * self.ask.request.gpus

    def _room(self, host: Host, victims: Victims) -> int:
        """For how many members there is room, if these leave too; no more are counted than the gang has."""
        if self.left <= 0:
            return 0
        then = without(host, (*self.leaving(host), *victims))
        found = 0 if shuns(self.ask, then) else len(seats(self.ask, then, self.count))
        self.left -= 1 + found
        return found


def _spread_out(count: int, cells: Sequence[Sequence[_Option]]) -> tuple[_Cost, list[_Option]] | None:
    """The cheapest options, at most one of each cell, that have room for all; None: there are none."""
    best: list[tuple[_Cost, list[_Option]] | None] = [(_Cost(), []), *[None] * count]
    for options in cells:
        for have in range(count, 0, -1):  # from above: of each cell one option is taken
            for option in options:
                before = best[have - option.count] if option.count <= have else None
                if before is None:
                    continue
                cost, known = before[0].plus(option.cost), best[have]
                if known is None or cost < known[0]:
                    best[have] = cost, [*before[1], option]
    return best[count]
