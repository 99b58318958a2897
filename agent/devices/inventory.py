"""What this host has, read from a sysfs tree. Decides nothing about jobs; pure over its `Sysfs` port.

Reading never fails: a file that is missing, cut short or nonsense becomes a line in `Inventory.notes`, and whatever
depends on it is unknown or left out. The caller adds the session and the guest images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from . import pci, topology, units

MAX_NOTES = 200  # a broken tree must not make an inventory that the store refuses


def read_inventory(
    sysfs: Sysfs,
    *,
    reserved_memory_mib: int = 0,
    reserved_cpus: Collection[int] = (),
    labels: Mapping[str, str] | None = None,
) -> inventory_pb2.Inventory:
    """The host's NUMA nodes and device units.

    `reserved_memory_mib` of every node and the whole cores of `reserved_cpus` are the host's own and not offered.
    """
    notes: list[str] = []
    nodes = topology.read_nodes(
        sysfs, notes.append, reserved_memory_mib=reserved_memory_mib, reserved_cpus=reserved_cpus
    )
    functions = pci.read_functions(sysfs, notes.append)
    found = units.device_units(functions)
    virtual = [function.address for function in functions if function.is_gpu and function.virtual]
    notes.extend(f"{address}: an SR-IOV virtual function; not offered" for address in virtual)
    for unit in found:
        notes.extend(unit.notes)
    offered = [_unit_message(unit, nodes, notes) for unit in found]
    return inventory_pb2.Inventory(numa_nodes=nodes, units=offered, notes=_capped(notes), labels=labels or {})


def _unit_message(unit: units.DeviceUnit, nodes: list[inventory_pb2.NumaNode], notes: list[str]) -> inventory_pb2.Unit:
    node = topology.node_of(unit.numa_node, nodes)
    if node != unit.numa_node:
        notes.append(f"unit {unit.id}: firmware puts it on NUMA node {unit.numa_node}, which this host does not have")
    return inventory_pb2.Unit(
        id=unit.id,
        functions=[function_message(function) for function in unit.functions],
        model=unit.model,
        gpu_memory_mib=unit.memory_mib,
        numa_node=node,
        unfit=unit.unfit,
    )


def function_message(function: pci.Function) -> inventory_pb2.PciFunction:
    """The function as the contract has it."""
    return inventory_pb2.PciFunction(
        address=function.address,
        vendor_id=function.vendor_id,
        device_id=function.device_id,
        class_code=max(function.class_code, 0),
        driver=function.driver,
        iommu_group=function.iommu_group,
        numa_node=function.numa_node,
        reset_methods=function.reset_methods,
        largest_bar_bytes=function.largest_bar_bytes,
        link_speed_mts=function.link_speed_mts,
        link_width=function.link_width,
        boot_vga=function.boot_vga,
    )


def _capped(notes: list[str]) -> list[str]:
    left_out = len(notes) - MAX_NOTES
    return notes if left_out <= 0 else [*notes[:MAX_NOTES], f"{left_out} more notes left out"]
