"""What this host has, read from a sysfs tree. Decides nothing about jobs; pure over its `Sysfs` port.

Reading never fails: a file that is missing, cut short or nonsense becomes a line in `Inventory.notes`, and whatever
depends on it is unknown or left out. The caller adds the session, the guest images, the units' identities and findings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from . import pairing, pci, topology, units
from .attributes import Note
from .config_space import Serials
from .messages import function_message
from .pci import DEVICES, Function, Ids
from .pciids import PciIds
from .pcitree import PciTree

MAX_NOTES = 200  # a broken tree must not make an inventory that the store refuses; neither must
MAX_NOTE = 300
MAX_NICS = 256  # hundreds of virtual functions


@dataclass(slots=True)
class Memory:
    """What need not be read again for every inventory of a host: keep one, and hand it in each time.

    `names` is None by default, so that a tree that is not this machine's does not depend on this machine's files.
    """

    serials: Serials = field(default_factory=Serials)
    names: PciIds | None = None
    pairs: dict[str, str] = field(default_factory=dict)  # of NICs and units, see pairing.py


def read_inventory(
    sysfs: Sysfs,
    *,
    reserved_memory_mib: int = 0,
    reserved_cpus: Collection[int] = (),
    labels: Mapping[str, str] | None = None,
    allow: Collection[Ids] = (),
    pm_is_enough: bool = False,
    nics: pairing.Choice | None = None,
    memory: Memory | None = None,
) -> inventory_pb2.Inventory:
    """The host's NUMA nodes, device units and network functions.

    `reserved_memory_mib` of every node and the whole cores of `reserved_cpus` are the host's own and not offered.
    Functions with (vendor, device) ids in `allow` count as GPUs whatever their class. For `pm_is_enough` see
    device_units. `nics` are the network functions that may be handed out with a GPU.

    Blocks for as long as the kernel resets a unit whose serial number is not known yet, so call it off the event loop.
    """
    notes = _Notes()
    memory = memory or Memory()
    nodes = topology.read_nodes(sysfs, notes.add, reserved_memory_mib=reserved_memory_mib, reserved_cpus=reserved_cpus)
    tree = PciTree(pci.read_functions(sysfs, notes.add, allow=allow, wanted=_worth_reading))
    found = units.device_units(tree, pm_is_enough=pm_is_enough)
    found = pairing.pair(found, tree, nics or pairing.Choice(), memory.pairs, notes.add)
    network = _nics(tree, notes.add)
    for function in tree:
        if function.is_gpu and function.virtual:
            notes.add(f"{function.address}: an SR-IOV virtual function; not offered")
    for unit in found:
        for line in unit.notes:
            notes.add(line)
    reported = {function.address: function for unit in found for function in unit.functions}
    reported |= {function.address: function for function in network}
    describe = _Describe(sysfs, tree, list(reported.values()), memory, notes.add)
    memory.serials.keep(tree.by_address.keys())
    return inventory_pb2.Inventory(
        numa_nodes=nodes,
        units=[_unit_message(unit, nodes, describe, notes.add) for unit in found],
        nics=[describe.message(function) for function in network],
        notes=notes.capped(),
        labels=labels or {},
    )


def _worth_reading(outlines: Sequence[Function]) -> frozenset[str]:
    """What can end up in a unit, and what units are paired with."""
    return units.near_gpus(outlines) | {function.address for function in outlines if function.is_network}


def _nics(tree: PciTree, note: Note) -> list[Function]:
    """Network functions, by address. Of too many, virtual ones are left out first."""
    found = sorted((f for f in tree if f.is_network), key=lambda function: (function.virtual, function.address))
    if len(found) > MAX_NICS:
        note(f"{len(found) - MAX_NICS} of {len(found)} network functions left out, virtual ones first")
    return sorted(found[:MAX_NICS], key=lambda function: function.address)


def _unit_message(
    unit: units.DeviceUnit, nodes: list[inventory_pb2.NumaNode], describe: _Describe, note: Note
) -> inventory_pb2.Unit:
    node = topology.node_of(unit.numa_node, nodes)
    if node != unit.numa_node:
        note(f"unit {unit.id}: firmware puts it on NUMA node {unit.numa_node}, which this host does not have")
    return inventory_pb2.Unit(
        id=unit.id,
        functions=[describe.message(function) for function in unit.functions],
        model=unit.model,
        gpu_memory_mib=unit.memory_mib,
        memory_source=unit.memory_source,
        numa_node=node,
        unfit=unit.unfit,
        nic=unit.nic,
        nic_locality=unit.nic_near,  # type: ignore[arg-type]
    )


class _Describe:
    """Functions as the contract has them, with what their own files do not tell: neighbours, serial numbers, names."""

    def __init__(self, sysfs: Sysfs, tree: PciTree, functions: Sequence[Function], memory: Memory, note: Note) -> None:
        self._sysfs = sysfs
        self._tree = tree
        self._serials = memory.serials
        self._messages: dict[str, inventory_pb2.PciFunction] = {}
        ids = {(function.vendor_id, function.device_id) for function in functions}
        self._names = memory.names.names(ids, note) if memory.names else {}
        unread = [function.address for function in functions if self._add(function) is None]
        if unread:
            note(f"{len(unread)} serial numbers cannot be read (it takes root, and an answer): {unread[0]} ...")
        for function in functions:
            if function.link_width_max and not function.link_width and function.power_state not in ("", "D3cold"):
                note(f"{function.address}: its link is down, or it does not answer")

    def message(self, function: Function) -> inventory_pb2.PciFunction:
        """The function's message."""
        return self._messages[function.address]

    def _add(self, function: Function) -> str | None:
        """Make the function's message; returns its serial number, None if that could not be found out."""
        serial = self._serials.of(self._sysfs, f"{DEVICES}/{function.address}", function.address)
        hit = self._tree.reset_domain(function) if self._tree.bridge_above(function) else frozenset[str]()
        self._messages[function.address] = function_message(
            replace(function, serial=serial or ""),
            reset_domain=sorted(hit - {function.address}),
            names=self._names.get((function.vendor_id, function.device_id), ("", "")),
        )
        return serial


class _Notes:
    """Lines, bounded in number and length."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def add(self, line: str) -> None:
        """Take one more line."""
        if len(self._lines) < MAX_NOTES:
            self._lines.append(line[:MAX_NOTE])
        else:
            self._more += 1

    def capped(self) -> list[str]:
        """The lines, and how many there were beyond them."""
        return [*self._lines, f"{self._more} more notes left out"] if self._more else self._lines
