"""Which resets a unit can have: a literal order of methods, and never one that hits a function outside the unit.

Decides what to try, mildest first; touches nothing. What a `Step` does is one or a few writes.

Facts of Linux (drivers/pci/pci.c): a function's `reset_method` lists "bus" only where it is alone on its bus
(pci_parent_bus_reset). A GPU with an audio function never lists it, though a bus reset would do both good. Two ways
remain. The hot reset of vfio-pci, which QEMU uses too, works wherever all functions behind the bridge are bound to
vfio-pci, and resets a hotplug slot without the slot noticing. The bridge's `reset_subordinate` (Linux 6.13, and stable
kernels of December 2024) needs nobody's consent, and may look like an unplugging to a hotplug slot; it comes second.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpupool.v1 import inventory_pb2

from ..inventory.pci import DEVICES, KERNELS_CHOICE, Function
from ..inventory.pcitree import PciTree
from ..inventory.units import BUS_METHODS, PM, needs_bus_reset
from ..ports import Sysfs
from .baseline import NotClean

# Best first, by the kernel's names and in its order (pci_reset_fn_methods): a model has a reset specific to it because
# the generic one fails on it. But a bus reset is stronger than `pm`.
METHODS = ("device_specific", "acpi", "flr", "af_flr", *sorted(BUS_METHODS), PM, KERNELS_CHOICE)
BUS_STEPS = frozenset({*BUS_METHODS, "vfio-hot-reset"})

# What the hot reset fails with where the kernel cannot do it, or not this way. EPERM is not among them: there is
# somebody else behind the bridge.
NOT_POSSIBLE = frozenset({errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.ENOTTY, errno.ENOSYS})


class HotReset(Protocol):
    """Resets the slot or bus of a function through vfio-pci."""

    def __call__(self, address: str, groups: Sequence[int], ours: Collection[str], /) -> None:
        """See IsolatedSysfs.hot_reset. Raises OSError, also if the kernel cannot do it here."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One reset: of which function, by which method, and the call that does it, which may block for ever."""

    address: str
    method: str
    do: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Means:
    """What resets are done with. `pm_is_enough`: whether going through D3hot counts as a reset of a GPU.

    It resets registers, but nothing says that it clears memory (PCI Power Management 1.2, 5.4.1: "internal reset").
    """

    sysfs: Sysfs
    hot_reset: HotReset | None = None
    pm_is_enough: bool = False


def by_function(means: Means, unit: inventory_pb2.Unit, tree: PciTree) -> list[Step]:
    """Each function by the best method of its own, in the order of addresses.

    A bus reset stands in where it is the only method and hits nothing outside the unit. Companions without any are
    passed over: the proof covers them. Raises NotClean if a function is gone, or a GPU has no method.
    """
    mine = _mine(unit, tree)
    steps: list[Step] = []
    covered: set[str] = set()
    for function in mine:
        if function.address in covered:
            continue
        main = function.is_gpu or function.address == unit.id
        whole = _is_whole(function, unit, tree)
        only_bus = needs_bus_reset(function, tree) or not _usable(function, means, main=main, whole=whole)
        if only_bus and main and (bus := _bus_step(means, function, unit, tree)):
            covered |= tree.reset_domain(function)
            steps.append(bus)
        elif usable := _usable(function, means, main=main, whole=whole):
            steps.append(Step(function.address, usable[0], _reset_function(means.sysfs, function.address, usable[0])))
        elif main:
            listed = " ".join(function.reset_methods) or "none"
            raise NotClean(function.address, "reset method", listed, "one that clears a GPU and hits nothing else")
    return [step for step in steps if step.address not in covered or step.method in BUS_STEPS]


