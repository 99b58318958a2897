"""Which host comes nearest to taking a request, and all that it lacks, in words.

It only describes: whether a host takes the request is `fit`'s word, and what is found lacking here never contradicts
it: a host that fits lacks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ..state.facts import UnitFact, UnitState
from ..state.hosts import Host, Node
from ..state.hugepages import size_name
from ..state.jobs import NumaPolicy, Request
from ..state.reasons import Reason, Refusal
from ..state.rules import Within
from ..state.tables import HostState
from .fit import closed
from .ruled import host_refusal, parts_of, wanted_units

LOOKED_AT = 512  # hosts; the others' reasons are worse, or the same


class Hope(IntEnum):
    """What must happen before the lack is made good."""

    TIME = 0  # something ends
    PEOPLE = 1  # somebody mends, or lets the host in
    NONE = 2  # the host is not such a one


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that is in the way. `share`: how much of what is wanted is missing, 0 to 1."""

    hope: Hope
    share: float
    words: str


@dataclass(frozen=True, slots=True)
class Miss:
    """The host that comes nearest, and what it lacks."""

    host: str
    lacks: tuple[Lack, ...]

    def __str__(self) -> str:
        """Such as "h17 lacks 4 CPUs on NUMA node 1"."""
        return f"{self.host} {' and '.join(lack.words for lack in self.lacks)}"


_PHRASES = {
    Reason.HOST_CORDONED: "is cordoned ({})",
    Reason.HOST_HELD_OUT: "is held out ({})",
    Reason.HOST_DRAINING: "is being drained ({})",
    Reason.HOST_IN_MAINTENANCE: "is in maintenance ({})",
    Reason.HOST_TAKEN_WHOLE: "is not shared: {}",
    Reason.HOST_NOT_EMPTY: "is not empty: {}",
    Reason.APART_FROM_JOBS: "has neighbours that must not be: {}",
    Reason.NOT_NEAR_JOBS: "has not the neighbours: {}",
    Reason.FAILED_BEFORE: "has failed this job: {}",
    Reason.RESERVED_FOR_FAILOVER: "would do, but its room is kept for restarts: {}",
}
_HOPE = {
    Reason.HOST_NOT_READY: Hope.PEOPLE,
    Reason.HOST_CORDONED: Hope.PEOPLE,
    Reason.HOST_HELD_OUT: Hope.PEOPLE,
    Reason.HOST_DRAINING: Hope.PEOPLE,
    Reason.HOST_IN_MAINTENANCE: Hope.PEOPLE,
    Reason.IMAGE_MISSING: Hope.PEOPLE,
    Reason.UNITS_UNFIT: Hope.PEOPLE,
    Reason.UNITS_QUARANTINED: Hope.PEOPLE,
    Reason.FAILED_BEFORE: Hope.PEOPLE,
    Reason.HOST_LABELS: Hope.NONE,
    Reason.DRIVER_MISMATCH: Hope.NONE,
    Reason.VENDOR_MISMATCH: Hope.NONE,
    Reason.MODEL_MISMATCH: Hope.NONE,
    Reason.NIC_TOO_FAR: Hope.NONE,
    Reason.GPU_MEMORY_TOO_SMALL: Hope.NONE,
    Reason.TOO_FEW_UNITS: Hope.NONE,
    Reason.TOO_FEW_CPUS: Hope.NONE,
    Reason.TOO_LITTLE_MEMORY: Hope.NONE,
    Reason.TOO_FEW_HUGEPAGES: Hope.NONE,
}  # all others: time


def nearest(hosts: Iterable[tuple[Host, Refusal | None]], request: Request, starts_at_once: int = 0) -> Miss | None:
    """The host that lacks least; none if there is no host, or one lacks nothing. Ties go to the first name."""
    return least(misses(hosts, request, starts_at_once))


def misses(hosts: Iterable[tuple[Host, Refusal | None]], request: Request, starts_at_once: int = 0) -> Iterator[Miss]:
    """What those lack that come into question, one at a time; nothing, if one lacks nothing."""
    verdicts = sorted(hosts, key=lambda item: (_hope(item[1]), item[0].name))
    if not any(refusal is None for _, refusal in verdicts):
        for host, why in verdicts[:LOOKED_AT]:
            yield Miss(host.name, lacks(host, request, starts_at_once, why))


def least(found: Iterable[Miss]) -> Miss | None:
    """That of the host which comes nearest."""
    return min(found, key=lambda miss: (*_rank(miss.lacks), miss.host), default=None)


def _hope(refusal: Refusal | None) -> Hope:
    return _HOPE.get(refusal.reason, Hope.TIME) if refusal is not None else Hope.TIME


def _rank(found: Sequence[Lack]) -> tuple[Hope, int, float]:
    return max((lack.hope for lack in found), default=Hope.TIME), len(found), sum(lack.share for lack in found)


def lacks(host: Host, request: Request, starts_at_once: int = 0, why: Refusal | None = None) -> tuple[Lack, ...]:
    """All that is in the way; `why` is the word that was given, for what only that can tell."""
    found = [*_shut(host, request, starts_at_once), *_amounts(host, request)]
    if not found and why is not None:
        found = [_told(why)]
    return tuple(found)


def _told(refusal: Refusal) -> Lack:
    words = _PHRASES.get(refusal.reason, "will not do: {}").format(refusal.detail)
    words = (
        words.replace(" (cordoned)", "").replace(" (draining)", "").replace(" (in maintenance)", "")
    )  # no reason given
    return Lack(_HOPE.get(refusal.reason, Hope.TIME), 1.0, words)


