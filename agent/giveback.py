"""Gives a host its devices back: each unit that nobody uses to the driver that it would have without gpupool."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpupool.v1.inventory_pb2 import Unit

from .devices.baseline import BindFailed
from .devices.bind import VFIO, Refuse, override, release
from .devices.blocking import RunBlocking, in_own_thread
from .ports import Sysfs


async def give_back(
    sysfs: Sysfs,
    units: Iterable[Unit],
    refuse: Refuse,
    tell: Callable[[str], None],
    *,
    run_blocking: RunBlocking = in_own_thread,
) -> bool:
    """Whether all of them are back; `tell` gets a line for each unit that vfio-pci has. One that is used stays."""
    done = True
    for unit in units:
        addresses = [function.address for function in unit.functions]
        if not any(override(sysfs, address) == VFIO for address in addresses):
            continue
        used = await run_blocking(lambda addresses=addresses: refuse(addresses))  # type: ignore[misc]
        if used:
            tell(f"{unit.id}: left alone: {'; '.join(used.values())}")
            done = False
            continue
        try:
            await release(sysfs, unit, run_blocking=run_blocking)
        except BindFailed as exc:
            tell(f"{unit.id}: {exc}")
            done = False
        else:
            now = (sysfs.link_name(f"bus/pci/devices/{address}/driver") or "no driver" for address in addresses)
            tell(f"{unit.id}: back with {', '.join(now)}")
    return done
