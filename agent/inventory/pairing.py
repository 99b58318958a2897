"""Which network functions go to a VM together with which GPU: by where both sit in the PCIe tree.

Decides pairs among those network functions that the operator has listed, one for each device unit, the nearest first. A
pair becomes one unit, so that all of it is bound, reset and proven together. A unit that is not offered, such as the
server's own display, has the last choice. Pure. Never takes a NIC apart from its
IOMMU group, nor one that no reset of its own can clean, nor a physical function whose virtual ones are switched on; and
never changes a pair while both are there, as a VM may have them.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from .attributes import Note
from .pci import Function, Ids
from .pcitree import PciTree
from .units import OWN_METHODS, DeviceUnit, unfit_group

# What is noted of a NIC that goes with no GPU, after its address; doctor looks for these.
REFUSED = "a NIC that is not handed out: "
SPARE = "a NIC that may be handed out, and no GPU near it is without one"


class Near(IntEnum):
    """How near a NIC is to its GPU. Mirrors gpupool.v1.NicLocality by value."""

    NUMA_NODE = 2
    PCIE_ROOT = 3  # below one host bridge
    SWITCH = 4  # below one root port: traffic between them need not pass the CPU


@dataclass(frozen=True, slots=True)
class Choice:
    """The network functions that may be handed out: by address, or by vendor and device id."""

    addresses: frozenset[str] = frozenset()
    ids: frozenset[Ids] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything is named at all."""
        return bool(self.addresses or self.ids)

    def has(self, function: Function) -> bool:
        """Whether the operator means this one."""
        return function.is_network and self.names(function.address, (function.vendor_id, function.device_id))

    def names(self, address: str, ids: Ids) -> bool:
        """Whether a network function with this address and these ids is meant."""
        return address in self.addresses or ids in self.ids


def pair(
    units: Sequence[DeviceUnit], tree: PciTree, choice: Choice, before: MutableMapping[str, str], note: Note
) -> list[DeviceUnit]:
    """The units, those that have one with their NIC. `before`: unit by NIC, as it was and, afterwards, is."""
    nics = dict(_nics(units, tree, choice, note))
    ways = [
        (before.get(nic) != unit.id, bool(unit.unfit), -near, -shared, unit.id, nic)
        for unit in units
        if not _own_nic(unit)
        for nic, members in nics.items()
        for near, shared in [_nearness(unit, members[0])]
        if near
    ]
    nic_of: dict[str, str] = {}
    for *_, unit_id, nic in sorted(ways):
        if unit_id not in nic_of and nic not in nic_of.values():
            nic_of[unit_id] = nic
    before.clear()
    before.update({nic: unit_id for unit_id, nic in nic_of.items()})
    for nic in sorted(set(nics) - set(before)):
        note(f"{nic}: {SPARE}")
    return [_with_nic(unit, nics.get(nic_of.get(unit.id, ""), ())) for unit in units]


def _nics(
    units: Sequence[DeviceUnit], tree: PciTree, choice: Choice, note: Note
) -> Iterator[tuple[str, tuple[Function, ...]]]:
    """What can be paired, by the first address of each IOMMU group; why something cannot is noted."""
    taken = {function.address for unit in units for function in unit.functions}
    seen: set[str] = set()
    for function in sorted(tree, key=lambda one: one.address):
        if not choice.has(function) or function.address in taken | seen:
            continue
        group = [one for one in tree.group_of(function) if not one.is_bridge] or [function]
        members = tuple(sorted(group, key=lambda one: one.address))
        seen |= {one.address for one in members}
        if fault := next(_faults(members, tree, choice), ""):
            note(f"{function.address}: {REFUSED}{fault}")
        else:
            yield members[0].address, members


def _faults(members: Sequence[Function], tree: PciTree, choice: Choice) -> Iterator[str]:
    for one in members:
        if not choice.has(one):
            yield f"{one.address}, which is not listed, is in its IOMMU group"
        yield from unfit_group(one, tree)
        if one.virtual_functions:
            yield f"{one.address} has {one.virtual_functions} SR-IOV virtual functions switched on; list these"
        if not OWN_METHODS.intersection(one.reset_methods):
            yield f"{one.address} has no reset of its own"


def _nearness(unit: DeviceUnit, nic: Function) -> tuple[int, int]:
    """How near, 0 for not at all, and how many bridges are above both. Of several GPUs the nearest counts."""
    return max((_between(gpu, nic) for gpu in unit.functions if gpu.is_gpu), default=(0, 0))


def _between(gpu: Function, nic: Function) -> tuple[int, int]:
    if gpu.root_bus and gpu.root_bus == nic.root_bus:
        shared = 0
        while shared < min(len(gpu.path), len(nic.path)) and gpu.path[shared] == nic.path[shared]:
            shared += 1
        return (Near.SWITCH if shared else Near.PCIE_ROOT), shared
    return (Near.NUMA_NODE if gpu.numa_node == nic.numa_node >= 0 else 0), 0


def _own_nic(unit: DeviceUnit) -> Function | None:
    """The NIC that is part of the unit anyway, as its IOMMU group or reset has it so."""
    return next((function for function in unit.functions if function.is_network), None)


def _with_nic(unit: DeviceUnit, members: Sequence[Function]) -> DeviceUnit:
    functions = tuple(sorted({*unit.functions, *members}, key=lambda one: one.address))
    nic = members[0] if members else _own_nic(unit)
    if nic is None:
        return unit
    return replace(unit, functions=functions, nic=nic.address, nic_near=int(_nearness(unit, nic)[0]) or 1)
