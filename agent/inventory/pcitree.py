"""Which functions are near each other: same slot, same IOMMU group, same bus, behind the same bridge.

Built once from all functions of a host, so that asking for one of them does not go through all the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from .pci import Function


class PciTree:
    """All functions of a host, and who is whose neighbour."""

    def __init__(self, functions: Iterable[Function]) -> None:
        self.by_address = {function.address: function for function in functions}
        self._slots: defaultdict[str, list[Function]] = defaultdict(list)
        self._groups: defaultdict[int, list[Function]] = defaultdict(list)
        self._buses: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        self._leads_to: dict[tuple[str, int], Function] = {}
        self._below: defaultdict[str, list[str]] = defaultdict(list)
        for function in self.by_address.values():
            self._slots[function.slot].append(function)
            self._groups[function.iommu_group].append(function)
            self._buses[function.domain, function.bus].append(function.address)
            if function.buses:
                self._leads_to.setdefault((function.domain, function.buses[0]), function)
            for bridge in function.path:
                self._below[bridge].append(function.address)

    def __iter__(self) -> Iterator[Function]:
        """All functions."""
        return iter(self.by_address.values())

    def slot_of(self, function: Function) -> list[Function]:
        """The functions of its slot, itself included."""
        return self._slots.get(function.slot, [])

    def group_of(self, function: Function) -> list[Function]:
        """The functions of its IOMMU group, itself included; empty if it has none."""
        return self._groups.get(function.iommu_group, []) if function.iommu_group >= 0 else []

    def bridge_above(self, function: Function) -> Function | None:
        """The bridge that leads to the function; None on a root bus, or if no bridge could be read that does.

        The kernel's own tree goes first: bridge registers name no bus for virtual functions beyond their parent's.
        """
        if function.root_bus:
            return self.by_address.get(function.path[-1]) if function.path else None
        return self._leads_to.get((function.domain, function.bus))

    def reset_domain(self, function: Function) -> frozenset[str]:
        """Addresses of all that a bus reset of `function` hits: its bus, and all that is below the bridge above it.

        By bus numbers and by the kernel's tree: what either of them tells is hit.
        """
        bridge = self.bridge_above(function)
        last = max(bridge.buses[1], function.bus) if bridge and bridge.buses else function.bus
        hit = {function.address}
        for bus in range(function.bus, last + 1):
            hit.update(self._buses.get((function.domain, bus), ()))
        if bridge:
            hit.update(self._below.get(bridge.address, ()))
        return frozenset(hit)
