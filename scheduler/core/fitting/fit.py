"""Whether one host can take one request, and with what exactly: pure arithmetic over a host's free resources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from ..state.facts import UnitFact, UnitState
from ..state.hosts import Host, Node
from ..state.hugepages import size_name
from ..state.jobs import NumaPolicy, Request
from ..state.reasons import Reason, Refusal
from ..state.rules import Within
from ..state.tables import HostState
from .ruled import host_refusal, scattered, together, wanted_units

_ID = attrgetter("id")


@dataclass(frozen=True, slots=True)
class Fit:
    """Exact resources on one host. `leftover` counts the free units of that model that would stay."""

    units: tuple[str, ...]
    nodes: tuple[int, ...]
    cores: tuple[tuple[int, ...], ...]
    memory_mib: tuple[int, ...]
    leftover: int
    gpu_memory_mib: int

    @property
    def order(self) -> tuple[int, int, int]:
        """What comes first of several, whatever the mix: the least GPU, the fewest nodes, the fullest host."""
        return self.gpu_memory_mib, len(self.nodes), self.leftover


def fit(host: Host, request: Request, starts_at_once: int = 0) -> Fit | Refusal:
    """A Fit, or the first reason against it. Deterministic: ties go to lower ids.

    `starts_at_once`: no more VMs may be starting there; 0: any number.
    """
    refusal = _host_refusal(host, request, starts_at_once)
    if refusal is not None:
        return refusal
    free = _free_units(host, request)
    if isinstance(free, Refusal):
        return free
    failure = best = None
    for model_units in free:
        outcome = _fit_nodes(host, request, model_units)
        if isinstance(outcome, Refusal):
            failure = failure or outcome
        elif request.rules is None or request.rules.within is Within.ANY:
            return outcome
        elif best is None or (outcome.gpu_memory_mib, len(outcome.nodes)) < (best.gpu_memory_mib, len(best.nodes)):
            best = outcome  # of the parts of a host that would do: one that needs no other node
    return best or failure or Refusal(Reason.TOO_FEW_UNITS, "it has no GPU")


def _host_refusal(host: Host, request: Request, starts_at_once: int) -> Refusal | None:
    refusal = closed(host)
    if refusal is not None or host.inventory is None:
        return refusal
    if 0 < starts_at_once <= len(host.starting):
        return Refusal(Reason.HOST_STARTS_ENOUGH, f"as many VMs as may be are starting there: {len(host.starting)}")
    if request.image not in host.inventory.images:
        return Refusal(Reason.IMAGE_MISSING, f"it has no image {request.image!r}")
    return host_refusal(host, request.rules) if request.rules is not None else None


def closed(host: Host) -> Refusal | None:
    """Why the host takes nothing new, whatever is asked."""
    if host.state is not HostState.READY or host.inventory is None:
        return Refusal(Reason.HOST_NOT_READY, f"it is {host.state.value}")
    if host.intent.cordoned:
        return Refusal(Reason.HOST_CORDONED, host.intent.reason or "cordoned")
    if host.held_out:
        return Refusal(Reason.HOST_HELD_OUT, host.held_out)
    if (drain := host.drain) is not None:
        return Refusal(Reason.HOST_DRAINING, drain.reason or "draining")
    if host.intent.maintenance:
        return Refusal(Reason.HOST_IN_MAINTENANCE, host.intent.maintenance_reason or "in maintenance")
    if host.company.whole:
        return Refusal(Reason.HOST_TAKEN_WHOLE, f"{min(host.company.whole)} has the whole host")
    return None


def _free_units(host: Host, request: Request) -> list[list[UnitFact]] | Refusal:
    """Free units by model, the least valuable model first; all units of a job are of one model."""
    if request.gpus == 0:
        return [[]]
    matching = wanted_units(host, request)
    if isinstance(matching, Refusal):
        return matching
    if (request.rules is None or request.rules.within is Within.ANY) and (enough := _enough(host, request, matching)):
        return enough  # the same as below, where most looks end; what follows is for the others, and says why not
    large = [u for u in matching if u.memory_mib >= request.gpu_memory_mib]
    if not large:
        best = max(u.memory_mib for u in matching)
        return Refusal(Reason.GPU_MEMORY_TOO_SMALL, f"wants {request.gpu_memory_mib} MiB a GPU, the largest has {best}")
    usable = [u for u in large if not u.unfit]
    if host.sick:
        usable = [u for u in usable if u.id not in host.sick]
    by_model: dict[tuple[int, str], list[UnitFact]] = {}
    for unit in sorted(usable, key=lambda u: u.id):
        by_model.setdefault((unit.memory_mib, unit.model), []).append(unit)
    most = max(map(len, by_model.values()), default=0)
    if most < request.gpus:
        return _too_few_fit(host, request, large, most)
    free = [
        [u for u in units if host.unit_state(u.id) is UnitState.FREE]
        for _, units in sorted(by_model.items(), key=lambda item: item[0])
    ]
    enough = [units for units in free if len(units) >= request.gpus]
    if request.rules is not None and (within := request.rules.within) is not Within.ANY:
        near = [part for part in together(enough, within) if len(part) >= request.gpus]
        able = [units for units in by_model.values() if len(units) >= request.gpus]
        if not near and (enough or not any(len(part) >= request.gpus for part in together(able, within))):
            return scattered(request.gpus, able, free, within)
        enough = near
    return enough or _why_not_free(host, request, usable)


def _enough(host: Host, request: Request, matching: list[UnitFact]) -> list[list[UnitFact]]:
    """Of these, what may be handed out, by model, where there is enough of one."""
    held, sick, reports, session = host.held, host.sick, host.reports, host.session
    by_model: dict[tuple[int, str], list[UnitFact]] = {}
    for unit in matching:
        name = unit.id
        if name in held or unit.unfit or name in sick or unit.memory_mib < request.gpu_memory_mib:
            continue
        report = reports.get(name)
        if report is not None and report.session == session and report.state is UnitState.FREE:
            by_model.setdefault((unit.memory_mib, unit.model), []).append(unit)
    return [sorted(by_model[one], key=_ID) for one in sorted(by_model) if len(by_model[one]) >= request.gpus]


def _too_few_fit(host: Host, request: Request, large: list[UnitFact], most: int) -> Refusal:
    """`most` units of one model are fit, which is not enough: the host has no more, or the others must be mended."""
    reasons = Counter(why for unit in large if (why := host.unfit(unit)))
    have = max(Counter((unit.memory_mib, unit.model) for unit in large).values())
    if most and have < request.gpus:
        unfit = f", {most} of them fit" if most < have else ""
        return Refusal(Reason.TOO_FEW_UNITS, f"needs {request.gpus} units of one model, it has {have}{unfit}")
    why, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    who = f"{count} units" if count > 1 else next(unit.id for unit in large if host.unfit(unit) == why)
    others = f"; {reasons.total() - count} for other reasons" if reasons.total() > count else ""
    detail = f"needs {request.gpus}, {len(large) - reasons.total()} of {len(large)} fit; {who}: {why}{others}"
    return Refusal(Reason.UNITS_UNFIT, detail)


def _why_not_free(host: Host, request: Request, usable: list[UnitFact]) -> Refusal:
    states = [host.unit_state(u.id) for u in usable]
    free, broken = states.count(UnitState.FREE), states.count(UnitState.QUARANTINED)
    detail = f"needs {request.gpus}, {free} of {len(states)} free"
    if broken and len(states) - broken < request.gpus:
        return Refusal(Reason.UNITS_QUARANTINED, f"{detail}, {broken} quarantined")
    return Refusal(Reason.UNITS_BUSY, detail)


def _fit_nodes(host: Host, request: Request, units: list[UnitFact]) -> Fit | Refusal:
    """Units, cores and memory from one NUMA node if possible, from the fewest if the policy allows more."""
    nodes = sorted(host.nodes.values(), key=_ID)
    on_node: dict[int, list[UnitFact]] = {n.id: [] for n in nodes}
    for unit in units:
        if unit.node in on_node:
            on_node[unit.node].append(unit)
    singles = [n for n in nodes if _has_room(n, request, len(on_node[n.id]))]
    if singles:
        best = min(singles, key=lambda n: (len(on_node[n.id]), len(n.free_cores), n.id))
        return _take(request, [best], on_node[best.id][: request.gpus], len(units))
    refusal = _capacity_refusal(nodes, request)
    if refusal is not None:
        return refusal
    if request.numa is NumaPolicy.REQUIRED:
        near = max(nodes, key=lambda n: (len(on_node[n.id]), len(n.free_cores), -n.id))
        lack = _room(near, request, len(on_node[near.id]))
        return Refusal(Reason.NUMA_SPLIT, f"no one node has it all; node {near.id} {lack}")
    return _fit_across(request, nodes, units, on_node)


def _fit_across(request: Request, nodes: list[Node], units: list[UnitFact], on_node: dict[int, list[UnitFact]]) -> Fit:
    """The fewest nodes, those with the most of the wanted units first. Enough in total is known to be there."""
    chosen: list[Node] = []
    taken: list[UnitFact] = []
    for node in sorted(nodes, key=lambda n: (-len(on_node[n.id]), -len(n.free_cores), n.id)):
        chosen.append(node)
        taken += on_node[node.id]
        if len(taken) >= request.gpus and _short(chosen, request) is None:
            break
    local = {u.id for u in taken}
    taken += [u for u in units if u.id not in local]  # units whose node nobody knows come last
    return _take(request, sorted(chosen, key=lambda n: n.id), taken[: request.gpus], len(units))


def _take(request: Request, nodes: list[Node], units: list[UnitFact], free: int) -> Fit:
    free_mib = [node.free_mib(request.hugepage_size_kib) for node in nodes]
    return Fit(
        units=tuple(sorted(u.id for u in units)),
        nodes=tuple(n.id for n in nodes),
        cores=tuple(sorted(_cores(request.cpus, nodes))),
        memory_mib=tuple(_shares(request.memory_mib, free_mib, max(1, request.hugepage_size_kib // 1024))),
        leftover=free - len(units),
        gpu_memory_mib=units[0].memory_mib if units else 0,
    )


def _cores(cpus: int, nodes: list[Node]) -> list[tuple[int, ...]]:
    """Whole cores with `cpus` logical CPUs or a few more, spread evenly over the nodes, the lowest of each first."""
    if len(nodes) == 1:
        return _first_cores(cpus, nodes[0])
    left = [sorted(node.free_cores, reverse=True) for node in nodes]
    taken = [0] * len(nodes)
    cores = []
    while sum(taken) < cpus:
        index = min((i for i in range(len(nodes)) if left[i]), key=lambda i: (taken[i], i))
        core = left[index].pop()
        cores.append(core)
        taken[index] += len(core)
    return cores


def _first_cores(cpus: int, node: Node) -> list[tuple[int, ...]]:
    cores = []
    for core in sorted(node.free_cores):
        if cpus <= 0:
            break
        cores.append(core)
        cpus -= len(core)
    return cores


def _shares(total: int, free: Sequence[int], step: int) -> list[int]:
    """`total`, a multiple of `step`, spread evenly over nodes with so much `free`, of which there is enough.

    A guest sees a node only if it has memory of it, and a GPU's node only if it sees it.
    """
    if len(free) == 1:
        return [total]
    shares = [0] * len(free)
    left = total
    while left > 0:
        open_ = [i for i in range(len(free)) if shares[i] < free[i]]
        each = max(step, left // len(open_) // step * step)
        for i in open_:
            part = min(each, free[i] - shares[i], left)
            shares[i] += part
            left -= part
    return shares


def _has_room(node: Node, request: Request, units: int) -> bool:
    """Whether the node lacks nothing for the whole request: as `_room`, without the words."""
    if units < request.gpus or node.free_cpus < request.cpus:
        return False
    size_kib = request.hugepage_size_kib
    return max(0, node.free_mib(size_kib) if size_kib else node.free_memory_mib) >= request.memory_mib


def _room(node: Node, request: Request, units: int) -> str | None:
    """What the node lacks for the whole request, or None."""
    if units < request.gpus:
        return f"lacks {request.gpus - units} units"
    return _short([node], request)


def _short(nodes: list[Node], request: Request) -> str | None:
    cpus = sum(n.free_cpus for n in nodes)
    if cpus < request.cpus:
        return f"lacks {request.cpus - cpus} CPUs"
    memory_mib = _free_mib(nodes, request)
    if memory_mib < request.memory_mib:
        return f"lacks {request.memory_mib - memory_mib} MiB{_of_pages(request)}"
    return None


def _free_mib(nodes: list[Node], request: Request) -> int:
    if request.hugepage_size_kib:
        return sum(n.free_mib(request.hugepage_size_kib) for n in nodes)
    return sum(n.free_memory_mib for n in nodes if n.free_memory_mib > 0)  # the same, without a call: it is asked often


def _capacity_refusal(nodes: list[Node], request: Request) -> Refusal | None:
    """A refusal if even the whole host has too little of CPUs or memory, now or ever."""
    cpus, cpus_free = sum(len(c) for n in nodes for c in n.cores), sum(n.free_cpus for n in nodes)
    if cpus < request.cpus:
        return Refusal(Reason.TOO_FEW_CPUS, f"needs {request.cpus} CPUs, it has {cpus}")
    if cpus_free < request.cpus:
        return Refusal(Reason.CPUS_BUSY, f"needs {request.cpus} CPUs, {cpus_free} of {cpus} free")
    if request.hugepage_size_kib:
        return _hugepages_refusal(nodes, request)
    memory, memory_free = sum(n.memory_mib for n in nodes), _free_mib(nodes, request)
    if memory < request.memory_mib:
        return Refusal(Reason.TOO_LITTLE_MEMORY, f"needs {request.memory_mib} MiB, it has {memory}")
    if memory_free < request.memory_mib:
        return Refusal(Reason.MEMORY_BUSY, f"needs {request.memory_mib} MiB, {memory_free} of {memory} free")
    return None


def _hugepages_refusal(nodes: list[Node], request: Request) -> Refusal | None:
    pools = [n.hugepages[request.hugepage_size_kib] for n in nodes if request.hugepage_size_kib in n.hugepages]
    need = f"needs {request.memory_mib} MiB{_of_pages(request)}"
    total = sum(p.total_mib for p in pools)
    if total < request.memory_mib:
        return Refusal(Reason.TOO_FEW_HUGEPAGES, f"{need}, it has {total}")
    free = _free_mib(nodes, request)
    if free < request.memory_mib:
        foreign = total - sum(p.usable_mib for p in pools)
        others = f", {foreign} in other hands" if foreign else ""
        return Refusal(Reason.HUGEPAGES_BUSY, f"{need}, {free} of {total} free{others}")
    return None


def _of_pages(request: Request) -> str:
    return f" in pages of {size_name(request.hugepage_size_kib)}" if request.hugepage_size_kib else ""
