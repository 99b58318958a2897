"""From what agents and the leader stored of a host to the core's: inventories, reports, allocations.

As jobs (decode_jobs.py), these are read in brief: what hosts of one make, and allocations of one shape, have alike is
read once. It must drop nothing that says what is there, and what is taken.
"""

from __future__ import annotations

from functools import lru_cache

from gpupool.v1 import brief_pb2, inventory_pb2, job_pb2, records_pb2

from ..core.state import events, facts
from ..core.state.hosts import Allocation
from ..core.state.hugepages import HugepagesFact
from ..core.state.jobs import Job
from ..core.state.rules import Labels
from ..mirror.interned import same
from .decode_rules import labels_of, vendor_named
from .numbers import ALLOCATION_STATE, OUTCOME, UNIT_STATE

WARNING_CHARS = 300  # of one warning, kept with the attempt
KEPT = 8192  # answers for each part; there are few different ones

_NOT_THE_AGENTS = frozenset({records_pb2.ALLOCATION_STATE_BOUND, records_pb2.ALLOCATION_STATE_LOST})

Thread = tuple[int, ...]  # logical CPUs of one physical core


# Allocations


def allocation_of(wire: records_pb2.Allocation) -> Allocation:
    """As `read_allocation`, of a record that somebody has made."""
    return read_allocation(brief_pb2.AllocationBrief.FromString(wire.SerializeToString()), None)


def read_allocation(wire: brief_pb2.AllocationBrief, job: Job | None) -> Allocation:
    """An allocation as decided; its state starts at BOUND until a report says more. `job`: its own, where it is known,
    whose spec is the one that is repeated here. Raises DecodeError, and ValueError if it contradicts itself.
    """
    if len(wire.memory_mib_per_node) != len(wire.numa_nodes):
        raise ValueError(f"memory of {len(wire.memory_mib_per_node)} nodes, and {len(wire.numa_nodes)} nodes")
    stops = wire.desired == records_pb2.DESIRED_STOP
    made = Allocation(
        wire.id,
        wire.job,
        wire.attempt,
        same(wire.host),
        wire.session,
        same(tuple(wire.units)),
        same(tuple(wire.numa_nodes)),
        _cores(tuple(wire.cores)),
        same(tuple(wire.memory_mib_per_node)),
        wire.created_s,
        unit_identities=tuple(wire.unit_identities),
        stop_reason=(wire.stop_reason or "stop") if stops else "",
        stop_requested_s=wire.stop_requested_s,
        session_nonce=same(wire.session_nonce),
        stop_grace_s=wire.stop_grace_s,
        preempted_for=wire.preempted_for,
    )
    if job is None:
        made.hugepage_size_kib, made.labels, made.apart, made.whole_host = _wanted(wire.spec)
        return made
    made.labels, made.hugepage_size_kib = job.labels, job.request.hugepage_size_kib
    if (rules := job.request.rules) is not None:
        made.apart, made.whole_host = rules.apart, rules.whole_host
    return made


def _wanted(value: bytes) -> tuple[int, Labels, Labels, bool]:
    """What others mind of the job: its pages, its labels, whom it shuns, whether it wants to be alone."""
    spec = job_pb2.JobSpec.FromString(value)
    apart, alone = labels_of(spec.placement.apart), spec.placement.whole_host
    return spec.vm.hugepage_size_kib, same(labels_of(spec.labels)), apart, alone


@lru_cache(KEPT)
def _cores(values: tuple[bytes, ...]) -> tuple[Thread, ...]:
    """Physical cores, in the order given."""
    return same(tuple(same(tuple(inventory_pb2.CpuCore.FromString(value).threads)) for value in values))


# Inventories


def inventory_of(wire: inventory_pb2.Inventory) -> facts.InventoryFact:
    """As `read_inventory`, of a record that somebody has made."""
    return read_inventory(wire.SerializeToString())


def read_inventory(value: bytes) -> facts.InventoryFact:
    """An inventory fact; nodes and units come sorted. Raises DecodeError."""
    wire = brief_pb2.InventoryBrief.FromString(value)
    nodes = sorted(map(_node, wire.numa_nodes))
    labels = wire.labels
    return facts.InventoryFact(
        session=wire.session,
        units=tuple(sorted(map(_unit, wire.units), key=_id)),
        nodes=same(tuple([node for node, _ in nodes])),
        images=_images(tuple(wire.images)),
        hugepages=tuple([pages for _, found in nodes for pages in found]),
        labels=_labels(tuple(labels)) if labels else (),
    )


_Node = tuple[int, tuple[Thread, ...], int]  # id, cores, memory in MiB


@lru_cache(KEPT)
def _node(value: bytes) -> tuple[_Node, tuple[HugepagesFact, ...]]:
    """A NUMA node, and its hugepages by size; hosts of one make have the same ones."""
    node = inventory_pb2.NumaNode.FromString(value)
    cores = tuple(sorted(same(tuple(sorted(core.threads))) for core in node.cores))
    pages = sorted(node.hugepages, key=lambda pages: pages.size_kib)
    return (node.id, same(cores), node.memory_mib), tuple(
        HugepagesFact(node.id, one.size_kib, one.total, one.free) for one in pages
    )


@lru_cache(KEPT)
def _images(names: tuple[str, ...]) -> frozenset[str]:
    return same(frozenset(names))


@lru_cache(KEPT)
def _labels(entries: tuple[bytes, ...]) -> Labels:
    found = map(inventory_pb2.Inventory.LabelsEntry.FromString, entries)
    return same(labels_of({entry.key: entry.value for entry in found}))


def _id(unit: facts.UnitFact) -> str:
    return unit.id


def _unit(wire: brief_pb2.UnitBrief) -> facts.UnitFact:
    name, vendor_id, root, addresses = wire.id, 0, "", []
    for function in reversed(wire.functions):
        address = function.address
        addresses.append(address)
        if address == name:  # the GPU itself; the first, if there are two
            vendor_id, root = function.vendor_id, function.root_bus
    return facts.UnitFact(
        same(name),
        same(wire.model),
        wire.gpu_memory_mib,
        wire.numa_node,
        same(tuple(sorted(addresses))),
        wire.unfit,
        wire.identity,
        vendor_named(vendor_id),
        same(root),
        wire.nic_locality,
    )


# Reports


@lru_cache(maxsize=4096)
def read_unit_report(value: bytes) -> facts.UnitReport:
    """The agent's word on a unit. As many units of a host say the same, the answer is the same object."""
    wire = brief_pb2.UnitReportBrief.FromString(value)
    return facts.UnitReport(UNIT_STATE[wire.state], wire.session, wire.allocation, wire.reason, wire.sick)


def unit_report_of(wire: records_pb2.UnitReport) -> facts.UnitReport:
    """As `read_unit_report`, of a record that somebody has made."""
    return read_unit_report(wire.SerializeToString())


def vm_reported(host: str, allocation: str, wire: records_pb2.VmReport) -> events.VmReported:
    """The agent's word on an allocation. ValueError for a state that is not the agent's to report."""
    state, outcome, warnings = wire.state, wire.outcome, wire.warnings
    if state in _NOT_THE_AGENTS:
        raise ValueError(f"an agent cannot report {ALLOCATION_STATE[state].value}")
    return events.VmReported(
        host,
        allocation,
        wire.session,
        ALLOCATION_STATE[state],
        OUTCOME[outcome] if outcome else None,
        wire.exit_code if wire.HasField("exit_code") else None,
        wire.message,
        wire.started_s,
        wire.ended_s,
        tuple([warning[:WARNING_CHARS] for warning in warnings]) if warnings else (),
    )
