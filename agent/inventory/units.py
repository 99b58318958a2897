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
from .pci import KERNELS_CHOICE, Function
from .pcitree import PciTree

# As reset_method spells them (pci_reset_fn_methods, drivers/pci/pci.c). A name that we do not know resets nothing.
BUS_METHODS = frozenset({"bus", "cxl_bus"})  # they hit the neighbours too
# They clean a GPU and hit nothing else. "pm" goes through D3hot, which need not clear memory (quirk_no_pm_reset, for
# one, is about "retains the framebuffer contents").
OWN_METHODS = frozenset({"flr", "af_flr", "device_specific", "acpi", KERNELS_CHOICE})
PM = "pm"
PASSTHROUGH_DRIVERS = frozenset({"", "pci-stub"})  # and any vfio driver: the host makes no use of such a device
STORAGE, MULTIMEDIA, SERIAL_BUS = 0x01, 0x04, 0x0C  # base classes


@dataclass(frozen=True, slots=True)
class DeviceUnit:
    """Functions that go to a VM together, by address, without bridges. `unfit`: why they must not; empty: they may."""

    functions: tuple[Function, ...]
    model: str
    memory_mib: int  # of each GPU; 0: unknown
    memory_source: str  # where that is from, as gpus.memory_of has it
    numa_node: int  # -1: unknown, or its GPUs are on several
    unfit: str
    notes: tuple[str, ...]
    nic: str = ""  # the network function that is paired with it, see pairing.py
    nic_near: int = 0

    @property
    def id(self) -> str:
        """The address of the first GPU."""
        return next(function.address for function in self.functions if function.is_gpu)


def device_units(functions: Iterable[Function], *, pm_is_enough: bool = False) -> list[DeviceUnit]:
    """The device units among all of a host's PCI functions, sorted by id. SR-IOV virtual functions found no units.

    `pm_is_enough`: the site takes a GPU for clean after a way through D3hot, which need not clear its memory.
    """
    tree = _tree(functions)
    seeds = sorted((f for f in tree if f.is_gpu and not f.virtual), key=lambda f: f.address)
    units = [_unit(members, tree, pm_is_enough=pm_is_enough) for members in _merged(seeds, tree)]
    return sorted(units, key=lambda unit: unit.id)


def near_gpus(functions: Iterable[Function]) -> frozenset[str]:
    """Addresses of all that may end up in a unit, judged by outlines, whose reset methods are not known yet."""
    tree = _tree(functions)
    near: set[str] = set()
    for gpu in tree:
        if gpu.is_gpu and gpu.address not in near:
            near |= _closure(gpu, tree, any_may_need_bus_reset=True)
    return frozenset(near)


def bridge_above(function: Function, functions: Iterable[Function]) -> Function | None:
    """The bridge that leads to the function's bus; None on a root bus, or if no bridge could be read that does."""
    return _tree(functions).bridge_above(function)


def reset_domain(function: Function, functions: Iterable[Function]) -> frozenset[str]:
    """Addresses of all that a bus reset of `function` hits, itself included. A PciTree spares building one."""
    return _tree(functions).reset_domain(function)


def needs_bus_reset(function: Function, functions: Iterable[Function]) -> bool:
    """Whether a bus reset is the only way to clean this function, and may be possible.

    It may be behind any bridge: where the kernel lists none, vfio-pci can still do it (see reset.py).
    """
    if OWN_METHODS.intersection(function.reset_methods):
        return False
    listed = bool(BUS_METHODS.intersection(function.reset_methods))
    return listed or _tree(functions).bridge_above(function) is not None


def _tree(functions: Iterable[Function]) -> PciTree:
    return functions if isinstance(functions, PciTree) else PciTree(functions)


def _closure(seed: Function, tree: PciTree, *, any_may_need_bus_reset: bool = False) -> set[str]:
    members = {seed.address}
    todo = [seed]
    while todo:
        tied = _tied_to(todo.pop(), tree, any_may_need_bus_reset=any_may_need_bus_reset)
        for address in tied:
            if address not in members:
                members.add(address)
                todo.append(tree.by_address[address])
    return members


def _tied_to(function: Function, tree: PciTree, *, any_may_need_bus_reset: bool) -> Iterator[str]:
    """Addresses of what cannot be handed out apart from `function`. A bridge ties nothing: it stays with the host."""
    if function.is_bridge:
        return
    if function.is_gpu:
        yield from (other.address for other in tree.slot_of(function) if not other.virtual)
    yield from (other.address for other in tree.group_of(function))
    if function.is_gpu and (any_may_need_bus_reset or needs_bus_reset(function, tree)):
        yield from tree.reset_domain(function)


def _merged(seeds: Iterable[Function], tree: PciTree) -> list[set[str]]:
    """The seeds' closures; those that share an endpoint are one, for being tied is not symmetric.

    (A bus reset hits functions that need none.) A seed in a closure adds nothing of its own to it.
    """
    owner: dict[str, set[str]] = {}
    for seed in seeds:
        if seed.address in owner:
            continue
        joined = _closure(seed, tree)
        for address in sorted(joined):
            if not tree.by_address[address].is_bridge and (known := owner.get(address)) is not None:
                joined |= known
        owner |= dict.fromkeys((a for a in joined if not tree.by_address[a].is_bridge), joined)
    return list({id(members): members for members in owner.values()}.values())


