"""Whether any host that is known could ever take a request, were it empty, whole and open.

A host is known once its agent has told what it has, and stays so: one that is down, cordoned or in maintenance may come
back. Units count however they are now, as they may be mended. So this must never call impossible what such a host could
do one day as it is built and set up; hosts of one kind are asked once.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from ..gangs.known import too_large
from ..state.cluster import Cluster
from ..state.events import InventoryChanged
from ..state.facts import InventoryFact, UnitReport, UnitState
from ..state.hosts import Host
from ..state.jobs import Party, Request
from ..state.rules import HOST
from ..state.tables import HostState
from ..step import step
from .fit import Fit, fit
from .nearest import Miss, nearest

ANSWERS_KEPT = 1024  # shapes; all are forgotten when one more comes
Kind = tuple[object, ...]
AtHand = tuple[frozenset[str], frozenset[str], frozenset[int]]  # GPU models, images, sizes of hugepages


@dataclass(slots=True)
class _Alike:
    """Hosts of one kind, and one of them as it would be: empty, whole and open."""

    names: set[str]
    host: Host
    kind: Kind


@dataclass(slots=True)
class Known:
    """See the module docstring."""

    _kind_of: dict[str, Kind] = field(default_factory=dict)
    _alike: dict[Kind, _Alike] = field(default_factory=dict)
    _answers: dict[Request, Miss | None] = field(default_factory=dict)
    _at_hand: AtHand | None = None
    _of_gangs: dict[Party, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._kind_of)

    def update(self, name: str, fact: InventoryFact | None) -> None:
        """A host tells what it has; or it is forgotten."""
        before, after = self._kind_of.get(name), _kind(fact) if fact is not None else None
        if before == after and not (before is not None and self._alike[before].host.name == name):
            return
        if before != after:
            self._answers.clear()
            self._at_hand = None
            self._of_gangs.clear()
        if before is not None:
            self._leave(name, before)
        if fact is not None and after is not None:
            alike = self._alike.get(after)
            if alike is None:
                alike = self._alike[after] = _Alike({name}, _empty(name, fact), after)
            self._kind_of[name] = alike.kind  # the same object for all of them
            alike.names.add(name)
            if name < alike.host.name:  # whoever speaks for them does not depend on who came first
                alike.host = _called(alike.host, name)

    def _leave(self, name: str, kind: Kind) -> None:
        del self._kind_of[name]
        alike = self._alike[kind]
        alike.names.discard(name)
        if not alike.names:
            del self._alike[kind]
        elif alike.host.name == name:
            alike.host = _called(alike.host, min(alike.names))

    def at_hand(self) -> AtHand:
        """What any host has."""
        if self._at_hand is None:
            facts = [alike.host.inventory for alike in self._alike.values() if alike.host.inventory is not None]
            models = frozenset(unit.model for fact in facts for unit in fact.units)
            images = frozenset(name for fact in facts for name in fact.images)
            sizes = frozenset(pages.size_kib for fact in facts for pages in fact.hugepages if pages.total)
            self._at_hand = models, images, sizes
        return self._at_hand

    def impossible(self, request: Request) -> Miss | None:
        """What comes nearest, if no host could ever take it; None: one could, or none is known."""
        if request not in self._answers:
            if len(self._answers) >= ANSWERS_KEPT:
                self._answers.clear()
            self._answers[request] = self._ask(request)
        return self._answers[request]

    def too_large(self, party: Party, request: Request) -> str:
        """What comes nearest, if all known hosts together could never take a gang of this shape; "": they could.

        Each of its members alone, `request`, is one that some host could take.
        """
        if party not in self._of_gangs:
            if len(self._of_gangs) >= ANSWERS_KEPT:
                self._of_gangs.clear()
            self._of_gangs[party] = too_large(party, request, self._kinds(request)) if self._alike else ""
        return self._of_gangs[party]

    def _kinds(self, request: Request) -> list[tuple[Host, int]]:
        """One host of each kind, by name, and how many of them the request may mean."""
        wanted, unwanted = _named(request)
        found = [(a.host, sum(_meant(n, wanted, unwanted) for n in a.names)) for a in self._alike.values()]
        return sorted(found, key=lambda one: one[0].name)

    def _ask(self, request: Request) -> Miss | None:
        if (rules := request.rules) is not None and rules.near:  # whoever it is to be near may come yet
            request = replace(request, rules=replace(rules, near=()))
        verdicts = []
        for host in self._hosts(request):
            found = fit(host, request)
            if isinstance(found, Fit):
                return None
            verdicts.append((host, found))
        return nearest(verdicts, request)

    def _hosts(self, request: Request) -> list[Host]:
        """One of each kind, by name: one that the request may mean, if it names hosts."""
        wanted, unwanted = _named(request)
        found = []
        for alike in self._alike.values():
            host = alike.host
            if wanted or unwanted:
                meant = (n for n in alike.names if _meant(n, wanted, unwanted))
                host = _called(host, min(meant, default=host.name))
            found.append(host)
        return sorted(found, key=lambda host: host.name)


def _named(request: Request) -> tuple[list[str], list[str]]:
    """Names of hosts that it may mean, and that it does not."""
    rules = request.rules
    if rules is None:
        return [], []
    return [v for name, v in rules.hosts if name == HOST], [v for name, v in rules.not_hosts if name == HOST]


def _meant(name: str, wanted: list[str], unwanted: list[str]) -> bool:
    return all(fnmatchcase(name, p) for p in wanted) and not any(fnmatchcase(name, p) for p in unwanted)


def _kind(fact: InventoryFact) -> Kind:
    """All that placement minds of a host which is empty, whole and open, save its name."""
    units = sorted((u.model, u.memory_mib, u.node, u.vendor, u.root) for u in fact.units)
    nodes = tuple((node, tuple(map(len, cores)), memory_mib) for node, cores, memory_mib in fact.nodes)
    pages = tuple((p.node, p.size_kib, p.total) for p in fact.hugepages)
    return tuple(units), nodes, pages, fact.images, fact.labels


def _empty(name: str, fact: InventoryFact) -> Host:
    units = tuple(replace(unit, unfit="") for unit in fact.units)
    pages = tuple(replace(found, free=found.total) for found in fact.hugepages)
    cluster = Cluster()
    step(cluster, InventoryChanged(name, replace(fact, units=units, hugepages=pages)), 0.0)
    host = cluster.hosts[name]
    host.state, host.session = HostState.READY, fact.session
    host.reports = {unit.id: UnitReport(UnitState.FREE, fact.session, "") for unit in units}
    return host


def _called(host: Host, name: str) -> Host:
    made = copy(host)
    made.name = name
    return made