def by_bus(means: Means, unit: inventory_pb2.Unit, tree: PciTree) -> list[Step]:
    """All functions by resets of the buses that they are on; empty if one of these hits a function outside the unit."""
    steps: list[Step] = []
    covered: set[str] = set()
    for function in _mine(unit, tree):
        if function.address not in covered:
            step = _bus_step(means, function, unit, tree)
            if step is None:
                own = _usable(function, means, main=False, whole=False) if function.is_network else []
                if not own:  # a NIC that is paired with the GPU may share its bus with others'
                    return []
                steps.append(Step(function.address, own[0], _reset_function(means.sysfs, function.address, own[0])))
                continue
            covered |= tree.reset_domain(function)
            steps.append(step)
    return steps


def _mine(unit: inventory_pb2.Unit, tree: PciTree) -> list[Function]:
    ours = {function.address for function in unit.functions}
    for gone in sorted(ours - {function.address for function in tree}):
        raise NotClean(gone, "function", "gone from sysfs", "there")
    return [function for function in tree if function.address in ours]


def _is_whole(function: Function, unit: inventory_pb2.Unit, tree: PciTree) -> bool:
    """Whether a bus reset of the function hits nothing outside the unit, bridges apart."""
    ours = {one.address for one in unit.functions}
    domain = tree.reset_domain(function)
    return all(other.address in ours or other.is_bridge for other in tree if other.address in domain)


def _usable(function: Function, means: Means, *, main: bool, whole: bool) -> list[str]:
    """The function's own methods that may be used on it, best first. `main`: it is a GPU, so memory must be cleared."""
    return [
        name
        for name in METHODS
        if name in function.reset_methods
        and (whole or name not in BUS_METHODS)
        and (name != PM or means.pm_is_enough or not main)
    ]


def _bus_step(means: Means, function: Function, unit: inventory_pb2.Unit, tree: PciTree) -> Step | None:
    """A reset of all that is behind the bridge above the function; None if that is not possible or not ours to do."""
    bridge = tree.bridge_above(function)
    if bridge is None or not _is_whole(function, unit, tree):
        return None
    domain = tree.reset_domain(function)
    behind = [other for other in tree if other.address in domain and not other.is_bridge]
    groups = {other.iommu_group for other in behind}
    if means.hot_reset and behind and min(groups) >= 0 and len({other.bus for other in behind}) == 1:
        hot_reset, ours = means.hot_reset, sorted(other.address for other in behind)
        do = lambda: hot_reset(function.address, sorted(groups), ours)  # noqa: E731 - a Step is data
        return Step(function.address, "vfio-hot-reset", _or_else(do, means.sysfs, bridge))
    if not bridge.resets_buses:
        own = [name for name in sorted(BUS_METHODS) if name in function.reset_methods]
        return Step(function.address, own[0], _reset_function(means.sysfs, function.address, own[0])) if own else None
    return Step(function.address, "bus", _reset_below(means.sysfs, bridge.address))


def _or_else(hot_reset: Callable[[], None], sysfs: Sysfs, bridge: Function) -> Callable[[], None]:
    """The hot reset; if the kernel refuses that, the bridge's, where it has one."""

    def do() -> None:
        try:
            hot_reset()
        except OSError as error:
            if error.errno not in NOT_POSSIBLE or not bridge.resets_buses:
                raise
            _reset_below(sysfs, bridge.address)()

    return do


def _reset_below(sysfs: Sysfs, bridge: str) -> Callable[[], None]:
    return lambda: sysfs.write(f"{DEVICES}/{bridge}/reset_subordinate", "1")


def _reset_function(sysfs: Sysfs, address: str, method: str) -> Callable[[], None]:
    """A reset by exactly `method`. Then the list that was there comes back, which may be an operator's choice."""
    base = f"{DEVICES}/{address}"

    def do() -> None:
        listed = sysfs.read(f"{base}/reset_method") or ""
        choose = bool(listed) and listed.split()[0] != method
        if choose:
            sysfs.write(f"{base}/reset_method", method)
        try:
            sysfs.write(f"{base}/reset", "1")
        finally:
            if choose:
                with contextlib.suppress(OSError):  # the function may be gone now, which the proof will tell
                    sysfs.write(f"{base}/reset_method", listed)

    return do
