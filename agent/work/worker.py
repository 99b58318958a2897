"""Makes what runs on this host be what the allocations say: the loop around the pure plan.

One loop: look at allocations and records, plan, start an action for each thing that is not busy, report. Actions on
different allocations and units run beside each other, on one of them never. What the worker must never do: start a VM
without a fresh deadline and a living guard, start one twice, or report an end while a process of the VM may live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping

from gpupool.store import keys
from gpupool.store.port import Store
from gpupool.v1.inventory_pb2 import Inventory
from gpupool.v1.records_pb2 import Allocation, UnitReport

from ..history import History
from ..ports import Clock, GuestCheckpointed, GuestExited, GuestLog, GuestStarted, VmEvent, VmGone, VmPaused, VmRuntime
from ..timing import Limits
from . import reconcile
from .actions import Actions
from .ledger import Ledger
from .logs import LogSink
from .reconcile import View
from .report import Reporter
from .tables import UnitIs, VmIs
from .wishes import Wishes

_log = logging.getLogger(__name__)
_RETRY_S = 1.0


class Worker:
    """One host's worker, for the life of the agent's process. `serve` runs once for each session.

    `may_start` says whether the session is fresh and the guard alive; `doubt` is told when a report is refused;
    `inventory` is this host's present one.
    """

    def __init__(  # noqa: PLR0917
        self,
        host: str,
        store: Store,
        runtime: VmRuntime,
        clock: Clock,
        ledger: Ledger,
        actions: Actions,
        logs: LogSink,
        limits: Limits,
        *,
        inventory: Callable[[], Inventory],
        may_start: Callable[[], bool],
        doubt: Callable[[], None],
        history: History,
    ) -> None:
        self._host = host
        self._runtime = runtime
        self._clock = clock
        self._ledger = ledger
        self._actions = actions
        self._logs = logs
        self._limits = limits
        self._inventory = inventory
        self._may_start = may_start
        self.reporter = Reporter(store, host, self._wanted, doubt, history)
        self.wishes = Wishes(store, host, self.kick, self._vouch_for_unseen)
        self.wishes.seen = history.seen
        self._kick = asyncio.Event()
        self._session = 0
        self._nonce = ""
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._told: tuple[Inventory | None, int, bytes] = (None, 0, b"")
        actions.attach(self)

    # What happens

    def on_event(self, event: VmEvent) -> None:
        """The sink for the VM runtime. An exit code is on record when this returns."""
        match event:
            case GuestLog(allocation, lines):
                self._logs.append(allocation, lines)
                return
            case GuestStarted(allocation, gpus):
                self._ledger.guest_started(allocation, gpus)
            case GuestExited(allocation, exit_code):
                self._ledger.exited(allocation, exit_code)
                self._actions.heard(allocation)
            case GuestCheckpointed(allocation):
                self._actions.checkpointed(allocation)
            case VmPaused(allocation, reason):
                self._ledger.warn(allocation, f"its VM is paused and keeps its units: {reason}")
            case VmGone(allocation, reason):
                if not self._actions.defer_end(allocation, reason):
                    self._ledger.gone(allocation, reason)
                self._actions.checkpointed(allocation)
                self._actions.heard(allocation)
        self.kick()

    def kick(self) -> None:
        """Look again."""
        self._kick.set()
        self.reporter.kick()

    # A session

    async def serve(self, session: int, nonce: str = "") -> None:
        """Run what the allocations of this session ask for, until cancelled; then no action is left running."""
        try:
            await self.wishes.known.wait()
            stored = await self.reporter.load()
            self._session, self._nonce = session, nonce
            self._ledger.doubt_units()
            self._meet_units(stored)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.reporter.run(session))
                await self._audit_once()
                group.create_task(self._audit_often())
                group.create_task(self._watch_health())
                await self._loop()
        finally:
            self._session = 0
            await self._cancel_actions()

    async def no_vms(self) -> None:
        """End every VM of this host, whatever its session; returns once the runtime knows of none."""
        while True:
            try:
                running = await self._runtime.running()
                if not running:
                    break
                _log.warning("ending VMs without a session: %s", ", ".join(running))
                await asyncio.gather(*(self._runtime.destroy(name) for name in running))
            except Exception:  # noqa: BLE001 - the runtime may raise anything, and it is asked again
                _log.exception("cannot make sure that no VM runs; trying again")
                await asyncio.sleep(_RETRY_S)
        for name in sorted(self._ledger.vms):
            self._ledger.gone(name, "its session ended")

    def view(self, *, without: str = "") -> View:
        """All that a decision rests on now; `without` names an action that asks for itself."""
        return View(
            session=self._session,
            nonce=self._nonce,
            desired=self.wishes.allocations,
            vms=self._ledger.vms,
            units=self._ledger.units,
            intents=self.wishes.intents,
            boot_s=self._clock.boot(),
            may_start=self._may_start(),
            busy={*self._busy} - {without},
        )

    def may_run(self, session: int) -> bool:
        """Whether a VM of `session` may be let run at this very moment."""
        return session == self._session and self._may_start()

    async def _loop(self) -> None:
        while True:
            self._kick.clear()
            self._settle_units()
            for action in reconcile.plan(self.view()):
                self._begin(action)
            self.reporter.kick()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: it loses a cancellation that comes with the kick, and the agent would never end.
                async with asyncio.timeout(self._patience_s()):
                    await self._kick.wait()

    def _patience_s(self) -> float | None:
        """How long nothing can be due: until a deadline, or until a start may be allowed that is not now."""
        waits = [] if self._may_start() else [_RETRY_S]
        deadline = reconcile.next_deadline(self.view())
        if deadline is not None:
            waits.append(max(deadline - self._clock.boot(), 0.01))
        return min(waits, default=None)

    def _begin(self, action: reconcile.Action) -> None:
        """Carry the action out, in a task of its own if it takes time."""
        work = self._actions.of(action, self.wishes.allocations)
        if work is not None:
            name = action.unit if isinstance(action, reconcile.Reclaim) else action.allocation  # type: ignore[union-attr]
            self._spawn(name, work)
        else:
            self._kick.set()  # a record changed, and more may follow from that

    def _spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        if name in self._busy:  # an earlier action of this very plan
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=f"action {name}")
        self._busy[name] = task
        task.add_done_callback(lambda done: self._done(name, done))

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._busy[name]
        if not task.cancelled() and (error := task.exception()):
            _log.error("action on %s failed", name, exc_info=error)
        self.kick()

    async def _cancel_actions(self) -> None:
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _audit_once(self) -> None:
        """The first look of a session: adopts or ends what an earlier agent left; nothing is started before it."""
        while not await self._audit(agent_is_new=True):  # noqa: ASYNC110 - it asks libvirt, which sends no event
            await asyncio.sleep(_RETRY_S)

    async def _audit_often(self) -> None:
        while True:
            await asyncio.sleep(self._limits.audit_s)
            await self._audit(agent_is_new=False)

    async def _audit(self, *, agent_is_new: bool) -> bool:
        """Compare records with the VMs that exist. What changed meanwhile is left for next time."""
        before = {name: record.state for name, record in self._ledger.vms.items() if name not in self._busy}
        try:
            running = await self._runtime.running()
        except Exception:  # noqa: BLE001 - the runtime may raise anything, and it is asked again
            _log.exception("cannot see which VMs run")
            return False
        for action in reconcile.audit(self.view(), running, agent_is_new=agent_is_new):
            name = action.allocation  # type: ignore[union-attr]
            have = self._ledger.vms.get(name)
            if have is None or before.get(name) == have.state:
                self._begin(action)
        return True

    def _meet_units(self, stored: Mapping[str, bytes]) -> None:
        """At the start of a session: what the store has of this host's units is all that a reboot has left of them."""
        prefix = keys.unit(self._host, "0").removesuffix("0")
        reports = {
            key.removeprefix(prefix): UnitReport.FromString(value)
            for key, value in stored.items()
            if key.startswith(prefix)
        }
        for name, report in reports.items():
            self._actions.recall(report.identity or name, report.history)
        self._ledger.meet_units(self._present(), reports)

    def _settle_units(self) -> None:
        """Meet units that are new, or were in hand when something else turned up in their place; forget those that are
        gone or unfit, unless an allocation still waits for their last word.
        """
        present = self._present()
        self._ledger.meet_units(present, {})
        needed = {unit for want in self.wishes.allocations.values() for unit in want.units}
        self._ledger.drop_units(present.keys() | needed | self._busy.keys())

    def _present(self) -> dict[str, str]:
        """The identities of the units that may be handed out, by id."""
        return {unit.id: unit.identity for unit in self._inventory().units if not unit.unfit}

    async def _watch_health(self) -> None:
        """Tell of units that fall sick while a VM has them, and have those proven anew that do so while nobody has."""
        while True:
            await asyncio.sleep(self._limits.health_s)
            await self._look_at_free()
            held = {name for name, unit in self._ledger.units.items() if unit.state == UnitIs.HELD}
            if not held:
                continue
            present = [unit for unit in self._inventory().units if unit.id in held]
            sick = dict.fromkeys(held - {unit.id for unit in present}, "it is gone from this host")
            try:
                sick |= await self._actions.health(present)
            except OSError:
                _log.exception("cannot look at the units in use")
            for name, why in sorted(sick.items()):
                self._ledger.sicken(name, why)
            if sick:
                self.kick()

    async def _look_at_free(self) -> None:
        free = {name for name, unit in self._ledger.units.items() if unit.state == UnitIs.FREE} - self._busy.keys()
        try:
            found = await self._actions.health([u for u in self._inventory().units if u.id in free], in_use=False)
        except OSError:
            _log.exception("cannot look at the units that are free")
            return
        for name, why in sorted(found.items()):
            self._ledger.doubt(name, why)
        if found:
            self.kick()

    def _wanted(self) -> dict[str, bytes | None]:
        """What should stand in the store: an allocation that we have no record of keeps the report that it has."""
        wanted: dict[str, bytes | None] = {keys.vm(self._host, name): None for name in self.wishes.allocations}
        wanted |= self._ledger.reports(self._host, self._session)
        wanted[keys.inventory(self._host)] = self._inventory_bytes()
        return wanted

    def _inventory_bytes(self) -> bytes:
        """The inventory of this session. One that was made is never changed, but replaced: so it is encoded once."""
        told, session, encoded = self._told
        if told is not (now := self._inventory()) or session != self._session:
            named = Inventory()
            named.CopyFrom(now)
            named.session = self._session
            encoded = named.SerializeToString(deterministic=True)
            self._told = now, self._session, encoded
        return encoded

    def _vouch_for_unseen(self, gone: Allocation) -> None:
        """An allocation was withdrawn before anything of it was done here: its free units are clean after it too."""
        if gone.id in self._busy or self._lives(gone.id):
            return
        for name in gone.units:
            unit = self._ledger.units.get(name)
            if unit is not None and unit.state == UnitIs.FREE:
                self._ledger.vouch(name, gone.id)

    def _lives(self, name: str) -> bool:
        return name in self._ledger.vms and self._ledger.vms[name].state != VmIs.ENDED
