"""Carries out what the core wants switched off: in tasks of its own, a few at once, one a host, never holding the loop.

It asks once more, just before it acts, whether the host is still to be switched off. It gives up what is no longer
wanted. It decides nothing about evidence: each try ends as an event, and the core judges.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ..core.failover.power import PowerOff
from ..core.state.events import PowerFenced
from .port import FenceDevice, FenceError

_log = logging.getLogger(__name__)

AT_ONCE = 8
LIMIT_S = 300.0  # for a device that does not keep its own limit


class Acting:
    """The tries of one term. `why_not` says "" if the host is still to be switched off, asking the store."""

    def __init__(
        self,
        devices: Mapping[str, FenceDevice],
        *,
        why_not: Callable[[PowerOff], Awaitable[str]],
        wall: Callable[[], float],
        news: asyncio.Event,
    ) -> None:
        self._devices = devices
        self._why_not = why_not
        self._wall = wall
        self._news = news
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tries: dict[PowerOff, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._results: list[PowerFenced] = []

    def begin(self, owed: Sequence[PowerOff]) -> None:
        """Begin what is owed and not under way, and give up what is owed no longer."""
        wanted = set(owed)
        for effect, task in list(self._tries.items()):
            if effect not in wanted:
                task.cancel()
                del self._tries[effect]
        for effect in owed:
            if effect not in self._tries and effect.host in self._devices:
                task = asyncio.create_task(self._try(effect), name=f"power off {effect.host}")
                self._tries[effect] = task

    def take(self) -> list[PowerFenced]:
        """Results since the last call. Only now may the same host be tried again, as the core asks for it."""
        results, self._results = self._results, []
        for effect, task in list(self._tries.items()):
            if task.done():
                del self._tries[effect]
        return results

    async def close(self) -> None:
        """End all tries; what was asked of a device may happen all the same."""
        tasks = [*self._tries.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _try(self, effect: PowerOff) -> None:
        async with self._slots:
            if why := await self._why_not(effect):
                _log.info("host %s is not switched off: %s", effect.host, why)
                return
            device = self._devices[effect.host]
            _log.warning("host %s: switching it off by %s, for session %d", effect.host, device.kind, effect.session)
            off, detail = await self._off(effect, device)
        self._results.append(PowerFenced(effect.host, effect.session, device.kind, self._wall(), off, detail))
        self._news.set()
        if off and device.power_on:
            task = asyncio.create_task(self._on(effect.host, device), name=f"power on {effect.host}")
            self._others.add(task)
            task.add_done_callback(self._others.discard)

    async def _off(self, effect: PowerOff, device: FenceDevice) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(LIMIT_S):
                seen = await device.off()
        except FenceError as exc:
            detail = str(exc)
        except TimeoutError:
            detail = f"no answer within {LIMIT_S:.0f} s"
        except Exception as exc:  # noqa: BLE001 - a device's bug must not end the term, nor print what it was given
            detail = f"bug in {device.kind}: {type(exc).__name__}"
        else:
            return True, "it was off already" if seen.already else ""
        _log.error("host %s: power fencing failed: %s", effect.host, detail)
        return False, detail

    async def _on(self, host: str, device: FenceDevice) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                await device.on()
            _log.info("host %s: power is on again", host)
        except (FenceError, TimeoutError) as exc:
            _log.error("host %s was switched off and stays off: %s; switch it on by hand", host, exc)
