"""One call for all who ask before it begins.

So what each is told was found out after it asked, as if it had called alone: nobody gets an answer to an earlier
question, which would be a cache. Nothing is kept beyond the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Makes `call` for whoever asks. Use it on one event loop."""

    def __init__(self, call: Callable[[], Awaitable[_T]]) -> None:
        self._call = call
        self._coming: _Round[_T] | None = None  # not begun yet, so more may join

    async def ask(self) -> _T:
        """The call's result, or what it raises. It is cancelled once nobody waits for it any more."""
        if self._coming is None:
            self._coming = _Round(self._made)
        mine = self._coming
        mine.waiting += 1
        try:
            return await asyncio.shield(mine.task)
        finally:
            mine.waiting -= 1
            if not mine.waiting:
                mine.task.cancel()
                if self._coming is mine:  # cancelled before it began
                    self._coming = None

    async def _made(self) -> _T:
        await asyncio.sleep(0)  # whoever is woken in the same turn joins
        self._coming = None
        return await self._call()


class _Round(Generic[_T]):
    """One call, and how many wait for it."""

    def __init__(self, made: Callable[[], Awaitable[_T]]) -> None:
        self.waiting = 0
        self.task = asyncio.ensure_future(made())
