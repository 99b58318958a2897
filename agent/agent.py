"""One host's agent, put together from its parts: the same object on hardware, in a lab and in the simulation.

keeper.open -> worker.serve beside keeper.hold -> the session is over -> keeper.open ends all VMs, and so on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpupool.store.port import Store
from gpupool.v1.agent_pb2 import Description
from gpupool.v1.inventory_pb2 import Inventory

from .devices.host import Devices
from .ports import Clock, Guard, VmRuntime
from .session import SessionKeeper
from .timing import Identity, Limits, Timing
from .work.actions import Actions
from .work.ledger import Ledger, unit_report, vm_report
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


class Agent:
    """`run` is the agent's life; cancelling it leaves session and VMs as they are, for the next agent to take over."""

    def __init__(
        self,
        identity: Identity,
        timing: Timing,
        limits: Limits,
        parts: Parts,
        *,
        inventory_s: float = 10.0,
    ) -> None:
        self._me = identity
        self._parts = parts
        self._inventory_s = inventory_s
        self._inventory = self._read_inventory()
        self.ledger = Ledger(parts.records, parts.clock, self._ended)
        actions = Actions(
            parts.runtime,
            parts.devices,
            parts.volumes,
            parts.clock,
            self.ledger,
            limits,
            images=parts.images,
            inventory=lambda: self._inventory,
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
            inventory=lambda: self._inventory,
            may_start=self._may_start,
            doubt=lambda: self.keeper.doubt(),  # noqa: PLW0108 - the keeper is made after the worker
        )
        self.keeper = SessionKeeper(
            identity, timing, parts.store, parts.guard, parts.clock, parts.records, self.worker.no_vms
        )

    async def run(self) -> NoReturn:
        """Hold a session and do its work, again and again."""
        await self._parts.runtime.open(self.worker.on_event)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.worker.wishes.follow(), name="follow")
            group.create_task(self.keeper.tend_guard(), name="tend guard")
            group.create_task(self._watch_inventory(), name="inventory")
            while True:
                session = await self.keeper.open()
                await self._one_session(session)
        raise AssertionError("unreachable")

    def describe(self) -> Description:
        """What the agent knows now."""
        session = self.keeper.session
        return Description(
            host=self._me.host,
            session=session,
            inventory=self._inventory,
            vms={name: vm_report(record, session) for name, record in self.ledger.vms.items()},
            units={name: unit_report(record, session) for name, record in self.ledger.units.items()},
            session_left_s=self.keeper.left_s(),
        )

    async def _one_session(self, session: int) -> None:
        work = asyncio.create_task(self.worker.serve(session), name=f"session {session}")
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

    async def _watch_inventory(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._inventory_s)
            try:
                found = self._read_inventory()
            except OSError:
                _log.exception("cannot read the inventory")
                continue
            if found != self._inventory:
                self._inventory = found
                self.worker.meet_inventory()

    def _read_inventory(self) -> Inventory:
        inventory = self._parts.devices.inventory()
        inventory.images[:] = self._parts.images()
        return inventory

    def _may_start(self) -> bool:
        return self.keeper.fresh() and self._parts.guard.alive()

    def _ended(self, record: VmRecord) -> None:
        if record.message:
            self._parts.logs.append(record.allocation, [("system", record.message)])
        self._parts.logs.close(record.allocation)
