"""What a placement costs beyond what it takes: the GPUs that are as good as lost by it, for the jobs that are expected.

The worth and the prices are those of the packing core (`packing/worth.py`, `packing/pressure.py`; docs/placement.md).
The mix is that of the jobs on record: waiting, running, or finished and not forgotten yet. Their order says nothing.
As long as few are on record there is no mix, every placement costs the same, and the rest of the order decides.

It orders only; it must never say whether something fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..packing.gpus import Pattern, Patterns
from ..packing.mix import Mix
from ..packing.pressure import STEPS, prices
from ..packing.sizes import WHOLE, Shape, Totals
from ..packing.worth import Worth
from ..state.cluster import Cluster
from ..state.facts import UnitFact
from ..state.hosts import Host
from ..state.jobs import Request
from ..state.rules import Rules
from .fit import Fit

ENOUGH = 50  # jobs on record: fewer say little of what is to come
WORTH = 0.01  # of the jobs are of other shapes than in the mix that was learnt: then it is learnt anew, else it stands
AGAIN = 0.5  # the mix is learnt anew when so many more were submitted, as a share of those on record
SHAPES = 512  # the most frequent ones make the mix
GRAIN = 1000  # costs are whole thousandths of thousandths of GPU, so that rounding of the machine orders nobody

KNOWN = 200_000  # what is lost in so many cases is kept
NO_CLASS = -1  # of a host without GPUs


_Free = tuple[tuple[int, int, int], ...]  # by node: thousandths of cores, MiB, GPUs


class Cost(NamedTuple):
    """Parts of a rank: nodes that the job would be spread over, then what is lost. Both 0 while there is no mix."""

    spread: int
    lost: int


NOTHING_LOST = Cost(0, 0)


class _State(NamedTuple):
    """What is free on a host, as of its version."""

    version: int
    nodes: dict[int, tuple[int, int, int]]  # thousandths of cores, MiB, GPUs, by node
    lost: float


@dataclass(slots=True)
class Valuation:
    """See the module docstring. Belongs to one cluster."""

    enough: int = ENOUGH
    epoch: int = 0  # whatever was said in an earlier one is out of date
    _worth: Worth | None = None
    _patterns: Patterns = field(default_factory=Patterns)
    _learnt: tuple[frozenset[str], Totals, dict[Shape, float]] | None = None  # models, fleet, share of each shape
    _due: int = 0  # learn when so many jobs were submitted
    _demands: dict[tuple[int, ...], float] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)  # GPUs, by class
    _all: list[int] = field(default_factory=list)
    _free_of: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # by host: class, GPUs free, GPUs
    _steps: tuple[int, ...] = ()
    _prices: list[int] = field(default_factory=list)  # of one GPU, by class
    _states: dict[str, _State] = field(default_factory=dict)
    _known: dict[tuple[int, int, _Free], float] = field(default_factory=dict)  # what is lost, where so much is free
    _kind_of: dict[str, tuple[dict[str, UnitFact], int]] = field(default_factory=dict)  # see `kind`
    _most_of: dict[str, tuple[dict[str, UnitFact], int]] = field(default_factory=dict)  # see `_most`
    _position: int = -1  # of the cluster's movers

    def refresh(self, cluster: Cluster) -> None:
        """Take in what has changed. The mix changes between turns only: see `learn`."""
        if self._worth is None or self._position == cluster.movers.end:
            return
        moved = cluster.movers.since(self._position) if self._position >= 0 else None
        for name in moved if moved is not None else list(cluster.hosts):
            self._note(cluster.hosts[name])
        self._position = cluster.movers.end
        self._follow_prices()

    def begin(self, cluster: Cluster) -> Iterator[None]:
        """Learn the mix; if it is another, look at all hosts, one at a time. Nothing may change then."""
        self.learn(cluster)
        if self._worth is None or self._position >= 0:
            return
        for name in list(cluster.hosts):
            self._note(cluster.hosts[name])
            yield
        self._position = cluster.movers.end
        self._follow_prices()

    def learn(self, cluster: Cluster) -> None:
        """Look whether the mix is to be learnt, once more."""
        books = cluster.books
        if books.submitted < max(self._due, self.enough):
            return
        self._due = books.submitted + max(self.enough, int(AGAIN * len(cluster.jobs)))
        models = _models(cluster)
        counts: dict[Shape, int] = {}
        for request, count in books.requests.most_common(SHAPES):
            shape = _shape(request, models)
            counts[shape] = counts.get(shape, 0) + count
        fleet = books.shares.capacity
        totals = Totals(int(fleet.gpus) * WHOLE, int(fleet.cpus) * 1000, int(fleet.memory_mib))
        learnt = frozenset(models), totals, _shares(counts)
        if self._learnt is not None and self._learnt[:2] == learnt[:2] and _moved(self._learnt[2], learnt[2]) < WORTH:
            return  # what is ranked stands
        self._learnt, mix = learnt, Mix(counts)
        self._worth = Worth(mix, frozenset(models), totals)
        self._patterns = Patterns()
        self._demands = mix.demands(self._worth.classes)
        self._free, self._all = [0] * len(self._worth.classes), [0] * len(self._worth.classes)
        self._free_of.clear()
        self._kind_of.clear()
        self._states.clear()
        self._known.clear()
        self._steps, self._position, self.epoch = (), -1, self.epoch + 1

    def cost(self, host: Host, found: Fit, request: Request) -> Cost:
        """What is lost on the host if the job takes this there."""
        if self._worth is None:
            return NOTHING_LOST
        kind = self.kind(host)
        if kind == NO_CLASS:
            return Cost(len(found.nodes), 0)
        before = self._state(host, kind)
        nodes = dict(before.nodes)
        memory = (0,) * len(found.nodes) if request.hugepage_size_kib else found.memory_mib
        for node_id, memory_mib in zip(found.nodes, memory, strict=True):
            cpu_milli, free_mib, gpus = nodes[node_id]
            node = host.nodes[node_id]
            cpus = node.cpus_of(node.free_cores.intersection(found.cores))
            nodes[node_id] = cpu_milli - 1000 * cpus, free_mib - memory_mib, gpus
        for unit in found.units:
            node_id = _node(host, host.units[unit])
            cpu_milli, free_mib, gpus = nodes[node_id]
            nodes[node_id] = cpu_milli, free_mib, gpus - 1
        return Cost(len(found.nodes), round(GRAIN * (self._lost(host, kind, nodes) - before.lost)))

    def kind(self, host: Host) -> int:
        """The class of its GPUs: those of one class may be had by the same jobs of the mix."""
        if self._worth is None or not host.units:
            return NO_CLASS
        known = self._kind_of.get(host.name)
        if known is None or known[0] is not host.units:
            known = self._kind_of[host.name] = host.units, self._worth.class_of.get(_model(host), NO_CLASS)
        return known[1]

    def price(self, kind: int, gpus: int) -> int:
        """What so many GPUs of a class cost beside what is lost on their host."""
        return gpus * self._prices[kind] if 0 <= kind < len(self._prices) else 0

    def _state(self, host: Host, kind: int) -> _State:
        found = self._states.get(host.name)
        if found is None or found.version != host.version:
            nodes = _free(host)
            found = self._states[host.name] = _State(host.version, nodes, self._lost(host, kind, nodes))
        return found

    def _lost(self, host: Host, kind: int, nodes: dict[int, tuple[int, int, int]]) -> float:
        """Hosts that have as much free lose as much, and many have."""
        most = self._most(host) if len(nodes) > 1 else 0
        free = tuple(nodes.values())
        found = self._known.get((kind, most, free))
        if found is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            found = self._known[kind, most, free] = self._reckon(kind, most, free)
        return found

    def _most(self, host: Host) -> int:
        """The most GPUs of one node, held or not: as its inventory says, of which another brings other units."""
        found = self._most_of.get(host.name)
        if found is None or found[0] is not host.units:
            found = self._most_of[host.name] = host.units, max(_gpus(host).values())
        return found[1]

    def _reckon(self, kind: int, most: int, free: _Free) -> float:
        if self._worth is None:
            return 0.0
        nodes = tuple((cpu, max(0, memory), self._pattern(gpus)) for cpu, memory, gpus in free)
        lost = sum(self._worth.lost(kind, *node) for node in nodes)
        return lost - self._worth.whole_host(kind, nodes, most) if len(nodes) > 1 else lost

    def _pattern(self, gpus: int) -> Pattern:
        return self._patterns.of([WHOLE] * gpus)

    def _note(self, host: Host) -> None:
        kind = self.kind(host)
        if kind == NO_CLASS and host.units:  # of a model that came after the mix was learnt
            self._due = 0
        now = (kind, len(host.units.keys() - host.held.keys()), len(host.units))
        before = self._free_of.get(host.name)
        if now == before:
            return
        for sign, (of, free, all_) in ((-1, before or (NO_CLASS, 0, 0)), (+1, now)):
            if of != NO_CLASS:
                self._free[of] += sign * free
                self._all[of] += sign * all_
        self._free_of[host.name] = now

    def _follow_prices(self) -> None:
        """They change in steps, so that they are a function of what is free, and seldom computed."""
        steps = tuple(-(-free * STEPS // (all_ or 1)) for free, all_ in zip(self._free, self._all, strict=True))
        if steps != self._steps:
            self._steps = steps
            free = [step * all_ * WHOLE // STEPS for step, all_ in zip(steps, self._all, strict=True)]
            self._prices = [round(GRAIN * WHOLE * price) for price in prices(self._demands, free)]


def _shares(counts: dict[Shape, int]) -> dict[Shape, float]:
    total = sum(counts.values())
    return {shape: count / total for shape, count in counts.items()}


def _moved(before: dict[Shape, float], now: dict[Shape, float]) -> float:
    """The share of the jobs that would have to be of another shape to make one mix the other."""
    return sum(max(0.0, now.get(shape, 0.0) - share) for shape, share in sorted(before.items())) + sum(
        share for shape, share in sorted(now.items()) if shape not in before
    )


def _models(cluster: Cluster) -> dict[str, UnitFact]:
    """A unit of each model that hosts have the first of."""
    found: dict[str, UnitFact] = {}
    for host in cluster.hosts.values():
        if host.units and (model := _model(host)) not in found:
            found[model] = next(iter(host.units.values()))
    return found


def _model(host: Host) -> str:
    """Of its first unit: on a host with several, the others count as that one."""
    return next(iter(host.units.values())).model


def _shape(request: Request, models: dict[str, UnitFact]) -> Shape:
    """What the mix sees of a request: amounts, and the models that would do, if not all do."""
    may = tuple(sorted(model for model, unit in models.items() if _will_do(request, unit)))
    if not request.gpus or len(may) == len(models):
        may = ()
    elif not may:
        may = ("-",)  # none that anybody has
    return Shape(request.gpus * WHOLE, request.cpus * 1000, request.memory_mib, may)


def _will_do(request: Request, unit: UnitFact) -> bool:
    rules = request.rules or Rules()
    if (rules.models and unit.model not in rules.models) or rules.vendor not in ("", unit.vendor):
        return False
    return request.model in ("", unit.model) and unit.memory_mib >= request.gpu_memory_mib


def _free(host: Host) -> dict[int, tuple[int, int, int]]:
    gpus = _gpus(host, host.held)
    return {
        node.id: (1000 * node.free_cpus, max(0, node.free_memory_mib), gpus[node.id]) for node in host.nodes.values()
    }


def _gpus(host: Host, held: dict[str, str] | None = None) -> dict[int, int]:
    """Its units that are not held, by node."""
    found = dict.fromkeys(host.nodes, 0)
    for name, unit in host.units.items():
        if not held or name not in held:
            found[unit.node if unit.node in found else _node(host, unit)] += 1
    return found


def _node(host: Host, unit: UnitFact) -> int:
    """Where the unit counts: one whose node nobody knows, on the first."""
    return unit.node if unit.node in host.nodes else next(iter(host.nodes))
