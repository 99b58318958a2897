"""Whether all known hosts together could ever take a gang, were they empty, whole and open: counted by kinds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..fitting.scratch import without
from ..state.hosts import Host
from ..state.jobs import Party, Request
from ..state.rules import HOST
from .arrange import PCIE_ROOT, Ask, cell_of, seats


def too_large(party: Party, request: Request, kinds: Sequence[tuple[Host, int]]) -> str:
    """How far they come, if not all members have room; "": they have. `kinds`: a host of each, and how many there are.

    Whom members are to be near may come yet.
    """
    if (rules := request.rules) is not None:  # which hosts are meant by name was counted already
        hosts, not_hosts = (tuple(p for p in labels if p[0] != HOST) for labels in (rules.hosts, rules.not_hosts))
        request = replace(request, rules=replace(rules, near=(), hosts=hosts, not_hosts=not_hosts))
    ask = Ask(request, spread=party.spread, pack=party.pack)
    best, where = 0, ""
    for value, group in _groups(ask, kinds):
        room = _room(ask, group, party.count)
        if room >= party.count:
            return ""
        if room > best:
            best, where = room, value
    return f"of its {party.count} members {best or 'none'} would have room{_in_words(ask, where)}"


def _groups(ask: Ask, kinds: Sequence[tuple[Host, int]]) -> Iterator[tuple[str, list[tuple[Host, int]]]]:
    """The hosts of which all members must be, and what these have in common."""
    if not ask.pack:
        yield "", list(kinds)
    elif ask.pack in (HOST, PCIE_ROOT):
        yield from ((host.name, [(host, min(1, count))]) for host, count in kinds)
    else:
        by_value: dict[str, list[tuple[Host, int]]] = {}
        for host, count in kinds:
            if value := cell_of(host, ask.pack):
                by_value.setdefault(value, []).append((host, count))
        yield from sorted(by_value.items())


def _room(ask: Ask, group: Sequence[tuple[Host, int]], most: int) -> int:
    """How many members have room on them, at least; no more are counted than `most`."""
    room, cells = 0, set()
    for host, count in group:
        found = seats(ask, without(host, ()), most) if count else []
        if ask.spread in ("", HOST, PCIE_ROOT):
            room += len(found) * count
        else:
            cells |= {seat.cell for seat in found}
            room = len(cells)
        if room >= most:
            break
    return room


def _in_words(ask: Ask, where: str) -> str:
    spread = f", one on each {_name(ask.spread)}" if ask.spread else ""
    if ask.pack in (HOST, PCIE_ROOT):
        return f" on one {_name(ask.pack)}{f', such as of {where}' if where else ''}{spread}"
    return (f" on {ask.pack} {where}" if ask.pack and where else " on all of them together") + spread


def _name(kind: str) -> str:
    return "PCIe root" if kind == PCIE_ROOT else kind
