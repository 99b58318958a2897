"""Removing a unit's functions from the kernel and finding them again: the last means before quarantine.

Removes nothing but the unit's own functions. The kernel forgets all that it knew of a function, its `driver_override`
too, and gives it to whichever driver wants it as soon as it is found (pci_bus_add_device calls device_attach, which
heeds `drivers_autoprobe` only in the newest kernels). So the caller must bind the unit again at once.

Removing and finding take one lock of the whole host (pci_rescan_remove_lock): a removal that hangs stops hotplug
everywhere, which is one reason for this to come last.
"""

from __future__ import annotations

import asyncio

from gpupool.v1 import inventory_pb2

from ..inventory.pci import DEVICES
from ..inventory.pcitree import PciTree
from ..ports import Sysfs
from .baseline import NotClean, is_virtual
from .blocking import RunBlocking

LOOK_AGAIN_S = 0.2


async def rescan(
    sysfs: Sysfs,
    unit: inventory_pb2.Unit,
    tree: PciTree,
    wait_s: float,
    *,
    run_blocking: RunBlocking,
) -> None:
    """Remove the functions that are still there, last first, scan, and wait up to `wait_s` seconds for all to be back.

    Raises NotClean if one does not come back, OSError if the kernel refuses. Has no time limit of its own.
    """
    # A virtual function would not come back: it is found with its parent only.
    addresses = [function.address for function in unit.functions if not is_virtual(sysfs, function.address)]
    bridges = {bridge.address for one in tree if one.address in addresses if (bridge := tree.bridge_above(one))}
    paths = [f"{DEVICES}/{bridge}/rescan" for bridge in sorted(bridges)] or ["bus/pci/rescan"]
    for address in reversed(addresses):
        if sysfs.list(f"{DEVICES}/{address}"):
            await run_blocking(lambda address=address: sysfs.write(f"{DEVICES}/{address}/remove", "1"))  # type: ignore[misc]
    for path in paths:
        await run_blocking(lambda path=path: sysfs.write(path, "1"))  # type: ignore[misc]
    for _ in range(1 + round(wait_s / LOOK_AGAIN_S)):
        if not (missing := [address for address in addresses if not sysfs.list(f"{DEVICES}/{address}")]):
            return
        await asyncio.sleep(LOOK_AGAIN_S)
    raise NotClean(missing[0], "function", "not found again after it was removed", "there")
