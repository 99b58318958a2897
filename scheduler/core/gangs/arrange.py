"""Where the members of a gang have room together: all of them, or it says how far they come.

All members are of one shape, so on a host by itself they have room one after the other, each with exact resources: a
*seat*. Seats are taken host by host, the best first. Of what `spread` names at most one seat is taken; for `pack` all
seats must be on one, and the one that has the least room which will do is tried first. A member that may not use a host
changes seats with others if that helps (augmenting paths): so if there is an arrangement of these seats at all, it is
found.

It works on copies of hosts and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..fitting.fit import Fit, fit
from ..fitting.ruled import labels_of
from ..fitting.scratch import join, without
from ..state.hosts import Host
from ..state.jobs import Request
from ..state.rules import Labels, means

PCIE_ROOT = "pcie_root"  # as what is spread over, or packed into; all else is a label of hosts, "host" their name

Bars = Mapping[str, frozenset[str]]  # by member: hosts that it may not use


@dataclass(frozen=True, slots=True)
class Ask:
    """What members ask of hosts, all alike. `shunned` are those of their labels that somebody is to be apart from.

    `used`: what others of the gang have of what `spread` names; `home`: where they are of what `pack` names.
    """

    request: Request
    labels: Labels = ()
    shunned: Labels = ()
    spread: str = ""
    pack: str = ""
    used: frozenset[str] = frozenset()
    home: str = ""


@dataclass(frozen=True, slots=True)
class Seat:
    """Room for one member. `cell`: what it has of what `spread` names."""

    host: str
    found: Fit
    cell: str = ""


@dataclass(slots=True)
class Hosts:
    """The hosts to look at, the best first: how each takes one member by itself; and how to get it."""

    firsts: Mapping[str, Fit]
    get: Callable[[str], Host]

    def copy(self, name: str) -> Host:
        """One that may be changed."""
        return without(self.get(name), ())


def cell_of(host: Host, kind: str, units: Iterable[str] = ()) -> str:
    """The value of what `kind` names that these units of the host are on; "": nobody knows, or it is on several."""
    if kind == PCIE_ROOT:
        roots = {host.units[unit].root for unit in units if unit in host.units}
        return f"{host.name}/{next(iter(roots))}" if len(roots) == 1 and "" not in roots else ""
    return dict(labels_of(host)).get(kind, "")


def arrange(ask: Ask, hosts: Hosts, members: Mapping[str, frozenset[str]]) -> dict[str, Seat]:
    """A seat for each member, in their order; fewer, if there is no such arrangement: as many as were found."""
    best: dict[str, Seat] = {}
    for found in arranged(ask, hosts, members):
        if len(found) > len(best):
            best = found
    return best


def arranged(ask: Ask, hosts: Hosts, members: Mapping[str, frozenset[str]]) -> Iterator[dict[str, Seat]]:
    """Of each group of hosts what it has, up to the first where all have seats."""
    for group in _groups(ask, hosts, len(members)):
        found = _match(_seats(ask, hosts, group, len(members)), members)
        yield found
        if len(found) == len(members):
            return


def seats(ask: Ask, host: Host, most: int) -> list[Seat]:
    """Room for members on this copy of a host, at most so many."""
    if ask.pack == PCIE_ROOT:
        found = [list(_fill(ask, without(host, ()), root, most)) for root in _roots(ask, host)]
        enough = [one for one in found if len(one) >= most]
        return enough[0] if enough else max(found, key=len, default=[])
    return list(_several(ask, host, most))


def _several(ask: Ask, host: Host, most: int) -> Iterator[Seat]:
    if ask.spread == PCIE_ROOT:
        count = 0
        for root in _roots(ask, host):
            for seat in _fill(ask, host, root, 1) if count < most else ():
                count += 1
                yield seat
    elif not ask.spread:
        yield from _fill(ask, host, "", most)
    elif (cell := cell_of(host, ask.spread)) and cell not in ask.used:
        yield from (replace(seat, cell=cell) for seat in _fill(ask, host, "", min(1, most)))


def _fill(ask: Ask, host: Host, root: str, most: int) -> Iterator[Seat]:
    """One member after the other, on this copy; with a root, only on its units."""
    for number in range(most):
        view = host
        if root:
            view = replace(host, units={name: unit for name, unit in host.units.items() if unit.root == root})
        found = fit(view, ask.request)
        if not isinstance(found, Fit) or shuns(ask, host):
            return
        join(host, found, f"member {number} {root}", ask.request, ask.labels)
        yield Seat(host.name, found, f"{host.name}/{root}" if root else "")


def shuns(ask: Ask, host: Host) -> bool:
    """Whether somebody on the host is to be apart from members."""
    return any(means(pattern, label) for pattern in host.company.shunned for label in ask.shunned)


def _roots(ask: Ask, host: Host) -> list[str]:
    """Its PCIe roots, those with the fewest free units first: so large parts stay."""
    free: dict[str, int] = {}
    for name, unit in host.units.items():
        if unit.root:
            free[unit.root] = free.get(unit.root, 0) + (name not in host.held)
    cells = {root: f"{host.name}/{root}" for root in free}
    home = {ask.home} if ask.pack == PCIE_ROOT and ask.home else cells.values()
    able = [root for root in free if free[root] and cells[root] not in ask.used and cells[root] in home]
    return sorted(able, key=lambda root: (free[root], root))


def _groups(ask: Ask, hosts: Hosts, count: int) -> Iterator[list[str]]:
    """The hosts of which all seats must be: by what `pack` names, that with the least room first."""
    if not ask.pack:
        yield list(hosts.firsts)
        return
    one = ask.pack == PCIE_ROOT  # on one host, then
    home = ask.home.rpartition("/")[0] if one else ask.home
    groups: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    for name in hosts.firsts:
        host = hosts.get(name)
        if (value := name if one else cell_of(host, ask.pack)) and home in ("", value):
            groups.setdefault(value, []).append(name)
            free = len(host.units.keys() - host.held.keys())
            room[value] = room.get(value, 0) + (free // ask.request.gpus if ask.request.gpus else count)
    able = sorted((room[value], value) for value in groups if room[value] >= count)
    if not able and groups:  # that which comes nearest, for people
        able = [max((room[value], value) for value in groups)]
    for _, value in able:
        yield groups[value]


def _seats(ask: Ask, hosts: Hosts, group: list[str], most: int) -> Iterator[list[Seat]]:
    """Places for one member each, the best first; of each any one of its seats can be had."""
    if ask.spread and PCIE_ROOT not in (ask.spread, ask.pack):
        by_cell: dict[str, list[Seat]] = {}
        for name in group:
            cell = cell_of(hosts.get(name), ask.spread)
            if cell and cell not in ask.used:
                by_cell.setdefault(cell, []).append(Seat(name, hosts.firsts[name], cell))
        yield from by_cell.values()
        return
    for name in group:
        if PCIE_ROOT in (ask.spread, ask.pack):
            yield from ([seat] for seat in seats(ask, hosts.copy(name), most))
        else:
            yield from ([seat] for seat in _more(ask, hosts, name, most))


def _more(ask: Ask, hosts: Hosts, name: str, most: int) -> Iterator[Seat]:
    """The seats of a host, of which the first is known."""
    first = hosts.firsts[name]
    yield Seat(name, first)
    if most > 1:
        host = hosts.copy(name)
        join(host, first, "member 0", ask.request, ask.labels)
        yield from _fill(ask, host, "", most - 1)


def _match(places: Iterable[list[Seat]], members: Bars) -> dict[str, Seat]:
    """Give each place to a member that may use it, until each has one; whoever came before may change to another."""
    options: list[list[Seat]] = []
    taken: dict[str, int] = {}  # by member
    for place in places:
        options.append(place)
        _give(len(options) - 1, options, members, taken, set())
        if len(taken) == len(members):
            break
    return {m: next(s for s in options[taken[m]] if s.host not in members[m]) for m in members if m in taken}


def _give(place: int, options: list[list[Seat]], members: Bars, taken: dict[str, int], seen: set[str]) -> bool:
    """Find the place a member: one without, or one whose own place finds another."""
    able = [m for m in members if m not in seen and any(seat.host not in members[m] for seat in options[place])]
    for member in able:
        if member not in taken:
            taken[member] = place
            return True
    for member in able:
        if member in seen:
            continue
        seen.add(member)
        if _give(taken[member], options, members, taken, seen):
            taken[member] = place
            return True
    return False


def hosts_of(found: Collection[Seat]) -> str:
    """Where the seats are, in words."""
    counts: dict[str, int] = {}
    for seat in found:
        counts[seat.host] = counts.get(seat.host, 0) + 1
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in sorted(counts.items()))
