"""The host's devices as the worker sees them: what there is, binding a unit, reclaiming it.

Remembers each unit's first sight of this boot, because "clean" means "as then".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from gpupool.v1.inventory_pb2 import Inventory, Unit

from ..ports import Sysfs
from ..work.records import Records
from . import reclaim as devices
from .baseline import Baseline, DeviceError, first_sight
from .inventory import read_inventory

__all__ = ["DeviceError", "Devices", "SysfsDevices"]

_KIND = "baselines"


class Devices(Protocol):
    """What the worker needs of the host's devices."""

    def inventory(self) -> Inventory:
        """What the host has now; session and images are for the caller to fill in."""
        ...

    async def bind(self, unit: Unit) -> None:
        """Make every function of the unit ready for a VM. Raises DeviceError."""
        ...

    async def reclaim(self, unit: Unit) -> str:
        """Reset the unit and prove it clean; returns the proof. Raises DeviceError with the reason of a quarantine."""
        ...


class SysfsDevices:
    """Implements Devices on a sysfs tree. `reset_timeout_s` bounds a reset, and the proof after it."""

    def __init__(
        self,
        sysfs: Sysfs,
        records: Records,
        *,
        reset_timeout_s: float = 60.0,
        reserved_memory_mib: int = 0,
        reserved_cpus: Collection[int] = (),
        labels: Mapping[str, str] | None = None,
        run_blocking: devices.RunBlocking = devices.in_own_thread,
    ) -> None:
        self._sysfs = sysfs
        self._records = records
        self._timeout_s = reset_timeout_s
        self._memory_mib = reserved_memory_mib
        self._cpus = reserved_cpus
        self._labels = labels
        self._run = run_blocking
        self._baselines = {name: Baseline.from_dict(data) for name, data in records.load(_KIND).items()}

    def inventory(self) -> Inventory:
        """See Devices."""
        return read_inventory(
            self._sysfs, reserved_memory_mib=self._memory_mib, reserved_cpus=self._cpus, labels=self._labels
        )

    async def bind(self, unit: Unit) -> None:
        """See Devices."""
        await devices.bind(self._sysfs, unit, run_blocking=self._run)

    async def reclaim(self, unit: Unit) -> str:
        """See Devices. The first reclaim of a boot also takes the first sight, of a unit that was just reset."""
        await self.bind(unit)
        if unit.id not in self._baselines:
            await devices.reset(self._sysfs, unit, self._timeout_s, run_blocking=self._run)
            baseline = await self._run(lambda: first_sight(self._sysfs, unit))
            self._records.save(_KIND, unit.id, baseline.to_dict())
            self._baselines[unit.id] = baseline
        return await devices.reclaim(
            self._sysfs, unit, self._baselines[unit.id], self._timeout_s, run_blocking=self._run
        )
