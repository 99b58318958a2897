"""The host's devices as the worker sees them: what there is, binding a unit, reclaiming it, whether it is well.

Remembers each unit's first sight of this boot, because "clean" means "as then", and what became of its reclaims. Calls
for several units run side by side; calls for one unit must come one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from gpupool.v1.inventory_pb2 import Inventory, Unit
from gpupool.v1.records_pb2 import UnitHistory

from ..inventory import pci
from ..inventory.pcitree import PciTree
from ..inventory.reach import read_reach
from ..inventory.read import read_inventory
from ..ports import Sysfs
from ..work.records import Records
from .baseline import Baseline, DeviceError, Final
from .bind import Refuse, require_ready
from .blocking import InFlight, RunBlocking, in_own_thread
from .health import HealthWatch
from .history import Histories, failed, record_name, succeeded
from .reclaim import Outcome, Patience, Reclaim
from .remember import Remembered
from .reset import HotReset, Means
from .scrub import scrub

__all__ = ["DeviceError", "Devices", "Policy", "SysfsDevices"]

T = TypeVar("T")
_KIND = "baselines"
LOOK_AGAIN_S = 0.05
READ_LIMIT_S = 10.0  # of a look at one unit's health


class Devices(Protocol):
    """What the worker needs of the host's devices."""

    def inventory(self) -> Inventory:
        """What the host has now; session and images are for the caller to fill in. Waits for no device that hangs."""
        ...

    async def used_by(self, units: Sequence[Unit]) -> Mapping[str, str]:
        """Who else uses functions of these units now, by address, in one look for all of them. Raises DeviceError.

        A look goes through every open file of the host, so a start takes one, however many units it has.
        """
        ...

    async def bind(self, unit: Unit, used: Mapping[str, str] | None = None) -> None:
        """Make every function of the unit ready for a VM. Raises DeviceError.

        Also if one is not where its reclaim left it: then somebody else has had it since it was proven clean. `used`:
        what `used_by` has said just before; None: it is looked at anew.
        """
        ...

    async def reclaim(self, unit: Unit, *, used: bool = True, allocation: str = "") -> str:
        """Prove the unit clean, after a reset if a VM may have `used` it since the last proof; returns the proof.

        `allocation`: of that VM, for the operator's scrub command. Raises DeviceError with the reason of a quarantine.
        """
        ...

    async def health(self, units: Sequence[Unit], *, in_use: bool = True) -> Mapping[str, str]:
        """What is wrong with the units that VMs use, or nobody, by unit; one that is well is not there.

        Looks at each anew.
        """
        ...

    async def toll(self, unit: Unit) -> str:
        """What befell a unit while its last VM had it that no look at its health has seen; empty: nothing.

        Ask before the reclaim, which forgets it.
        """
        ...

    def history(self, unit: Unit) -> UnitHistory:
        """What became of the unit's reclaims so far."""
        ...

    def recall(self, identity: str, history: UnitHistory) -> None:
        """Go on from what was reported of a unit's reclaims before this boot."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What the site decided. `scrub_command`: run between tenants, with its time limit; empty: none."""

    patience: Patience = field(default_factory=Patience)
    pm_reset_is_enough: bool = False  # see reset.Means
    scrub_command: tuple[str, ...] = ()
    scrub_timeout_s: float = 600.0


