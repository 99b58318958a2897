"""Keeps this host's keys in the store as they should be: level-triggered, guarded by the session, never giving up.

What should stand there is asked for anew at each flush, so a write that failed, or whose fate is unknown, needs no
queue. Every commit is guarded by the session's key: an agent whose session is over cannot write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NoReturn

from gpupool.store import keys
from gpupool.store.port import Created, Delete, Op, Put, Store, StoreError

from ..history import History

_log = logging.getLogger(__name__)
_RETRY_S = 0.5
GAP_S, MAX_GAP_S = 0.05, 1.0
"""From the begin of a flush to the next one: what passes within that is not written, as reports are levels. The first
after a rest goes at once. Each flush is a transaction with an fsync, and one for eight units costs hardly more than one
for a unit. Where a flush itself takes long, the store or this machine has too much to do: then the gap is twice that.
"""


class Reporter:
    """Writes what `wanted()` says under agents/<host>/: key to value, None for "leave what is there".

    `doubt` is called when the store refuses a write because the session is not (or no longer) ours, or when its answer
    shows that its history went back; `history` is what was seen of that.
    """

    def __init__(
        self,
        store: Store,
        host: str,
        wanted: Callable[[], Mapping[str, bytes | None]],
        doubt: Callable[[], None],
        history: History,
    ) -> None:
        self._store = store
        self._prefix = keys.agent_prefix(host)
        self._session_key = keys.session(host)
        self._not_ours = {self._session_key, keys.guard(host)}
        self._wanted = wanted
        self._doubt = doubt
        self._history = history
        self._stored: dict[str, bytes] = {}
        self._asked = 0
        self._done = 0
        self._away = False
        self._news = asyncio.Event()
        self._flushed = asyncio.Event()

    async def load(self) -> Mapping[str, bytes]:
        """What stands in the store, however long the answer takes. Call it at the start of each session."""
        while True:
            try:
                found = await self._store.list(self._prefix)
            except StoreError as exc:
                _log.warning("cannot read this host's reports: %s", exc)
                await asyncio.sleep(_RETRY_S)
                continue
            self._stored = {kv.key: kv.value for kv in found.items if kv.key not in self._not_ours}
            return self._stored

    def kick(self) -> None:
        """Something may have changed."""
        self._asked += 1
        self._news.set()

    async def committed(self) -> None:
        """Returns once the store has all that is wanted now (or what replaced it)."""
        self.kick()
        mine = self._asked
        while self._done < mine:
            await self._flushed.wait()

    async def run(self, session: int) -> NoReturn:
        """Flush, for as long as the session lasts."""
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            asked, began = self._asked, loop.time()
            if not await self._flush(session):
                self._news.set()
                await asyncio.sleep(_RETRY_S)
                continue
            self._done = asked
            self._flushed.set()
            self._flushed.clear()
            gap_s = min(max(GAP_S, 2 * (loop.time() - began)), MAX_GAP_S)
            await self._news.wait()
            if (early_s := began + gap_s - loop.time()) > 0:
                await asyncio.sleep(early_s)

    async def _flush(self, session: int) -> bool:
        """Write all differences; False if something is left to do."""
        ops = self._differences()
        for start in range(0, len(ops), self._store.max_ops):
            if not await self._commit(session, ops[start : start + self._store.max_ops]):
                return False
        return True

    def _differences(self) -> list[Op]:
        wanted = self._wanted()
        puts: list[Op] = [
            Put(key, value) for key, value in wanted.items() if value is not None and self._stored.get(key) != value
        ]
        deletes: list[Op] = [Delete(key) for key in self._stored if key not in wanted]
        return sorted(puts + deletes, key=lambda op: op.key)

    async def _commit(self, session: int, ops: list[Op]) -> bool:
        before = self._history.sending(ops)
        try:
            done = await self._store.commit([Created(self._session_key, session)], ops)
        except StoreError as exc:
            # Once an outage is enough: the renewals say how it goes on.
            _log.log(logging.DEBUG if self._away else logging.WARNING, "%d reports wait: %s", len(ops), exc)
            self._away = True
            return False
        self._away = False
        if not done.succeeded:
            _log.warning("reports refused: session %d does not stand in the store", session)
            self._doubt()
            return False
        if why := self._history.wrote(before, ops, done.revision):
            _log.error("reports are not believed to stand: %s", why)
            self._doubt()
            return False
        for op in ops:
            if isinstance(op, Put):
                self._stored[op.key] = op.value
            else:
                self._stored.pop(op.key, None)
        return True