def _shut(host: Host, request: Request, starts_at_once: int) -> Iterator[Lack]:
    """What is in the way beside amounts."""
    if host.state is not HostState.READY:
        yield Lack(Hope.PEOPLE, 1.0, f"is {host.state.value}")
    elif (refusal := closed(host)) is not None:
        yield _told(refusal)
    elif 0 < starts_at_once <= len(host.starting):
        yield Lack(Hope.TIME, 0.0, f"has {len(host.starting)} VMs that are starting")
    if host.inventory is not None and request.image not in host.inventory.images:
        yield Lack(Hope.PEOPLE, 1.0, f"has no image {request.image!r}")
    if request.rules is not None and (refusal := host_refusal(host, request.rules)) is not None:
        yield _told(refusal)


def _amounts(host: Host, request: Request) -> list[Lack]:
    """What there is too little of, where there is least too little."""
    parts: list[tuple[str, list[UnitFact]]] = [("", [])]
    if request.gpus:
        units = wanted_units(host, request)
        if isinstance(units, Refusal):
            return [_told(units)]
        large = [unit for unit in units if unit.memory_mib >= request.gpu_memory_mib]
        if not large:
            most = max(unit.memory_mib for unit in units)
            return [Lack(Hope.NONE, 1.0, f"has GPUs of {most} MiB, {request.gpu_memory_mib} are wanted")]
        parts = _parts(large, request)
    nodes = sorted(host.nodes.values(), key=lambda n: n.id)
    spans = [[node] for node in nodes] if request.numa is NumaPolicy.REQUIRED and nodes else [nodes]
    options = [list(_at(host, request, where, units, span)) for where, units in parts for span in spans]
    return min(options, key=_rank)


def _parts(units: list[UnitFact], request: Request) -> list[tuple[str, list[UnitFact]]]:
    """Units of one model, and together as is wanted, with where that is."""
    models: dict[tuple[int, str], list[UnitFact]] = {}
    for unit in sorted(units, key=lambda u: u.id):
        models.setdefault((unit.memory_mib, unit.model), []).append(unit)
    groups = [group for _, group in sorted(models.items())]
    within = request.rules.within if request.rules is not None else Within.ANY
    if within is Within.ANY:
        return [("", group) for group in groups]
    name = "NUMA node" if within is Within.NUMA_NODE else "PCIe root"
    known = [(f" at {name} {place}", part) for group in groups for place, part in parts_of(group, within)]
    return known or [(f" at any one {name}", [])]


def _at(host: Host, request: Request, where: str, units: list[UnitFact], nodes: list[Node]) -> Iterator[Lack]:
    """What these units and nodes lack. On one node, only its own units count."""
    on_node = ""
    if request.numa is NumaPolicy.REQUIRED and len(nodes) == 1:
        on_node = f" on NUMA node {nodes[0].id}"
        units = [unit for unit in units if unit.node == nodes[0].id]
    yield from _units(host, request.gpus, units, on_node or where)
    cpus = sum(len(core) for node in nodes for core in node.cores)
    cpus_free = sum(node.free_cpus for node in nodes)
    yield from _amount(request.cpus, cpus, cpus_free, "CPUs", on_node)
    size_kib = request.hugepage_size_kib
    total = sum(_total_mib(node, size_kib) for node in nodes)
    free = sum(node.free_mib(size_kib) for node in nodes)
    yield from _amount(
        request.memory_mib, total, free, f"MiB in pages of {size_name(size_kib)}" if size_kib else "MiB", on_node
    )


def _total_mib(node: Node, size_kib: int) -> int:
    if not size_kib:
        return node.memory_mib
    return node.hugepages[size_kib].total_mib if size_kib in node.hugepages else 0


def _units(host: Host, gpus: int, units: list[UnitFact], where: str) -> Iterator[Lack]:
    fit = [unit for unit in units if not host.unfit(unit)]
    sound = [unit for unit in fit if host.unit_state(unit.id) is not UnitState.QUARANTINED]
    free = [unit for unit in sound if _may_be_free(host, unit)]
    if len(units) < gpus:
        yield Lack(Hope.NONE, 1 - len(units) / gpus, f"has {_count(gpus - len(units))} too few{where}")
    elif len(sound) < gpus:
        yield Lack(Hope.PEOPLE, 1 - len(sound) / gpus, f"lacks {_count(gpus - len(sound))} fit for use{where}")
    elif len(free) < gpus:
        yield Lack(Hope.TIME, 1 - len(free) / gpus, f"lacks {_count(gpus - len(free))}{where}")


def _may_be_free(host: Host, unit: UnitFact) -> bool:
    """Of a host that is not ready nobody can say more than that nobody holds it."""
    return unit.id not in host.held and (
        host.state is not HostState.READY or host.unit_state(unit.id) is UnitState.FREE
    )


def _count(units: int) -> str:
    return "1 unit" if units == 1 else f"{units} units"


def _amount(wanted: int, total: int, free: int, what: str, where: str) -> Iterator[Lack]:
    if total < wanted:
        yield Lack(Hope.NONE, 1 - total / wanted, f"has {wanted - total} {what} too few{where}")
    elif free < wanted:
        yield Lack(Hope.TIME, 1 - free / wanted, f"lacks {wanted - free} {what}{where}")
