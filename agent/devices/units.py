"""Which PCI functions belong together, and which of these units must not be handed out.

Decides the device units: the smallest sets that isolation allows. A unit is closed under three relations: one IOMMU
group; the other functions of a GPU's slot; and, for a GPU that only a bus reset can clean, everything that such a reset
hits. GPUs tied by any of these are one unit. Pure, and never hopeful: what cannot be separated, reset or read makes a
unit unfit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from . import gpus
from .pci import Function

BUS_METHODS = frozenset({"bus", "cxl_bus"})  # as reset_method spells them: they hit the neighbours too
PASSTHROUGH_DRIVERS = frozenset({"", "pci-stub"})  # and any vfio driver: the host makes no use of such a device
STORAGE, MULTIMEDIA, SERIAL_BUS = 0x01, 0x04, 0x0C  # base classes


@dataclass(frozen=True, slots=True)
class DeviceUnit:
    """Functions that go to a VM together, by address, without bridges. `unfit`: why they must not; empty: they may."""

    functions: tuple[Function, ...]
    model: str
    memory_mib: int  # of each GPU; 0: unknown
    numa_node: int  # -1: unknown, or its GPUs are on several
    unfit: str
    notes: tuple[str, ...]

    @property
    def id(self) -> str:
        """The address of the first GPU."""
        return next(function.address for function in self.functions if function.is_gpu)


def device_units(functions: Sequence[Function]) -> list[DeviceUnit]:
    """The device units among all of a host's PCI functions, sorted by id. SR-IOV virtual functions found no units."""
    closures = (_closure(gpu, functions) for gpu in functions if gpu.is_gpu and not gpu.virtual)
    units = [_unit(members, functions) for members in _merged(closures)]
    return sorted(units, key=lambda unit: unit.id)


def bridge_above(function: Function, functions: Iterable[Function]) -> Function | None:
    """The bridge that leads to the function's bus; None on a root bus, or if no bridge could be read that does."""
    for bridge in functions:
        if bridge.buses and bridge.domain == function.domain and bridge.buses[0] == function.bus:
            return bridge
    return None


def reset_domain(function: Function, functions: Iterable[Function]) -> frozenset[str]:
    """Addresses of all that a bus reset of `function` hits: its bus, and every bus below that."""
    functions = list(functions)
    bridge = bridge_above(function, functions)
    last = bridge.buses[1] if bridge and bridge.buses else function.bus
    return frozenset(
        other.address for other in functions if other.domain == function.domain and function.bus <= other.bus <= last
    )


def needs_bus_reset(function: Function, functions: Iterable[Function]) -> bool:
    """Whether a bus reset is possible and the only way to reset this function."""
    if set(function.reset_methods) - BUS_METHODS:
        return False
    bridge = bridge_above(function, functions)
    return bool(function.reset_methods) or (bridge is not None and bridge.resets_buses)


def _closure(seed: Function, functions: Sequence[Function]) -> frozenset[Function]:
    members = {seed}
    todo = [seed]
    while todo:
        new = set(_tied_to(todo.pop(), functions)) - members
        members |= new
        todo += new
    return frozenset(members)


def _tied_to(function: Function, functions: Sequence[Function]) -> Iterator[Function]:
    """What cannot be handed out apart from `function`. A bridge ties nothing: it stays with the host."""
    if function.is_bridge:
        return
    if function.is_gpu:
        yield from (other for other in functions if other.slot == function.slot and not other.virtual)
    if function.iommu_group >= 0:
        yield from (other for other in functions if other.iommu_group == function.iommu_group)
    if function.is_gpu and needs_bus_reset(function, functions):
        domain = reset_domain(function, functions)
        yield from (other for other in functions if other.address in domain)


def _merged(closures: Iterable[frozenset[Function]]) -> list[frozenset[Function]]:
    """Closures that share an endpoint are one: being tied is not symmetric (a bus reset hits those that need none)."""
    merged: list[frozenset[Function]] = []
    for closure in closures:
        joined = closure
        for other in [known for known in merged if any(not shared.is_bridge for shared in known & closure)]:
            merged.remove(other)
            joined |= other
        merged.append(joined)
    return merged


