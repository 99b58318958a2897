"""What a reset of some functions could hit: these functions with their resets, and whatever shares their bridge or bus.

Decides nothing. Reads no function that is elsewhere, so a reclaim costs the same on a host of ten functions and on one
of a thousand; and it is read anew each time, so there is no cache that a hotplug could make a lie of. Must never know
of fewer neighbours than all of the host's functions would tell (`PciTree.reset_domain`): both of that function's
sources are asked here too, the bus numbers in the addresses and the kernel's own tree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

from ..ports import Sysfs
from . import pci
from .pci import DEVICES, Function, Ids
from .pcitree import PciTree


def read_reach(sysfs: Sysfs, addresses: Collection[str], *, allow: Collection[Ids] = ()) -> PciTree:
    """The tree of `addresses`, their bridges, and all that a reset of either could hit.

    Of each what `pci.outline_of` reads, and of `addresses` their reset methods: no more is needed to choose a reset. A
    function whose place the kernel does not tell is looked for among all of the host's.
    """
    listed = {entry for entry in sysfs.list(DEVICES) if pci.canonical_address(entry) == entry}
    found: dict[str, Function] = {}

    def read(address: str) -> Function | None:
        if address not in found and address in listed:
            read_it = partial(pci.outline_of, sysfs, address, allow=allow, with_resets=address in addresses)
            outline = pci.unless_gone(sysfs, address, _silent, read_it)
            if outline is not None:
                found[address] = outline
        return found.get(address)

    for address in sorted(addresses):
        function = read(address)
        if function is not None and not function.root_bus:
            return PciTree(pci.read_functions(sysfs, _silent, allow=allow, wanted=lambda _all: frozenset(addresses)))
        bridge = read(function.path[-1]) if function is not None and function.path else None
        for other in sorted(_beside(sysfs, function, bridge, listed)) if function is not None else ():
            read(other)
    return PciTree(found[address] for address in sorted(found))


def _beside(sysfs: Sysfs, function: Function, bridge: Function | None, listed: Collection[str]) -> Iterator[str]:
    """All on the buses that lead to the function or lie behind its bridge, and all in that bridge's directory."""
    last = max(bridge.buses[1], function.bus) if bridge and bridge.buses else function.bus
    buses = {f"{function.domain}:{bus:02x}" for bus in range(function.bus, last + 1)}
    yield from (address for address in listed if address.rpartition(":")[0] in buses)
    if bridge:
        yield from _below(sysfs, f"{DEVICES}/{bridge.address}")


def _below(sysfs: Sysfs, directory: str) -> Iterator[str]:
    """Functions are directories in the directory of the bridge that leads to them (drivers/pci/probe.c)."""
    for entry in sysfs.list(directory):
        if pci.canonical_address(entry) == entry:
            yield entry
            yield from _below(sysfs, f"{directory}/{entry}")


def _silent(_note: str) -> None:
    """What is odd is told by the inventory, which reads the same."""
