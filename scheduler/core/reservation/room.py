"""The room that hosts have for restarts: an index of free units, and copies of hosts on which restarts are tried.

It decides nothing. What a host can take is `fit`'s word, on a copy of the host's free state without the restarts that
were tried before. The index only says where to ask first, and what cannot be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field, replace

from ..fitting.fit import Fit, closed, fit
from ..fitting.ruled import host_refusal
from ..fitting.scratch import without
from ..state.cluster import Cluster
from ..state.facts import UnitState
from ..state.hosts import Host, Node
from ..state.hugepages import Pool
from ..state.jobs import Request

ANY = ""  # the model of a request that takes any
_TRIED = "?"  # holds units of a copy


@dataclass(frozen=True, slots=True)
class Take:
    """A restart, tried: exact resources on one host."""

    request: Request
    host: str
    fit: Fit


def trial(host: Host, takes: Iterable[Take] = ()) -> Host:
    """A copy of the host with `takes` taken from what is free."""
    made = copy(host)
    made.held = dict(host.held)
    made.allocations = set(host.allocations)
    made.nodes = {
        node.id: Node(node.id, node.cores, node.memory_mib, set(node.free_cores), node.free_memory_mib, _pools(node))
        for node in host.nodes.values()
    }
    for take in takes:
        occupy(made, take)
    return made


def _pools(node: Node) -> dict[int, Pool]:
    return {size: replace(pool) for size, pool in node.hugepages.items()} if node.hugepages else {}


def occupy(made: Host, take: Take) -> None:
    """Take it from a copy."""
    made.allocations.add(_TRIED)
    if (rules := take.request.rules) is not None:
        made.company = made.company.copy()
        made.company.labels.update(rules.own)
        made.company.whole.update({_TRIED} if rules.whole_host else ())
    made.held.update(dict.fromkeys(take.fit.units, _TRIED))
    cores = set(take.fit.cores)
    for node_id, mib in zip(take.fit.nodes, take.fit.memory_mib, strict=True):
        node = made.nodes[node_id]
        node.free_cores -= cores
        if size_kib := take.request.hugepage_size_kib:
            node.hugepages[size_kib].lend(mib, seen=False)
        else:
            node.free_memory_mib -= mib


def standing(host: Host, takes: Iterable[Take]) -> list[Take]:
    """Those of one host's `takes` for which all is still free, all at the same time."""
    if closed(host) is not None or host.inventory is None:
        return []
    lent: Counter[tuple[int, int]] = Counter()
    takes = [take for take in takes if take.request.image in host.inventory.images and _stands(host, take, lent)]
    return _tolerable(host, takes) if any(take.request.rules is not None for take in takes) else takes


def _tolerable(host: Host, takes: Iterable[Take]) -> list[Take]:
    """Those that may be there together, with who is there."""
    made, kept = trial(host), []
    for take in takes:
        rules = take.request.rules
        if not made.company.whole and (rules is None or host_refusal(made, rules) is None):
            occupy(made, take)
            kept.append(take)
    return kept


def _stands(host: Host, take: Take, lent: Counter[tuple[int, int]]) -> bool:
    for unit in take.fit.units:
        found = host.units.get(unit)
        if found is None or host.unit_state(unit) is not UnitState.FREE or host.unfit(found):
            return False
    nodes = [host.nodes.get(node_id) for node_id in take.fit.nodes]
    if not all(any(n is not None and core in n.free_cores for n in nodes) for core in take.fit.cores):
        return False
    size_kib = take.request.hugepage_size_kib
    for node, mib in zip(nodes, take.fit.memory_mib, strict=True):
        if node is None or node.free_mib(size_kib) < lent[node.id, size_kib] + mib:
            return False
    lent.update({(n, size_kib): mib for n, mib in zip(take.fit.nodes, take.fit.memory_mib, strict=True)})
    return True


