"""What the detail of one host or one unit shows: pairs and tables. Pure."""

from __future__ import annotations

from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2

from . import planned_views
from .views import View, age, enum_name, labels, link, moment, page_size, reclaims, size, unit_state

NODES = ("NODE", "CORES", "CPUS", "MEMORY", "DISTANCES", "HUGEPAGES")
FINDINGS = ("LEVEL", "CHECK", "UNITS", "SEEN", "RISK")
NICS = ("NIC", "DRIVER", "NUMA", "LINK", "VFS", "GPUS BESIDE IT", "DEVICE")
FUNCTIONS = ("FUNCTION", "CLASS", "ID", "DRIVER", "GROUP", "LINK", "RESETS", "BELOW", "DEVICE")

_WORST_FIRST = (
    inventory_pb2.FINDING_LEVEL_PROBLEM, inventory_pb2.FINDING_LEVEL_WARNING, inventory_pb2.FINDING_LEVEL_UNKNOWN,
    inventory_pb2.FINDING_LEVEL_NOTE,
)  # fmt: skip

Pairs = list[tuple[str, str]]


def host_facts(host: scheduler_pb2.Host, now_s: float) -> Pairs:
    """What stands above the tables of a host."""
    record = host.record
    state = enum_name(records_pb2.HostState, record.state)
    since = age(record.since_s, now_s)
    return [
        ("name", host.name),
        ("state", f"{state}, for {since}" if since else state),
        *planned_views.planned(host, now_s),
        ("session", str(record.session or "")),
        ("boot", f"{record.boot_id}, first seen {moment(record.boot_s)}" if record.boot_s else record.boot_id),
        ("machine", planned_views.machine(host)),
        ("guard", planned_views.guard(host)),
        ("address", host.session.address),
        ("version", host.session.version),
        ("units", f"{host.units_free} of {host.units_total} free"),
        ("vms", str(host.vms)),
        ("images", ", ".join(host.inventory.images)),
        ("labels", labels(host.inventory.labels)),
        ("last fence", planned_views.last_fence(record, enum_name(job_pb2.Evidence, record.last_fence.evidence))),
        *(("note", note) for note in host.inventory.notes),
    ]


def nodes(inventory: inventory_pb2.Inventory) -> View:
    """One row for each NUMA node."""
    return NODES, [
        [
            str(node.id),
            str(len(node.cores)),
            str(sum(len(core.threads) for core in node.cores)),
            size(node.memory_mib),
            ",".join(map(str, node.distances)),
            ", ".join(f"{pages.free} of {pages.total} x {page_size(pages.size_kib)} free" for pages in node.hugepages),
        ]
        for node in inventory.numa_nodes
    ]


def findings(inventory: inventory_pb2.Inventory) -> View:
    """One row for each finding, the worst first."""
    rank = {level: n for n, level in enumerate(_WORST_FIRST)}
    ordered = sorted(inventory.findings, key=lambda found: (rank.get(found.level, len(rank)), found.check))
    return FINDINGS, [
        [
            enum_name(inventory_pb2.FindingLevel, found.level).removeprefix("LEVEL_"),
            found.check,
            ",".join(found.units),
            found.seen,
            found.risk,
        ]
        for found in ordered
    ]


def nics(inventory: inventory_pb2.Inventory) -> View:
    """One row for each network function, with the units that share a bridge with it: the nearest first."""
    return NICS, [
        [
            nic.address,
            nic.driver,
            _node(nic.numa_node),
            link(nic),
            f"{len(nic.sriov_present)}/{nic.sriov_total}" if nic.sriov_total else "",
            ",".join(_beside(nic, inventory)),
            device(nic),
        ]
        for nic in inventory.nics
    ]


def _beside(nic: inventory_pb2.PciFunction, inventory: inventory_pb2.Inventory) -> list[str]:
    """Units behind the same root port, those with more bridges in common first."""
    shared = [(max((_shared(nic, f) for f in unit.functions), default=0), unit.id) for unit in inventory.units]
    return [unit for count, unit in sorted(shared, key=lambda found: (-found[0], found[1])) if count]


def _shared(one: inventory_pb2.PciFunction, other: inventory_pb2.PciFunction) -> int:
    """How many bridges, from the root port down, are above both."""
    count = 0
    for here, there in zip(one.path, other.path, strict=False):
        if here != there:
            break
        count += 1
    return count


_NEAR = {
    job_pb2.NIC_LOCALITY_NUMA_NODE: "on its NUMA node",
    job_pb2.NIC_LOCALITY_PCIE_ROOT: "below its PCIe root",
    job_pb2.NIC_LOCALITY_SWITCH: "behind its switch",
}


def unit_facts(view: scheduler_pb2.UnitView) -> Pairs:
    """What stands above the functions of a unit."""
    unit, report, history = view.unit, view.report, view.report.history
    memory = f"{size(unit.gpu_memory_mib)} (from {unit.memory_source})" if unit.memory_source else ""
    failed = f"{history.last_failure} ({history.failures} of {history.reclaims} reclaims failed)"
    last = f"{moment(history.last_s)}, by {history.last_method or 'no reset'}, in {history.last_duration_s:.1f} s"
    return [
        ("unit", f"{view.host}/{unit.id}"),
        ("state", unit_state(view)),
        ("since", moment(report.since_s)),
        ("allocation", view.allocation),
        ("unfit", unit.unfit),
        ("sick", report.sick),
        ("reason", report.reason),
        ("proof", report.proof),
        ("model", unit.model),
        ("memory", memory or size(unit.gpu_memory_mib)),
        ("numa node", _node(unit.numa_node)),
        ("nic", f"{unit.nic}, {_NEAR.get(unit.nic_locality, 'somewhere')}" if unit.nic else ""),
        ("identity", unit.identity),
        ("reclaims", reclaims(history)),
        ("last reclaim", last if history.last_s else ""),
        ("last failure", failed if history.failures else ""),
    ]


def functions(view: scheduler_pb2.UnitView) -> View:
    """One row for each PCI function of a unit."""
    return FUNCTIONS, [
        [
            function.address,
            f"{function.class_code >> 8:04x}",
            f"{function.vendor_id:04x}:{function.device_id:04x}",
            function.driver,
            str(function.iommu_group) if function.iommu_group >= 0 else "",
            link(function),
            ",".join(function.reset_methods),
            ">".join(function.path),
            device(function),
        ]
        for function in view.unit.functions
    ]


def device(function: inventory_pb2.PciFunction) -> str:
    """Its names, "" where pci.ids has none."""
    return " ".join(name for name in (function.vendor_name, function.device_name) if name)


def _node(node: int) -> str:
    return str(node) if node >= 0 else "unknown"
