"""One host's agent, put together from its parts: the same object on hardware, in a lab and in the simulation.

keeper.open -> worker.serve beside keeper.hold -> the session is over -> keeper.open ends all VMs, and so on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpupool.store.port import Store
from gpupool.v1.agent_pb2 import Description
from gpupool.v1.inventory_pb2 import Inventory, Unit
from gpupool.v1.records_pb2 import ClusterIntent, UnitHistory

from .devices.blocking import RunBlocking, in_own_thread
from .devices.host import Devices
from .history import History
from .ports import Clock, Guard, VmRuntime
from .session import SessionKeeper
from .survey import Judge, Survey
from .timing import Identity, Limits, Timing
from .work.actions import Actions
from .work.ledger import Ledger
from .work.logs import LogSink
from .work.reconcile import VmRecord
from .work.records import Records
from .work.volumes import VolumeStore
from .work.worker import Worker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the agent stands on."""

    store: Store
    runtime: VmRuntime
    guard: Guard
    clock: Clock
    devices: Devices
    records: Records
    logs: LogSink
    volumes: VolumeStore
    images: Callable[[], Sequence[str]]
    judges: Sequence[Judge] = ()
    reserved_cpus: tuple[int, ...] = ()
    run_blocking: RunBlocking = in_own_thread
    changes: Callable[[], AsyncIterator[object]] | None = None  # the kernel's word that devices or memory changed


class Agent:
    """`run` is the agent's life; cancelling it leaves session and VMs as they are, for the next agent to take over."""

    def __init__(
        self,
        identity: Identity,
        timing: Timing,
        limits: Limits,
        parts: Parts,
        *,
        inventory_s: float = 5.0,
        unguarded: str = "",
    ) -> None:
        self._me = identity
        self._parts = parts
        self._inventory_s = inventory_s
        self._survey = Survey(parts.devices, parts.images, parts.judges, run_blocking=parts.run_blocking)
        self._look = asyncio.Event()
        self._surveyed = asyncio.Event()
        self._past = History(parts.records)
        self.ledger = Ledger(parts.records, parts.clock, self._ended, self._history)
        actions = Actions(
            parts.runtime,
            parts.devices,
            parts.volumes,
            parts.clock,
            self.ledger,
            limits,
            images=lambda: self._survey.inventory.images,  # not the directory: it may hang
            inventory=lambda: self._survey.inventory,
            reserved_cpus=parts.reserved_cpus,
        )
        self.worker = Worker(
            identity.host,
            parts.store,
            parts.runtime,
            parts.clock,
            self.ledger,
            actions,
            parts.logs,
            limits,
            inventory=lambda: self._survey.inventory,
            may_start=self._may_start,
            doubt=lambda: self.keeper.doubt(),  # noqa: PLW0108 - the keeper is made after the worker
            history=self._past,
        )
        self.keeper = SessionKeeper(
            identity,
            timing,
            parts.store,
            parts.guard,
            parts.clock,
            parts.records,
            self.worker.no_vms,
            unguarded=unguarded,
            history=self._past,
        )
        self.worker.wishes.on_cluster = self._cluster_wish
        self.worker.wishes.on_restored = self._restored

    async def run(self) -> NoReturn:
        """Hold a session and do its work, again and again.

        The session is held while the first survey is made: that takes seconds on a large host, for ever if a device
        hangs, and the VMs that an earlier agent left die with the session.
        """
        await self._parts.runtime.open(self.worker.on_event)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.worker.wishes.follow(), name="follow")
            group.create_task(self.keeper.tend_guard(), name="tend guard")
            group.create_task(self._watch_inventory(), name="inventory")
            group.create_task(self._watch_changes(), name="changes")
            while True:
                session = await self.keeper.open()
                await self._one_session(session)
        raise AssertionError("unreachable")

    @property
    def inventory(self) -> Inventory:
        """What the host offers now."""
        return self._survey.inventory

    def describe(self) -> Description:
        """What the agent knows now."""
        session = self.keeper.session
        return Description(
            host=self._me.host,
            session=session,
            inventory=self.inventory,
            vms=self.ledger.vm_reports(session),
            units=self.ledger.unit_reports(session),
            session_left_s=self.keeper.left_s(),
        )

    async def _one_session(self, session: int) -> None:
        work = asyncio.create_task(self._serve(session), name=f"session {session}")
        hold = asyncio.create_task(self.keeper.hold(), name="renewals")
        try:
            await asyncio.wait({work, hold}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            hold.cancel()
            results = await asyncio.gather(work, hold, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        _log.error("%s", results[1])
        self.worker.wishes.again()

    async def _serve(self, session: int) -> None:
        await self._surveyed.wait()
        await self.worker.serve(session, self.keeper.nonce)

    async def _watch_inventory(self) -> NoReturn:
        while True:
            self._look.clear()
            try:
                if await self._survey.refresh():
                    self.worker.kick()
                self._surveyed.set()
            except Exception:  # noqa: BLE001 - whatever a strange host does to the reading, the VMs must go on
                _log.exception("cannot read the inventory; trying again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._inventory_s):
                    await self._look.wait()

    async def _watch_changes(self) -> None:
        if self._parts.changes is None:
            return
        try:
            async for _ in self._parts.changes():
                self._look.set()
        except OSError as exc:
            _log.warning("no more news of hotplug from the kernel (%s): changes are found at the next reading", exc)

    def _may_start(self) -> bool:
        return self.keeper.may_start() and not self._past.lost

    def _restored(self) -> None:
        self._past.went_back()
        self.keeper.doubt()

    def _cluster_wish(self, wish: ClusterIntent) -> None:
        told = f"disarmed by {wish.by or 'somebody'}: {wish.reason or 'no reason given'}"
        self.keeper.disarm(told if wish.disarmed else "")

    def _history(self, unit: str, identity: str) -> UnitHistory:
        """What became of the unit's reclaims, also of one that is away."""
        found = self._survey.unit(unit)
        return self._parts.devices.history(found or Unit(id=unit, identity=identity))

    def _ended(self, record: VmRecord) -> None:
        if record.message:
            self._parts.logs.append(record.allocation, [("system", record.message)])
        self._parts.logs.close(record.allocation)