@dataclass(slots=True)
class Rooms:
    """Open hosts by their free units. `overlay`: a host as it would be, in place of the one of that name."""

    cluster: Cluster
    overlay: Host | None = None
    free: dict[str, dict[str, int]] = field(default_factory=dict)  # by host: units by model; ANY: of all models
    index: dict[str, dict[int, list[str]]] = field(default_factory=dict)  # by model and count: names, sorted
    refused: dict[Request, dict[str, int]] = field(default_factory=dict)  # by host, as of its version
    kinds: dict[str, tuple[int, object]] = field(default_factory=dict)  # by host: version, `kind`
    views: dict[str, tuple[int, Host]] = field(default_factory=dict)  # by host: version, `seen`

    def host(self, name: str) -> Host:
        """The host, as it is to be seen."""
        if self.overlay is not None and self.overlay.name == name:
            return self.overlay
        return self.seen(self.cluster.hosts[name])

    def seen(self, host: Host) -> Host:
        """The host without its preemptible jobs, which leave when a restart needs their room (lent.py)."""
        known = self.views.get(host.name)
        if known is not None and known[0] == host.version:
            return known[1]
        jobs, there = self.cluster.jobs, (self.cluster.allocations[a] for a in sorted(host.allocations))
        lent = [a for a in there if a.job in jobs and jobs[a.job].terms.preemptible]
        made = without(host, lent) if lent else host
        self.views[host.name] = host.version, made
        return made

    def update(self, host: Host) -> None:
        """Look at a host that has changed."""
        before, after = self.free.get(host.name, {}), _free_units(self.seen(host))
        if before == after:
            return
        for model in before.keys() | after.keys():
            had, has = before.get(model), after.get(model)
            if had == has:
                continue
            counts = self.index.setdefault(model, {})
            if had is not None:
                names = counts[had]
                del names[bisect_left(names, host.name)]
                if not names:
                    del counts[had]
            if has is not None:
                insort(counts.setdefault(has, []), host.name)
        self.free[host.name] = after

    def candidates(self, request: Request, avoid: Collection[str], *, emptiest: bool) -> Iterator[str]:
        """Hosts with enough free units, those with the most of them first, or those with the fewest.

        Ties go to the last name, as placement's go to the first: restarts are planned where nothing is put soon.
        """
        counts = self.index.get(request.model if request.gpus else ANY, {})
        for count in sorted((c for c in counts if c >= request.gpus), reverse=emptiest):
            for name in reversed(counts[count]):
                if name not in avoid:
                    yield name

    def fit(self, name: str, request: Request) -> Fit | None:
        """Whether the host as it is can take the request; a refusal is remembered until the host changes."""
        if self.overlay is not None and self.overlay.name == name:
            found = fit(self.overlay, request)
            return found if isinstance(found, Fit) else None
        host = self.host(name)
        refused = self.refused.setdefault(request, {})
        if refused.get(name) == host.version:
            return None
        found = fit(host, request)
        if isinstance(found, Fit):
            return found
        refused[name] = host.version
        return None

    def too_few(self, wanted: Collection[Request], avoid: Collection[str]) -> bool:
        """Whether there are too few free units for all that is wanted, wherever it is put."""
        for model, gpus in sorted({(r.model, r.gpus) for r in wanted if r.gpus}):
            need = sum(r.gpus // gpus for r in wanted if r.model == model and r.gpus >= gpus)
            have = sum(count // gpus * len(names) for count, names in self.index.get(model, {}).items())
            have -= sum(self.free.get(name, {}).get(model, 0) // gpus for name in avoid)
            if have < need:
                return True
        return False

    def kind(self, name: str) -> object:
        """Hosts of an equal kind can take the same, one like the other, if nothing but amounts is demanded."""
        host = self.host(name)
        known = self.kinds.get(name)
        if known is not None and known[0] == host.version and host is not self.overlay:
            return known[1]
        made = _kind(host)
        if host is not self.overlay:
            self.kinds[name] = host.version, made
        return made


def _free_units(host: Host) -> dict[str, int]:
    """Free units by model; nothing at all for a host that takes nothing."""
    if closed(host) is not None:
        return {}
    found = {ANY: 0}
    for unit in host.units.values():
        found.setdefault(unit.model, 0)
        if host.unit_state(unit.id) is UnitState.FREE and not host.unfit(unit):
            found[unit.model] += 1
            found[ANY] += 1
    return found


def _kind(host: Host) -> object:
    units = Counter(
        (unit.node, unit.model, unit.memory_mib)
        for unit in host.units.values()
        if host.unit_state(unit.id) is UnitState.FREE and not host.unfit(unit)
    )
    nodes = tuple(
        (
            node.id,
            tuple(sorted(Counter(map(len, node.free_cores)).items())),
            node.free_memory_mib,
            tuple((size, pool.free_mib) for size, pool in sorted(node.hugepages.items())),
        )
        for _, node in sorted(host.nodes.items())
    )
    images = host.inventory.images if host.inventory is not None else frozenset()
    return tuple(sorted(units.items())), nodes, images