class SysfsDevices:
    """Implements Devices on a sysfs tree.

    `read` makes the inventory of a tree; functions with (vendor, device) ids in `allow` are GPUs whatever their class.
    `hung` tells of functions on which a call of an earlier agent still hangs, and what it is. `refuse` is bind's.
    """

    def __init__(
        self,
        sysfs: Sysfs,
        records: Records,
        *,
        policy: Policy | None = None,
        read: Callable[[Sysfs], Inventory] = read_inventory,
        allow: Collection[pci.Ids] = (),
        hot_reset: HotReset | None = None,
        hung: Callable[[], Mapping[str, str]] = dict,
        refuse: Refuse = lambda _addresses: {},
        run_blocking: RunBlocking = in_own_thread,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sysfs = sysfs
        self._records = records
        self._policy = policy = policy or Policy()
        self._read = read
        self._allow = allow
        self._means = Means(sysfs, hot_reset, pm_is_enough=policy.pm_reset_is_enough)
        self._hung = hung
        self._refuse = refuse
        self._run = run_blocking
        self._wall = wall
        self._in_flight = InFlight(run_blocking)
        self._remembered = Remembered(sysfs)
        self._health = HealthWatch(sysfs, records)
        self._histories = Histories(records)
        self._baselines = {name: Baseline.from_dict(data) for name, data in records.load(_KIND).items()}

    def inventory(self) -> Inventory:
        """See Devices. Functions with a call under way are shown as they were before it."""
        busy = self._busy()
        there = self._remembered.without(busy)
        self._forget_gone({*there.list(pci.DEVICES), *busy})
        found = self._read(there)
        found.notes.extend(f"{address}: {what} of an earlier agent hangs" for address, what in self._hung().items())
        return found

    async def used_by(self, units: Sequence[Unit]) -> Mapping[str, str]:
        """See Devices."""
        addresses = [address for unit in units for address in _addresses(unit)]
        for unit in units:
            await self._idle(unit)
        limit_s = self._policy.patience.step_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._in_flight.on(addresses)(lambda: self._refuse(addresses))
        except TimeoutError as error:
            raise Final(units[0].id, "users", f"not known after {limit_s:g} s", "none") from error

    async def bind(self, unit: Unit, used: Mapping[str, str] | None = None) -> None:
        """See Devices."""
        await self._idle(unit)
        refuse: Refuse = self._refuse if used is None else lambda _addresses: used

        def look() -> None:
            require_ready(self._sysfs, _addresses(unit), refuse)
            self._health.begin(unit)

        limit_s = self._policy.patience.step_s
        try:
            async with asyncio.timeout(limit_s):
                await self._in_flight.on(_addresses(unit))(look)
        except TimeoutError as error:
            raise Final(unit.id, "bind", f"not done after {limit_s:g} s", "done") from error

    async def reclaim(self, unit: Unit, *, used: bool = True, allocation: str = "") -> str:
        """See Devices. The first reclaim of a boot also takes the first sight, of a unit that was just reset."""
        clock = asyncio.get_running_loop().time
        began = clock()
        noted = self._health.noted(unit)
        self._health.end(unit)
        try:
            await self._idle(unit)
            baseline = self._baselines.get(record_name(unit))
            outcome = await self._reclaim_of(unit, allocation).run(baseline, used=used)
        except DeviceError as error:
            history = failed(self.history(unit), str(error), self._wall(), clock() - began)
            self._histories.keep(unit, history)
            raise
        self._learn(unit, outcome)
        history = succeeded(self.history(unit), outcome.method, self._wall(), clock() - began)
        self._histories.keep(unit, history)
        await self._soon(unit, self._health.rest)
        return ", ".join(filter(None, (outcome.proof, noted)))

    async def health(self, units: Sequence[Unit], *, in_use: bool = True) -> Mapping[str, str]:
        """See Devices. A unit that another call is busy with, or that cannot be looked at in time, says nothing."""
        idle = [unit for unit in units if not self._busy().intersection(_addresses(unit))]
        look = self._health.look if in_use else self._health.glance
        found = await asyncio.gather(*(self._soon(unit, look) for unit in idle))
        return {unit.id: what for unit, what in zip(idle, found, strict=True) if what}

    async def toll(self, unit: Unit) -> str:
        """See Devices."""
        return await self._soon(unit, self._health.toll) or ""

    def history(self, unit: Unit) -> UnitHistory:
        """See Devices. It survives the agent; for a reboot see `recall`."""
        return self._histories.of(unit)

    def recall(self, identity: str, history: UnitHistory) -> None:
        """See Devices."""
        self._histories.recall(identity, history)

    async def _soon(self, unit: Unit, look: Callable[[Unit], T]) -> T | None:
        """What the look says; None if it takes too long."""
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                return await self._in_flight.on(_addresses(unit))(lambda: look(unit))
        except TimeoutError:
            return None

    async def _look_around(self, unit: Unit) -> PciTree:
        """What a reset of the unit could hit, without waiting for others that calls are under way on."""
        sysfs = self._remembered.without(self._busy())
        return await self._run(partial(read_reach, sysfs, _addresses(unit), allow=self._allow))

    def _reclaim_of(self, unit: Unit, allocation: str = "") -> Reclaim:
        command, limit_s = self._policy.scrub_command, self._policy.scrub_timeout_s
        return Reclaim(
            unit,
            self._means,
            lambda: self._look_around(unit),
            self._in_flight.on(_addresses(unit)),
            self._policy.patience,
            self._refuse,
            (lambda: scrub(command, unit, allocation, limit_s)) if command else None,
        )

    def _busy(self) -> frozenset[str]:
        return self._in_flight.functions() | self._hung().keys()

    async def _idle(self, unit: Unit) -> None:
        """Wait for earlier calls on the unit. Raises Final if one hangs: whatever touches the unit now would too."""
        looks = 1 + round(self._policy.patience.idle_s / LOOK_AGAIN_S)
        for again in reversed(range(looks)):
            if not (held := sorted(self._busy().intersection(_addresses(unit)))):
                return
            if again:
                await asyncio.sleep(LOOK_AGAIN_S)
        what = self._hung().get(held[0], "an earlier call")
        raise Final(held[0], "device", f"held by the kernel ({what} hangs)", "free; a reboot may free it")

    def _learn(self, unit: Unit, outcome: Outcome) -> None:
        name = record_name(unit)
        if self._baselines.get(name) != outcome.baseline:
            self._records.save(_KIND, name, outcome.baseline.to_dict())
            self._baselines[name] = outcome.baseline

    def _forget_gone(self, there: Collection[str]) -> None:
        """A device that was taken out had no power since, and gets other BARs: its next sight is its first again."""
        for name, baseline in list(self._baselines.items()):
            if not any(function.address in there for function in baseline.functions):
                del self._baselines[name]
                self._records.remove(_KIND, name)


def _addresses(unit: Unit) -> list[str]:
    return [function.address for function in unit.functions]
