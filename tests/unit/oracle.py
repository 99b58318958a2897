"""What a host can take and what a placement must be, decided anew by trying everything: slow, small, and not `fit`."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import combinations

from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import UnitFact
from scheduler.core.state.hosts import Allocation, Host
from scheduler.core.state.jobs import Job, NumaPolicy, Outcome, Request
from scheduler.core.state.rules import Labels, Rules, Within
from scheduler.core.state.tables import HostState

FAILED = (Outcome.START_FAILED, Outcome.CRASHED, Outcome.HOST_LOST)


def could_take(cluster: Cluster, host: Host, job: Job) -> bool:
    """Whether the host can take the job now, by trying every choice of units and nodes."""
    if host.state is not HostState.READY or host.inventory is None or host.name in cluster.dirty.hosts:
        return False
    if host.intent.cordoned or host.intent.drain is not None or host.intent.maintenance or host.held_out:
        return False
    at_once = cluster.policy.starts_at_once
    if at_once and len(host.starting) >= at_once:
        return False
    others = [cluster.allocations[a] for a in host.allocations]
    if not tolerable(cluster, host, job, others) or job.request.image not in host.inventory.images:
        return False
    return any(_enough(host, job.request, units) for units in choices(host, job.request))


def choices(host: Host, request: Request) -> Iterator[tuple[UnitFact, ...]]:
    """Every set of free units that will do."""
    free = [u for u in host.units.values() if _free(host, u)]
    for units in combinations(free, request.gpus):
        if all(_suits(unit, request) for unit in units) and _together(units, request):
            yield units


def _free(host: Host, unit: UnitFact) -> bool:
    report = host.reports.get(unit.id)
    reported = report is not None and report.session == host.session and report.state.value == "FREE"
    return reported and report is not None and not report.sick and not unit.unfit and unit.id not in host.held


def _suits(unit: UnitFact, request: Request) -> bool:
    rules = request.rules or Rules()
    models = rules.models or ((request.model,) if request.model else (unit.model,))
    enough = unit.memory_mib >= request.gpu_memory_mib
    return enough and unit.model in models and rules.vendor in ("", unit.vendor)


def _together(units: tuple[UnitFact, ...], request: Request) -> bool:
    within = (request.rules or Rules()).within
    if len({(unit.model, unit.memory_mib) for unit in units}) > 1:
        return False
    if within is Within.PCIE_ROOT:
        return not units or (len({unit.root for unit in units}) == 1 and units[0].root != "")
    if within is Within.NUMA_NODE:
        return not units or (len({unit.node for unit in units}) == 1 and units[0].node >= 0)
    return True


def _enough(host: Host, request: Request, units: tuple[UnitFact, ...]) -> bool:
    """CPUs and memory for it: on one node with its units, or on any nodes together."""
    spans = [[n] for n in host.nodes] if request.numa is NumaPolicy.REQUIRED else [list(host.nodes)]
    for span in spans:
        if request.numa is NumaPolicy.REQUIRED and any(unit.node not in span for unit in units):
            continue
        cpus = sum(len(core) for n in span for core in host.nodes[n].free_cores)
        mib = sum(host.nodes[n].free_mib(request.hugepage_size_kib) for n in span)
        if cpus >= request.cpus and mib >= request.memory_mib:
            return True
    return False


def tolerable(cluster: Cluster, host: Host, job: Job, others: list[Allocation]) -> bool:
    """Labels and neighbours, and the job's own history there."""
    rules = job.request.rules or Rules()
    labels = dict(host.inventory.labels if host.inventory is not None else ())
    labels.setdefault("host", host.name)
    if any(name not in labels or not fnmatchcase(labels[name], value) for name, value in rules.hosts):
        return False
    if any(name in labels and fnmatchcase(labels[name], value) for name, value in rules.not_hosts):
        return False
    if rules.driver and not fnmatchcase(labels.get("gpu-driver", ""), rules.driver):
        return False
    if others and (rules.whole_host or any(other.whole_host for other in others)):
        return False
    if any(_any(rules.apart, other.labels) or _any(other.apart, job.labels) for other in others):
        return False
    for pattern in rules.near:
        somewhere = any(_any((pattern,), a.labels) for a in cluster.allocations.values())
        first = not somewhere and _any((pattern,), job.labels)
        if not first and not any(_any((pattern,), other.labels) for other in others):
            return False
    failures = sum(a.host == host.name and a.outcome in FAILED for a in job.attempts)
    return not job.max_failures_per_host or failures < job.max_failures_per_host


def _any(patterns: Labels, labels: Labels) -> bool:
    return any(name == other and value in ("*", found) for name, value in patterns for other, found in labels)


def wrong(cluster: Cluster, job: Job, made: Allocation) -> Iterator[str]:
    """What is wrong with a placement in itself, beside capacity."""
    host, request = cluster.hosts[made.host], job.request
    units = tuple(host.units[unit] for unit in made.units)
    if len(set(made.units)) != request.gpus:
        yield f"{len(made.units)} units, {request.gpus} wanted"
    if not all(_suits(unit, request) for unit in units) or not _together(units, request):
        yield f"units {made.units} do not suit"
    if sum(map(len, made.cores)) < request.cpus or len(set(made.cores)) != len(made.cores):
        yield f"cores {made.cores} for {request.cpus} CPUs"
    if not set(made.cores) <= {core for node in made.nodes for core in host.nodes[node].cores}:
        yield "cores of other nodes"
    if sum(made.memory_mib) != request.memory_mib or min(made.memory_mib, default=0) < 0:
        yield f"memory {made.memory_mib}"
    if request.numa is NumaPolicy.REQUIRED and (len(made.nodes) != 1 or any(u.node not in made.nodes for u in units)):
        yield f"nodes {made.nodes}"


def overdrawn(cluster: Cluster) -> Iterator[str]:
    """Whatever is lent twice, or more of than there is, in every dimension on every node, by the facts alone."""
    for name, host in sorted(cluster.hosts.items()):
        mine = [a for a in cluster.allocations.values() if a.host == name]
        units = [unit for a in mine for unit in a.units]
        cores = [core for a in mine for core in a.cores]
        if len(units) != len(set(units)) or len(cores) != len(set(cores)):
            yield f"{name}: units or cores are lent twice"
        for node_id, (_, _, total) in zip(host.nodes, host.inventory.nodes if host.inventory else (), strict=True):
            lent = sum(m for a in mine if not a.hugepage_size_kib for n, m in _by_node(a) if n == node_id)
            if lent > total:
                yield f"{name}: node {node_id} lends {lent} of {total} MiB"
        for pages in host.inventory.hugepages if host.inventory else ():
            there = [a for a in mine if a.hugepage_size_kib == pages.size_kib]
            lent = sum(m for a in there for n, m in _by_node(a) if n == pages.node)
            if lent > pages.free * pages.size_kib // 1024 or lent * 1024 % pages.size_kib:
                yield f"{name}: node {pages.node} lends {lent} MiB in pages of {pages.size_kib} KiB, {pages.free} free"
        starting = cluster.policy.starts_at_once
        if starting and len(host.starting) > starting:
            yield f"{name}: {len(host.starting)} VMs start at once"


def _by_node(made: Allocation) -> Iterator[tuple[int, int]]:
    return zip(made.nodes, made.memory_mib, strict=True)
