"""A bounded stream of news for one reader; a reader that is too slow is told so instead of filling the memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Subscription(Generic[Item]):
    """Items put by a listener, read in order.

    An item that waits already is not put twice, so the number of distinct items bounds it: what changed several times
    while nobody read is read once, as it is then.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Item, None] = OrderedDict()
        self._news = asyncio.Event()
        self._closers: list[Callable[[], None]] = []

    def put(self, item: Item) -> None:
        """Add to what is to be read."""
        self._waiting[item] = None
        self._news.set()

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call `closer` when reading ends."""
        self._closers.append(closer)

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            while self._waiting:
                yield self._waiting.popitem(last=False)[0]
            self._news.clear()
            await self._news.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for closer in self._closers:
            closer()
