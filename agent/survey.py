"""What this host offers: its devices as read, with everything against handing them out.

Reading is the devices' business, judging the judges'. Here the two are put together, off the event loop, and never
twice at once: a device that hangs must not pile up threads. No unit is offered of which a judge has not spoken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gpupool.v1.inventory_pb2 import Finding, Inventory, Unit

from .devices.blocking import RunBlocking, in_own_thread
from .devices.host import Devices
from .devices.identity import duplicate_serials, identities

PATIENCE_S = 60.0  # looking at a process that hangs in the kernel may hang too
UNJUDGED = "not judged yet, see the agent's log"

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one judge says: findings for people, and the units that must not be handed out, each with the reason.

    `memory_mib`: of a unit's GPUs, where the judge knows; it counts unless the model's is known anyway.
    """

    findings: Sequence[Finding] = ()
    keep_out: Mapping[str, str] = field(default_factory=dict)
    memory_mib: Mapping[str, int] = field(default_factory=dict)
    memory_source: str = ""
    notes: Sequence[str] = ()


Judge = Callable[[Inventory], Awaitable[Judgement]]


class Survey:
    """The present inventory. Empty until the first `refresh`."""

    def __init__(
        self,
        devices: Devices,
        images: Callable[[], Sequence[str]],
        judges: Sequence[Judge] = (),
        *,
        run_blocking: RunBlocking = in_own_thread,
    ) -> None:
        self.inventory = Inventory()  # replaced as a whole, never changed
        self._units: dict[str, Unit] = {}
        self._devices = devices
        self._images = images
        self._run = run_blocking
        self._reading: _Question[Inventory] = _Question()
        self._judges = [_Judge(judge) for judge in judges]
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> bool:
        """Look again; whether anything has changed. A look that is under way is waited for first.

        A judge that fails, or takes too long, is logged, and its last word stands. Raises TimeoutError if the devices
        cannot be read in time.
        """
        async with self._refreshing:
            found = await self._reading.ask(lambda: self._run(self._read))
            for judge in self._judges:
                await judge.hear(found)
                judge.apply(found)
            if found == self.inventory:
                return False  # the very object stays: what others made of it still holds
            self.inventory = found
            self._units = {unit.id: unit for unit in found.units}
            return True

    def unit(self, name: str) -> Unit | None:
        """The unit of that id, as last seen."""
        return self._units.get(name)

    def _read(self) -> Inventory:
        found = self._devices.inventory()
        found.images[:] = self._images()
        names = identities(found.units)
        for unit in found.units:
            unit.identity = names[unit.id]
        for number, addresses in duplicate_serials(found.units).items():
            found.notes.append(f"serial number {number} is on {', '.join(addresses)}; it identifies none of them")
        return found


class _Question(Generic[T]):
    """Something asked again and again, but never before the last answer: what hangs must not hang twice."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[T] | None = None

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """The answer, or a late one to the question before. Raises TimeoutError, at once if one is late already."""
        late = self._answer is not None
        if self._answer is None:
            self._answer = asyncio.ensure_future(question())
        try:
            await asyncio.wait({self._answer}, timeout=0 if late else PATIENCE_S)
        except asyncio.CancelledError:
            self._answer.cancel()
            raise
        if not self._answer.done():
            raise TimeoutError(f"no answer within {PATIENCE_S:g} s; it is not asked again before there is one")
        answer, self._answer = self._answer, None
        return answer.result()


class _Judge:
    """A judge, its last word, and of which units it spoke."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._question: _Question[tuple[frozenset[tuple[str, str]], Judgement]] = _Question()
        self._judged: frozenset[tuple[str, str]] = frozenset()
        self._last = Judgement()

    async def hear(self, found: Inventory) -> None:
        """Have the inventory judged, if the judge answers."""
        try:
            self._judged, self._last = await self._question.ask(lambda: self._ask(found))
        except TimeoutError as exc:
            _log.warning("cannot judge this host anew: %s", exc)
        except Exception:  # noqa: BLE001 - whatever a judge trips over, the host goes on
            _log.exception("cannot judge this host anew")

    def apply(self, found: Inventory) -> None:
        """Add the judge's last word."""
        found.findings.extend(self._last.findings)
        found.notes.extend(self._last.notes)
        for unit in found.units:
            judged = (unit.id, unit.identity) in self._judged
            reason = self._last.keep_out.get(unit.id, "") if judged else UNJUDGED
            if reason:
                unit.unfit = f"{unit.unfit}; {reason}" if unit.unfit else reason
            if judged and unit.memory_source != "table" and (mib := self._last.memory_mib.get(unit.id)):
                unit.gpu_memory_mib, unit.memory_source = mib, self._last.memory_source

    async def _ask(self, found: Inventory) -> tuple[frozenset[tuple[str, str]], Judgement]:
        units = frozenset((unit.id, unit.identity) for unit in found.units)
        return units, await self._judge(found)