def _unit(members: frozenset[Function], functions: Sequence[Function]) -> DeviceUnit:
    endpoints = tuple(sorted((f for f in members if not f.is_bridge), key=lambda f: f.address))
    found = [function for function in endpoints if function.is_gpu]
    nodes = {gpu.numa_node for gpu in found}
    first = gpus.identify(found[0].vendor_id, found[0].device_id)
    return DeviceUnit(
        functions=endpoints,
        model=first.model,
        memory_mib=first.memory_mib,
        numa_node=nodes.pop() if len(nodes) == 1 else -1,
        unfit="; ".join(_unfit(endpoints, functions)),
        notes=tuple(_notes(members, endpoints)),
    )


def _unfit(endpoints: Sequence[Function], functions: Sequence[Function]) -> Iterator[str]:
    found = [function for function in endpoints if function.is_gpu]
    slots = {gpu.slot for gpu in found}
    models = sorted({gpus.identify(gpu.vendor_id, gpu.device_id).model for gpu in found})
    for function in endpoints:
        if function.iommu_group < 0:
            yield f"{function.address} has no IOMMU group (is the IOMMU switched on?)"
        if function.is_gpu:
            yield from _unfit_gpu(function, functions)
        else:
            yield from _unfit_neighbour(function, slots)
    if len(models) > 1:
        yield f"its GPUs are of several models: {', '.join(models)}"


def _unfit_gpu(gpu: Function, functions: Sequence[Function]) -> Iterator[str]:
    if gpu.boot_vga:
        yield f"{gpu.address} is the boot VGA"
    if gpus.is_management_display(gpu.vendor_id):
        yield f"{gpu.address} is the server's management display"
    if not gpu.vendor_id or not gpu.device_id:
        yield f"{gpu.address}: vendor or device id cannot be read"
    if not set(gpu.reset_methods) - BUS_METHODS and not needs_bus_reset(gpu, functions):
        yield f"{gpu.address} has no usable reset method"
    if gpu.virtual_functions:
        yield f"{gpu.address} has {gpu.virtual_functions} SR-IOV virtual functions switched on"
    if gpu.virtual:
        yield f"{gpu.address} is an SR-IOV virtual function"


def _unfit_neighbour(function: Function, gpu_slots: set[str]) -> Iterator[str]:
    """Why a function that is no GPU spoils the unit. Storage always does: no reset clears what a job wrote to it."""
    kind = f"{function.address} (class {max(function.class_code, 0) >> 8:04x})"
    base_class = function.class_code >> 16
    if function.class_code < 0:
        yield f"{function.address}: class cannot be read"
    elif base_class == STORAGE:
        yield f"{kind} is storage, which keeps data across resets"
    elif function.slot in gpu_slots and base_class in (MULTIMEDIA, SERIAL_BUS):
        return  # a GPU's audio, or its USB-C controller: the host's driver has it only because it was there first
    elif function.driver not in PASSTHROUGH_DRIVERS and "vfio" not in function.driver:
        yield f"{kind} is used by the host through {function.driver}, and cannot be separated"


def _notes(members: frozenset[Function], endpoints: Sequence[Function]) -> Iterator[str]:
    unit = next(function.address for function in endpoints if function.is_gpu)
    for bridge in sorted((f for f in members if f.is_bridge), key=lambda f: f.address):
        yield f"unit {unit}: bridge {bridge.address} is in its IOMMU group or reset domain; it stays with the host"
    for function in endpoints:
        if not function.is_gpu and not function.reset_methods:
            yield f"unit {unit}: {function.address} (class {function.class_code >> 8:04x}) has no reset of its own"
    if len({function.numa_node for function in endpoints if function.is_gpu}) > 1:
        yield f"unit {unit}: its GPUs are on several NUMA nodes; its node counts as unknown"
