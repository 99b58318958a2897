"""What a mirror hands to the leader of its replica: everything at one moment, and then each change, in order and once.

Whoever holds one must throw away what he knows when it ends: changes were missed, or the store has gone back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NoReturn

from gpupool.store.port import Restored, StoreError

from .records import News, Stored

Hear = Callable[[Sequence[News]], None]


class Feed:
    """See the module docstring. `feeds` are those of the mirror that are open; it is taken out when it ends."""

    def __init__(self, stored: Stored, revision: int, hear: Hear, feeds: list[Feed]) -> None:
        self.revision = revision
        self._stored: Stored = stored
        self._hear = hear
        self._feeds = feeds
        self._over = asyncio.Event()
        self._why: StoreError = StoreError("it was closed")

    def take(self) -> Stored:
        """Everything, as of `revision`: once, as it is large."""
        stored, self._stored = self._stored, {}
        return stored

    def tell(self, news: Sequence[News]) -> None:
        """These have changed, at one or several revisions."""
        self._hear(news)

    def end(self, *, forgotten: bool = False) -> None:
        """The mirror reads everything anew and cannot tell what has changed, or the store has `forgotten` something."""
        self._why = Restored("so the mirror says") if forgotten else StoreError("the mirror was made anew")
        self._over.set()
        self.close()

    def close(self) -> None:
        """Nobody listens any more."""
        if self in self._feeds:
            self._feeds.remove(self)

    async def ended(self) -> NoReturn:
        """Raise StoreError once it has."""
        await self._over.wait()
        raise self._why
