"""What this host offers: its devices as read, with everything against handing them out.

Reading is the devices' business, judging the judges'. Here the two are put together, off the event loop, and never
twice at once: a device that hangs must not pile up threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gpupool.v1.inventory_pb2 import Finding, Inventory

from .devices.blocking import RunBlocking, in_own_thread
from .devices.host import Devices
from .devices.identity import duplicate_serials, identities

JUDGE_S = 60.0  # looking at a process that hangs in the kernel may hang too
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one judge says: findings for people, and the units that must not be handed out, each with the reason."""

    findings: Sequence[Finding] = ()
    keep_out: Mapping[str, str] = field(default_factory=dict)


Judge = Callable[[Inventory], Awaitable[Judgement]]


class Survey:
    """The present inventory. Empty until the first `refresh`, so that nothing is offered unjudged."""

    def __init__(
        self,
        devices: Devices,
        images: Callable[[], Sequence[str]],
        judges: Sequence[Judge] = (),
        *,
        run_blocking: RunBlocking = in_own_thread,
    ) -> None:
        self.inventory = Inventory()
        self._devices = devices
        self._images = images
        self._judges = judges
        self._run = run_blocking
        self._judgements = [Judgement()] * len(judges)
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> bool:
        """Look again; whether anything has changed. A look that is under way is waited for first.

        A judge that fails, or takes too long, is logged, and its last word stands.
        """
        async with self._refreshing:
            found = await self._run(self._read)
            for number, judge in enumerate(self._judges):
                try:
                    async with asyncio.timeout(JUDGE_S):
                        self._judgements[number] = await judge(found)
                except Exception:  # noqa: BLE001 - whatever a judge trips over, the host goes on
                    _log.exception("cannot judge this host anew")
                _merge(found, self._judgements[number])
            changed = found != self.inventory
            self.inventory = found
            return changed

    def _read(self) -> Inventory:
        found = self._devices.inventory()
        found.images[:] = self._images()
        names = identities(found.units)
        for unit in found.units:
            unit.identity = names[unit.id]
        for number, addresses in duplicate_serials(found.units).items():
            found.notes.append(f"serial number {number} is on {', '.join(addresses)}; it identifies none of them")
        return found


def _merge(inventory: Inventory, judgement: Judgement) -> None:
    inventory.findings.extend(judgement.findings)
    for unit in inventory.units:
        if reason := judgement.keep_out.get(unit.id):
            unit.unfit = f"{unit.unfit}; {reason}" if unit.unfit else reason
