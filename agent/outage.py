"""Rides out an outage of the store: polls its members, applies the rule, says what came of it.

The rule is in riding.py. This shell keeps the list of members fresh while renewals succeed, and takes the times around
a poll on the boot clock. It never raises, and never takes longer than a poll does.
"""

from __future__ import annotations

import asyncio
import logging

from gpupool.store.port import Store, StoreError

from .ports import Clock
from .riding import ride

_log = logging.getLogger(__name__)
LEARN_EVERY_S = 15.0
LEARN_WITHIN_S = 1.0
POLL_WITHIN_S = 2.0


class Outage:
    """One agent's view of the store's members."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._learnt_s = float("-inf")
        self._renewed_s = 0.0
        self._told = ""
        self._riding = False

    async def renewed(self) -> None:
        """The store answers: learn who its members are, now and then."""
        self._renewed_s = self._clock.boot()
        if self._riding:
            _log.warning("the store is back: VMs live by renewals again")
        self._riding, self._told = False, ""
        if self._renewed_s - self._learnt_s < LEARN_EVERY_S:
            return
        try:
            async with asyncio.timeout(LEARN_WITHIN_S):
                await self._store.learn_members()
            self._learnt_s = self._renewed_s
        except (StoreError, TimeoutError) as exc:
            _log.warning("the store's members are not known anew: %r", exc)

    async def kill_at(self, now_s: float, *, ttl_s: float, margin_s: float) -> float:
        """A renewal failed: until when VMs may live. `now_s` is until when they may as it is."""
        began_s = self._clock.boot()
        try:
            async with asyncio.timeout(POLL_WITHIN_S):
                poll = await self._store.poll_members()
        except (StoreError, TimeoutError) as exc:
            self._tell(f"{exc!r}")
            return now_s
        made = ride(
            poll,
            now_s,
            began_s,
            self._clock.boot(),
            ttl_s=ttl_s,
            margin_s=margin_s,
            list_age_s=self._renewed_s - self._learnt_s,
        )
        if made.refusal:
            self._tell(made.refusal)
        elif not self._riding:
            self._riding, self._told = True, ""
            _log.warning("the store has no leader (%s): VMs live on while that lasts", _members(poll.members))
        return made.kill_at_s

    def _tell(self, why: str) -> None:
        """Log once what may repeat for minutes."""
        self._riding = False
        if why != self._told:
            self._told = why
            _log.error("this outage of the store cannot be ridden out: %s", why)


def _members(members: tuple[tuple[str, object], ...]) -> str:
    return "; ".join(f"{name} {getattr(sight, 'value', sight)}" for name, sight in members)
