"""Hosts in equal states give equal answers, so a shape is asked about once for all that are alike.

A state is all that `fit` and the valuation look at on one host, which is not its name. Hosts of one make pass through
the same few states again and again: each answer also leads on to the state that a host is in once it was taken. Who
lives there, who may not, and how many start there are no part of a state: they are looked at before it. A shape with
rules is none of ours, as they look at more.

It must never answer other than `fit` would: whatever changes a state makes another version of the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..state.facts import InventoryFact, UnitState
from ..state.hosts import Host
from ..state.jobs import Request
from .fit import Fit, fit
from .valuation import NOTHING_LOST, Cost, Valuation

KEPT = 4096  # states that were met; all are forgotten when there are more

_Node = tuple[frozenset[tuple[int, ...]], int, tuple[tuple[int, int], ...]]  # free: cores, MiB, MiB of pages by size
_Key = tuple[int, tuple[str, ...], tuple[str, ...], tuple[_Node, ...]]  # make; units: not held, unfit of them; nodes


@dataclass(slots=True, eq=False)
class Answer:
    """What a host in one state gives to one shape. `cost` is as of an `epoch` of the values."""

    fit: Fit | None
    cost: Cost = NOTHING_LOST
    epoch: int = -1
    after: State | None = None  # in which a host is that was asked and gave it; None: not seen yet


@dataclass(slots=True, eq=False)
class State:
    """See the module docstring."""

    answers: dict[Request, Answer] = field(default_factory=dict)


@dataclass(slots=True)
class Alike:
    """See the module docstring. Belongs to one cluster."""

    _of: dict[str, tuple[int, State]] = field(default_factory=dict)  # by host, as of its version
    _states: dict[_Key, State] = field(default_factory=dict)
    _makes: dict[tuple[object, ...], int] = field(default_factory=dict)
    _make_of: dict[str, tuple[InventoryFact | None, int]] = field(default_factory=dict)  # by host

    def answer(self, host: Host, request: Request, values: Valuation) -> Answer:
        """What the host, if it is open to all, gives to a shape without rules."""
        state = self.state(host)
        found = state.answers.get(request)
        if found is None:
            given = fit(host, request)
            found = state.answers[request] = Answer(given if isinstance(given, Fit) else None)
        if found.epoch != values.epoch and found.fit is not None:
            found.cost, found.epoch = values.cost(host, found.fit, request), values.epoch
        return found

    def state(self, host: Host) -> State:
        """The state that the host is in."""
        known = self._of.get(host.name)
        if known is None or known[0] != host.version:
            known = self._of[host.name] = host.version, self._look(host)
        return known[1]

    def taken(self, host: Host, request: Request, given: Fit) -> None:
        """Just now the host gave this to a job of the shape, and nothing else has changed on it."""
        version, state = self._of.get(host.name, (-1, None))
        if state is None or version != host.version - 1:
            return
        found = state.answers.get(request)
        if found is None or found.fit is not given:
            return
        if found.after is None:
            found.after = self._look(host)
        self._of[host.name] = host.version, found.after

    def _look(self, host: Host) -> State:
        key = self._key(host)
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= KEPT:
                self._states.clear()
                self._of.clear()  # they lead to all others
            state = self._states[key] = State()
        return state

    def _key(self, host: Host) -> _Key:
        open_ = [name for name in host.units if name not in host.held]
        closed = [name for name in open_ if not _usable(host, name)]
        nodes = [
            (
                frozenset(node.free_cores),
                node.free_memory_mib,
                tuple(sorted((size, pool.free_mib) for size, pool in node.hugepages.items())) if node.hugepages else (),
            )
            for node in host.nodes.values()
        ]
        return self._make(host), tuple(open_), tuple(closed), tuple(nodes)

    def _make(self, host: Host) -> int:
        """A number for what its inventory says, as far as it matters here: few have many hosts."""
        known = self._make_of.get(host.name)
        if known is None or known[0] is not host.inventory:
            said = (
                host.inventory.images if host.inventory is not None else None,
                tuple([(u.id, u.model, u.memory_mib, u.node, bool(u.unfit)) for u in host.units.values()]),
                tuple([(node.id, node.cores) for node in host.nodes.values()]),
            )
            known = self._make_of[host.name] = host.inventory, self._makes.setdefault(said, len(self._makes))
        return known[1]


def _usable(host: Host, name: str) -> bool:
    report = host.reports.get(name)
    if report is None or report.session != host.session or report.state is not UnitState.FREE:
        return False
    return name not in host.sick
