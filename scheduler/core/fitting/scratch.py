"""Copies of hosts, as far as `fit` looks at them, to try on them who might leave and who might come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..state.facts import UnitReport, UnitState
from ..state.hosts import Allocation, Host, Node
from ..state.jobs import Request
from ..state.rules import Labels, Rules
from .fit import Fit


@dataclass(frozen=True, slots=True)
class _Guest:
    """A job that might be on a host, as its neighbours mind it."""

    id: str
    labels: Labels
    apart: Labels
    whole_host: bool


def without(host: Host, gone: Iterable[Allocation]) -> Host:
    """A copy of the host, as far as `fit` looks at it, on which these have left and their units are clean."""
    nodes = {n.id: Node(n.id, n.cores, n.memory_mib, set(n.free_cores), n.free_memory_mib) for n in host.nodes.values()}
    for node in nodes.values():
        node.hugepages = {size: replace(pool) for size, pool in host.nodes[node.id].hugepages.items()}
    held, reports, company, there = dict(host.held), dict(host.reports), host.company.copy(), set(host.allocations)
    for allocation in gone:
        company.leave(allocation)
        there.discard(allocation.id)
        for unit in allocation.units:
            if held.get(unit) != allocation.id:
                continue
            del held[unit]
            if unit not in reports or reports[unit].state is not UnitState.QUARANTINED:
                reports[unit] = UnitReport(UnitState.FREE, host.session, allocation.id)
        for node_id, memory_mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            if (found := nodes.get(node_id)) is not None:
                _change(found, allocation.hugepage_size_kib, -memory_mib)
                found.free_cores |= set(allocation.cores).intersection(found.cores)
    return replace(host, nodes=nodes, held=held, reports=reports, company=company, allocations=there)


def join(host: Host, found: Fit, name: str, request: Request, labels: Labels) -> Host:
    """The copy, once it has given this to somebody of this name."""
    rules = request.rules or Rules()
    host.company.join(_Guest(name, labels, rules.apart, rules.whole_host))
    host.allocations.add(name)
    for unit in found.units:
        host.held[unit] = "-"
    for node_id, memory_mib in zip(found.nodes, found.memory_mib, strict=True):
        node = host.nodes[node_id]
        _change(node, request.hugepage_size_kib, memory_mib)
        node.free_cores -= set(found.cores)
    return host


def _change(node: Node, hugepage_size_kib: int, memory_mib: int) -> None:
    if not hugepage_size_kib:
        node.free_memory_mib -= memory_mib
    elif (pool := node.hugepages.get(hugepage_size_kib)) is not None:
        pool.lend(memory_mib, seen=False)
