"""The actions of the plan, carried out: each takes one allocation or one unit from where it is to where it should be.

An action that fails leaves the record such that the next plan tries again or ends the VM; none raises for what a VM, a
device or a disk may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from gpupool.store.port import StoreError
from gpupool.v1 import job_pb2
from gpupool.v1.inventory_pb2 import Inventory, Unit
from gpupool.v1.records_pb2 import Allocation, UnitHistory

from ..devices.host import DeviceError, Devices
from ..devices.identity import mismatch
from ..ports import Clock, VmRuntime, VmStartError, VolumeMount
from ..timing import Limits
from . import reconcile
from .ledger import Ledger, sick_reason
from .report import Reporter
from .tables import VmIs
from .vmspec import vm_spec
from .volumes import VolumeError, VolumeStore
from .wishes import Wishes

_log = logging.getLogger(__name__)
_RETRY_S = 1.0


class Loop(Protocol):
    """What actions ask of the loop that begins them."""

    reporter: Reporter
    wishes: Wishes

    def view(self, *, without: str = "") -> reconcile.View:
        """What a plan rests on, as if the allocation `without` were not being worked on."""
        ...

    def may_run(self, session: int) -> bool:
        """Whether a VM of that session may run now."""
        ...

    def kick(self) -> None:
        """Something has changed: plan again."""
        ...


class Actions:
    """What the worker can do. `images` lists the guest images at hand, `inventory` this host's units."""

    def __init__(  # noqa: PLR0917
        self,
        runtime: VmRuntime,
        devices: Devices,
        volumes: VolumeStore,
        clock: Clock,
        ledger: Ledger,
        limits: Limits,
        *,
        images: Callable[[], Sequence[str]],
        inventory: Callable[[], Inventory],
        reserved_cpus: Sequence[int] = (),
    ) -> None:
        self._runtime = runtime
        self._devices = devices
        self._volumes = volumes
        self._clock = clock
        self._ledger = ledger
        self._limits = limits
        self._images = images
        self._inventory = inventory
        self._reserved_cpus = reserved_cpus
        self._starts = asyncio.Semaphore(limits.starts_at_once)
        self._checkpoints: dict[str, asyncio.Event] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._starting: dict[str, str] = {}  # starts under way, and why their VM went meanwhile
        self._worker: Loop

    def attach(self, worker: Loop) -> None:
        """The worker that these actions are for."""
        self._worker = worker

    def checkpointed(self, allocation: str) -> None:
        """The guest answered, or is gone: no need to wait for its checkpoint any more."""
        if event := self._checkpoints.get(allocation):
            event.set()

    def heard(self, allocation: str) -> None:
        """The guest's command ended, or the VM is gone."""
        if event := self._news.get(allocation):
            event.set()

    async def health(self, units: Sequence[Unit], *, in_use: bool = True) -> Mapping[str, str]:
        """What is wrong with units that VMs have, or nobody, by unit."""
        return await self._devices.health(units, in_use=in_use)

    def recall(self, identity: str, history: UnitHistory) -> None:
        """What the store has of a unit's reclaims, which this boot's records may not."""
        self._devices.recall(identity, history)

    def defer_end(self, allocation: str, reason: str) -> bool:
        """Whether the VM's end is for its start to conclude, which knows better why it failed."""
        if allocation not in self._starting:
            return False
        self._starting[allocation] = reason
        return True

    def of(self, action: reconcile.Action, desired: Mapping[str, Allocation]) -> Coroutine[None, None, None] | None:
        """The work that an action is; None if it was no more than a change of records, which is done then."""
        match action:
            case reconcile.Start(name):
                return self.start(desired[name])
            case reconcile.Stop(name, grace_s, reason):
                return self.stop(name, grace_s, reason)
            case reconcile.Destroy(name, reason):
                return self.destroy(name, reason)
            case reconcile.Reclaim(unit):
                return self.reclaim(unit)
            case reconcile.End(name, outcome, message):
                self._ledger.end_unstarted(desired[name], outcome, message)
            case reconcile.Adopt(name):
                self._ledger.adopt(desired[name], self._clock.boot() + self._limits.start_timeout_s)
            case reconcile.Forget(name):
                self._ledger.forget(name)
            case reconcile.Retry(unit):
                self._ledger.retried(unit, "an operator asks for another try")
            case reconcile.Vouch(unit, name):
                self._ledger.vouch(unit, name)
        return None

    async def start(self, want: Allocation) -> None:
        """From nothing to a VM that runs, or to the end START_FAILED."""
        async with self._starts:
            # While it waited for its turn, the allocation may have been stopped or the deadline passed.
            if not reconcile.may_start(self._worker.view(without=want.id), want.id):
                return
            if message := self._misfit(want):
                self._ledger.end_unstarted(want, job_pb2.OUTCOME_START_FAILED, message)
                return
            self._ledger.prepare(want, self._clock.boot() + self._limits.start_timeout_s)
            self._starting[want.id] = ""
            try:
                async with asyncio.timeout(self._limits.start_timeout_s):
                    await self._bring_up(want)
            except TimeoutError:
                await self._fail(want.id, f"the VM was not up within {self._limits.start_timeout_s:g} s")
            except (VmStartError, DeviceError, VolumeError, StoreError, OSError) as exc:
                await self._fail(want.id, str(exc))
            except Exception as exc:  # noqa: BLE001 - whatever it is, it ends this start and not the agent
                _log.exception("start of %s", want.id)
                await self._fail(want.id, f"{type(exc).__name__}: {exc}")
            finally:
                if gone := self._starting.pop(want.id):
                    self._ledger.gone(want.id, gone)

    def _misfit(self, want: Allocation) -> str:
        """Why the allocation cannot start here, though the units' records would let it; "": it can."""
        if full := self._ledger.no_room():
            return full
        if want.spec.image not in (images := self._images()):
            have = ", ".join(images) or "none"
            return f"image {want.spec.image!r} is not on this host (have: {have})"
        present = {unit.id: unit for unit in self._inventory().units}
        if unfit := [name for name in want.units if name in present and present[name].unfit]:
            return f"unit {unfit[0]}: {present[unfit[0]].unfit}"
        return mismatch(want.units, want.unit_identities, {name: unit.identity for name, unit in present.items()})

    async def _bring_up(self, want: Allocation) -> None:
        # The report is guarded by the session's key: once it stands, the store has just confirmed that session.
        await self._worker.reporter.committed()
        # That commit says nothing of the allocation, which a store restored from a backup may have forgotten.
        if not await self._worker.wishes.still(want):
            raise VmStartError("its allocation is not in the store, or says otherwise now")
        await self._bind(self._units(want.units))
        spec = vm_spec(want, await self._mounts(want), self._inventory(), self._reserved_cpus)
        self._ledger.touches(want.id)
        await self._runtime.start(spec, may_run=lambda: self._worker.may_run(want.session))
        self._ledger.vm_started(want.id)

    async def _bind(self, units: Sequence[Unit]) -> None:
        """All units of a start, after one look at who uses them. One that is in other hands is reset after it."""
        at_hand = units
        try:
            used = await self._devices.used_by(units)
            for unit in units:
                at_hand = [unit]
                await self._devices.bind(unit, used)
        except BaseException:  # whoever is in the way has used it, or is about to
            for unit in at_hand:
                self._ledger.suspect(unit.id)
            raise

    async def _fail(self, name: str, message: str) -> None:
        self._ledger.explain(name, message)
        await self.destroy(name, message)

    async def stop(self, name: str, grace_s: int, reason: str) -> None:
        """Ask for a checkpoint and, once it is written or half of the grace is over, for the end.

        A guest that has not ended when three quarters of the grace are over may not hear us at all, or its program does
        not: its system is asked to shut down. When the grace is over, the plan ends it by force.
        """
        booting = self._ledger.vms[name].state == VmIs.PREPARING
        deadline = self._clock.boot() + grace_s
        self._ledger.stop_asked(name, deadline, reason)
        self._worker.kick()
        if booting:  # no guest to ask, nothing to save
            await self.destroy(name, reason)
            return
        try:
            await self._checkpoint(name, grace_s)
            await self._runtime.stop(name, max(1, round(deadline - self._clock.boot())))
            if not await self._over(name, deadline - grace_s / 4):
                await self._runtime.press_power_button(name)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("cannot ask %s to stop; it is ended by force when its grace is over", name)

    async def _checkpoint(self, name: str, grace_s: int) -> None:
        event = self._checkpoints[name] = asyncio.Event()
        try:
            await self._runtime.checkpoint(name, grace_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s / 2):
                    await event.wait()
        finally:
            del self._checkpoints[name]

    async def _over(self, name: str, until: float) -> bool:
        """Whether the guest's command has ended, or the VM is gone, by `until` on the boot clock."""
        news = self._news[name] = asyncio.Event()
        try:
            while (record := self._ledger.vms[name]).state != VmIs.ENDED and record.exit_code is None:
                if (left_s := until - self._clock.boot()) <= 0:
                    return False
                news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(left_s, 0.01)):
                        await news.wait()
        finally:
            del self._news[name]
        return True

    async def destroy(self, name: str, reason: str) -> None:
        """End the VM. Its record ends only once the runtime has said that no process of it exists."""
        if name in self._ledger.vms and self._ledger.vms[name].state != VmIs.ENDED:
            self._ledger.explain(name, reason)
        try:
            await self._runtime.destroy(name)
        except Exception:  # noqa: BLE001 - as above
            _log.exception("cannot destroy %s; trying again", name)
            await asyncio.sleep(_RETRY_S)
        else:
            self._ledger.gone(name, reason)

    async def reclaim(self, name: str) -> None:
        """From DIRTY to FREE or QUARANTINED."""
        record = self._ledger.units[name]
        self._ledger.resetting(name)
        self._worker.kick()
        try:
            unit = self._units([name])[0]
            if record.used and (found := await self._devices.toll(unit)):
                self._ledger.sicken(name, found)  # on record before the reset, after which nothing tells of it
            proof = await self._devices.reclaim(unit, used=record.used, allocation=record.allocation)
        except (DeviceError, OSError) as exc:
            wrong = str(exc)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it ends this and not the agent
            _log.exception("reclaim of unit %s", name)
            wrong = f"{type(exc).__name__}: {exc}"
        else:
            if not record.sick:
                self._ledger.proven(name, proof)
                return
            wrong = ""  # it is well now, and may fall sick with the next tenant again
        sick = sick_reason(record.sick) if record.sick else ""
        self._ledger.failed(name, "; ".join(filter(None, (sick, wrong))))

    def _units(self, names: Sequence[str]) -> list[Unit]:
        present = {unit.id: unit for unit in self._inventory().units}
        if missing := [name for name in names if name not in present]:
            raise OSError(f"unit {missing[0]} is no longer on this host")
        return [present[name] for name in names]

    async def _mounts(self, want: Allocation) -> tuple[VolumeMount, ...]:
        return tuple(
            [
                VolumeMount(
                    serial=volume.name,
                    path=volume.path,
                    file=await self._volumes.ensure(want.job, volume.name, volume.size_mib),
                    size_mib=volume.size_mib,
                )
                for volume in want.spec.volumes
            ]
        )