def _unit(members: set[str], tree: PciTree, *, pm_is_enough: bool) -> DeviceUnit:
    functions = [tree.by_address[address] for address in sorted(members)]
    endpoints = tuple(function for function in functions if not function.is_bridge)
    found = [function for function in endpoints if function.is_gpu]
    nodes = {gpu.numa_node for gpu in found}
    memory_mib, source = gpus.memory_of(found[0])
    return DeviceUnit(
        functions=endpoints,
        model=gpus.identify(found[0].vendor_id, found[0].device_id).model,
        memory_mib=memory_mib,
        memory_source=source,
        numa_node=nodes.pop() if len(nodes) == 1 else -1,
        unfit="; ".join(_unfit(endpoints, tree, pm_is_enough=pm_is_enough)),
        notes=tuple(_notes(functions, endpoints)),
    )


def _unfit(endpoints: Sequence[Function], tree: PciTree, *, pm_is_enough: bool) -> Iterator[str]:
    found = [function for function in endpoints if function.is_gpu]
    slots = {gpu.slot for gpu in found}
    models = sorted({gpus.identify(gpu.vendor_id, gpu.device_id).model for gpu in found})
    for function in endpoints:
        yield from unfit_group(function, tree)
        if not function.vendor_id or not function.device_id:
            yield f"{function.address}: vendor or device id cannot be read"
        if function.class_code < 0:
            yield f"{function.address}: class cannot be read"
        if function.virtual_functions:
            yield f"{function.address} has {function.virtual_functions} SR-IOV virtual functions switched on"
        if function.mdevs_in_use:
            yield f"{function.address} has {function.mdevs_in_use} mediated devices in use"
        if function.is_gpu:
            yield from _unfit_gpu(function, tree, pm_is_enough=pm_is_enough)
        else:
            yield from _unfit_neighbour(function, slots)
    if len(models) > 1:
        yield f"its GPUs are of several models: {', '.join(models)}"


def unfit_group(function: Function, tree: PciTree) -> Iterator[str]:
    """Why the function's IOMMU group cannot be handed out whole, as a group must be."""
    if function.iommu_group < 0:
        yield f"{function.address} has no IOMMU group (is the IOMMU switched on?)"
    elif function.no_iommu:
        yield f"{function.address} has an IOMMU group in name only (VFIO's no-IOMMU mode): it isolates nothing"
    if function.iommu_group >= 0 and function.address not in function.group_members:
        group = f"its IOMMU group {function.iommu_group}"
        yield f"{function.address} is not in the list of {group}: who shares it is unknown"
    strangers = set(function.group_members) - {other.address for other in tree.group_of(function)}
    if strangers:
        names = " ".join(sorted(strangers)[:4])
        yield f"IOMMU group {function.iommu_group} of {function.address} also holds what cannot be read: {names}"


def _unfit_gpu(gpu: Function, tree: PciTree, *, pm_is_enough: bool) -> Iterator[str]:
    if gpu.boot_vga:
        yield f"{gpu.address} is the boot VGA"
    elif gpu.boot_vga_unknown:
        yield f"{gpu.address} may be the boot VGA: its boot_vga cannot be read"
    if gpus.is_management_display(gpu.vendor_id):
        yield f"{gpu.address} is the server's management display"
    if not OWN_METHODS.intersection(gpu.reset_methods) and not needs_bus_reset(gpu, tree):
        if PM not in gpu.reset_methods:
            yield f"{gpu.address} has no usable reset method"
        elif not pm_is_enough:
            yield f"{gpu.address} has only a power management reset, which need not clear its memory"
    if gpu.class_code >> 16 == STORAGE:
        yield f"{gpu.address} (class {gpu.class_code >> 8:04x}) is storage, which keeps data across resets"
    if gpu.virtual:
        yield f"{gpu.address} is an SR-IOV virtual function"


def _unfit_neighbour(function: Function, gpu_slots: set[str]) -> Iterator[str]:
    """Why a function that is no GPU spoils the unit. Storage always does: no reset clears what a job wrote to it."""
    kind = f"{function.address} (class {max(function.class_code, 0) >> 8:04x})"
    base_class = function.class_code >> 16
    if function.class_code < 0:
        return  # nothing can be said of it
    if base_class == STORAGE:
        yield f"{kind} is storage, which keeps data across resets"
    elif function.slot in gpu_slots and base_class in (MULTIMEDIA, SERIAL_BUS):
        return  # a GPU's audio, or its USB-C controller: the host's driver has it only because it was there first
    elif function.driver not in PASSTHROUGH_DRIVERS and "vfio" not in function.driver:
        yield f"{kind} is used by the host through {function.driver}, and cannot be separated"


def _notes(members: Sequence[Function], endpoints: Sequence[Function]) -> Iterator[str]:
    unit = next(function.address for function in endpoints if function.is_gpu)
    for bridge in (function for function in members if function.is_bridge):
        yield f"unit {unit}: bridge {bridge.address} is in its IOMMU group or reset domain; it stays with the host"
    for function in endpoints:
        if not function.is_gpu and not function.reset_methods:
            kind = f"{function.address} (class {max(function.class_code, 0) >> 8:04x})"
            yield f"unit {unit}: {kind} has no reset of its own"
    if len({function.numa_node for function in endpoints if function.is_gpu}) > 1:
        yield f"unit {unit}: its GPUs are on several NUMA nodes; its node counts as unknown"
