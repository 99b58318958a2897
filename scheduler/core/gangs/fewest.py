"""The fewest victims that make room for all members of a gang, on whatever hosts: the search behind `make_room.py`.

On each host it finds the smallest set of victims that makes room for one member, for two, and so on; of sets of one
size the one whose oldest VM is the youngest. Sets of more than MOST are found greedily: of those nobody could stay, if
as many members are to come (`queueing/sets.py`). How many members go to which host is then chosen so that all victims
together are the fewest, and of those the youngest. Both costs add up host by host and keep their order when the same is
added to both, so dynamic programming over hosts (over what `spread` names, within each that `pack` names) is exact for
the hosts that it looks at. Those are the ones where, at a glance, the fewest must leave for one member.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from operator import itemgetter

from ..fitting.ranking import free_units
from ..fitting.scratch import without
from ..queueing.claims import leaving
from ..queueing.sets import kinds, largest_first, needed, sets_of, youngest_first
from ..queueing.victims import Victims
from ..state.books import Claim
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..work import Work
from .arrange import PCIE_ROOT, Ask, cell_of, seats, shuns
from .costs import Cost, Option, spread_out

HOSTS = 16  # that are looked at, or twice as many as the gang needs at least, if that is more
MOST = 8  # victims on one host, in sets that are all tried
SETS = 300  # of victims on one host and of one size
TRIES = 600  # copies of hosts, and members on them, for one gang: some 50 ms

Rooms = dict[str, tuple[int, Victims]]  # by host: for how many members there is room once these have left
_NEVER = 1_000_000
_GLANCES, _LOOKED = 50, 10  # hosts that are glanced at in the time of a try, and looked through


@dataclass(slots=True)
class Search:
    """One gang's. `ready`: by host who may be asked there, the youngest first; `left`: how many more tries it has."""

    cluster: Cluster
    ask: Ask
    count: int
    ready: dict[str, list[Allocation]] = field(default_factory=dict)
    left: int = TRIES
    inexact: bool = False  # not all sets of victims were looked at
    _gone: dict[str, list[Allocation]] = field(default_factory=dict)

    def fewest(self, hosts: Sequence[Host]) -> Work[Rooms | None]:
        """Where the members go, and who must leave for them; None: nothing was found."""
        best: tuple[Cost, list[Option]] | None = None
        groups = list(self._groups(hosts))
        yield 1 + len(hosts) // _GLANCES
        for group in groups:
            near = yield from self._nearest(group)
            yield 1 + len(group) // _GLANCES
            cells = yield from self._cells(near)
            found = yield from spread_out(self.count, cells)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        if best is None:
            return None
        return (yield from self.trimmed({option.host: (option.count, option.victims) for option in best[1]}))

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

    def _nearest(self, hosts: Sequence[Host]) -> Work[list[Host]]:
        """Those where the fewest must leave for one member, by GPUs."""
        gpus, need = self.ask.request.gpus, dict[str, int]()
        for number, host in enumerate(hosts):
            need[host.name] = self._needs(host)
            yield int(number % _LOOKED == 0)
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

    def _cells(self, hosts: Sequence[Host]) -> Work[list[list[Option]]]:
        """What there is to choose from: of each cell one option. A cell is a host, or what `spread` names."""
        by_cell: dict[str, list[Option]] = {}
        label = self.ask.spread if self.ask.spread != PCIE_ROOT else ""
        for host in hosts:
            options = yield from self._options(host)
            if self.left <= 0:  # of this host not all is known; what was found of others is
                break
            by_cell.setdefault(cell_of(host, label) if label else host.name, []).extend(options)
        return [sorted(options, key=lambda o: (o.cost, o.host, o.count)) for options in by_cell.values() if options]

    def _options(self, host: Host) -> Work[list[Option]]:
        """For each number of members the smallest set of victims that makes room for so many, the youngest of those."""
        ready = self.ready.get(host.name, [])
        have = yield from self._room(host, ())
        found = [Option(host.name, count, (), Cost()) for count in range(1, have + 1)]
        if not ready or have >= self.count or not self._enough_gpus(host, ready, have + 1):
            return found
        most = yield from self._room(host, tuple(ready))
        largest, alike = largest_first(ready), kinds(host, ready)
        for size in range(1, min(MOST, len(ready)) + 1):
            if have >= most:
                break
            if not self._enough_gpus(host, largest[:size], have + 1):
                continue
            sets = list(map(youngest_first, islice(sets_of(size, alike), SETS)))
            self.inexact |= len(sets) == SETS
            costs = [(Cost.of(host.name, v), v) for v in sets if self._enough_gpus(host, v, have + 1)]
            for cost, victims in sorted(costs, key=itemgetter(0)):
                if not self._enough_gpus(host, victims, have + 1):
                    continue
                if (room := (yield from self._room(host, victims))) <= have:
                    continue
                found += [Option(host.name, count, victims, cost) for count in range(have + 1, room + 1)]
                have = room
        return [*found, *(yield from self._large(host, largest, have, most))]

    def _large(self, host: Host, ready: Sequence[Allocation], have: int, most: int) -> Work[list[Option]]:
        """The same with more victims, for more members than `have`: as many of `ready` as it takes."""
        found: list[Option] = []
        for size in range(MOST + 1, len(ready) + 1):
            if have >= most or self.left <= 0:
                break
            if not self._enough_gpus(host, ready[:size], have + 1):
                continue
            room = yield from self._room(host, ready[:size])
            for count in range(have + 1, room + 1):
                victims = youngest_first(ready[:size])
                if self._enough_gpus(host, ready[: size - 1], count):  # fewer might do
                    self.inexact = True
                    victims = yield from self._needed(host, victims, count)
                found.append(Option(host.name, count, victims, Cost.of(host.name, victims)))
            have = max(have, room)
        return found

    def _needed(self, host: Host, victims: Victims, count: int) -> Work[Victims]:
        """Of the victims those that are needed for so many members."""

        def works(fewer: Victims) -> bool:
            return self._enough_gpus(host, fewer, count) and self._try(host, fewer) >= count

        return (yield from needed(victims, works, 1 + count))

    def trimmed(self, rooms: Rooms) -> Work[Rooms]:
        """Without those who could stay, since members have room beside others on another host.

        Where all sets of victims were looked at there are none such: fewer would have been found.
        """
        if not self.inexact:
            return rooms
        have = {name: self._seats(self.cluster.hosts[name], victims) for name, (_, victims) in sorted(rooms.items())}
        yield self.count + len(rooms)
        apart = self.ask.spread not in ("", PCIE_ROOT)  # of each of these one member, whoever leaves
        spare = 0 if apart else sum(have.values()) - self.count
        trimmed, left = {}, self.count
        for name, (_, victims) in sorted(rooms.items()):
            for victim in reversed(victims):
                fewer = tuple(other for other in victims if other is not victim)
                room = self._seats(self.cluster.hosts[name], fewer)
                if have[name] - room <= spare:
                    spare, have[name], victims = spare - have[name] + room, room, fewer  # noqa: PLW2901
                yield 1 + room
            if count := min(have[name], left):
                trimmed[name] = count, victims
                left -= count
        return trimmed

    def _enough_gpus(self, host: Host, victims: Sequence[Allocation], count: int) -> bool:
        """Whether so many members find GPUs at all, at a glance."""
        return self._free(host) + sum(len(a.units) for a in victims) >= count * self.ask.request.gpus

    def _room(self, host: Host, victims: Sequence[Allocation]) -> Work[int]:
        """For how many members there is room, if these leave too; no more are counted than the gang has."""
        before = self.left
        found = self._try(host, victims)
        yield before - self.left
        return found

    def _try(self, host: Host, victims: Sequence[Allocation]) -> int:
        if self.left <= 0:
            return 0
        found = self._seats(host, victims)
        self.left -= 1 + found
        return found

    def _seats(self, host: Host, victims: Sequence[Allocation]) -> int:
        then = without(host, (*self.leaving(host), *victims))
        return 0 if shuns(self.ask, then) else len(seats(self.ask, then, self.count))
