"""The network between one node and the others: latency, partitions, lost requests and replies, by seed.

A request travels as the world's own code, so it arrives even if its sender is paused or dead by then, as on a wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from tests.sim.loop import VirtualLoop
from tests.sim.nodes import Incarnation

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Impairment:
    """Something wrong with a link, from `Link.impair` to `Link.mend`; the worst of those in force counts."""

    cut: bool = False
    request_loss: float = 0.0
    reply_loss: float = 0.0
    slow: float = 1.0


class Link:
    """A node's connection. Losses are probabilities from 0 to 1; `slow` multiplies the latency."""

    def __init__(self, loop: VirtualLoop, rng: Random, *, latency_s: tuple[float, float] = (0.0005, 0.005)) -> None:
        self.latency_s = latency_s
        self._loop = loop
        self._rng = rng
        self._impairments: list[Impairment] = []
        self._healed: set[asyncio.Future[None]] = set()  # SimFuture hashes by number, so sets are in a fixed order
        self._broken: set[asyncio.Future[None]] = set()

    @property
    def partitioned(self) -> bool:
        """Whether nothing gets through."""
        return any(impairment.cut for impairment in self._impairments)

    def impair(self, impairment: Impairment) -> None:
        """Put `impairment` in force."""
        self._impairments.append(impairment)
        if impairment.cut:
            self.reset()

    def mend(self, impairment: Impairment) -> None:
        """End `impairment`; one that has ended is fine."""
        with suppress(ValueError):
            self._impairments.remove(impairment)
        if not self.partitioned:
            _fire(self._healed)

    def partition(self) -> None:
        """Cut the link until `heal`."""
        self.impair(Impairment(cut=True))

    def heal(self) -> None:
        """End all impairments."""
        self._impairments.clear()
        _fire(self._healed)

    def reset(self) -> None:
        """Break the open connections (watches); new ones may be made at once."""
        _fire(self._broken)

    def delay_s(self) -> float:
        """A latency for one way."""
        return self._rng.uniform(*self.latency_s) * max([1.0, *(i.slow for i in self._impairments)])

    def coin(self) -> bool:
        """True half of the time."""
        return self._rng.random() < 0.5

    def broken(self) -> asyncio.Future[None]:
        """Done when the connections that are open now break; give it back with `forget`."""
        return self._await(self._broken)

    def forget(self, broken: asyncio.Future[None]) -> None:
        """Nobody waits for `broken` any more."""
        self._broken.discard(broken)

    async def healed(self) -> None:
        """Return once the link is not cut."""
        while self.partitioned:
            await self._await(self._healed)

    def _await(self, waiters: set[asyncio.Future[None]]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        waiters.add(future)
        return future

    def _lost(self, chance: float) -> bool:
        return self.partitioned or (chance > 0 and self._rng.random() < chance)

    async def call(
        self,
        server: Incarnation,
        request: Callable[[], Coroutine[Any, Any, T]],
        *,
        timeout_s: float,
        lost: Callable[[str], Exception] = ConnectionError,
    ) -> T:
        """Run `request` as `server` and return or raise what it does.

        Raises `lost(reason)` when request or reply is lost (at once or at the timeout: a connection that breaks is
        noticed, a silent one is not), or when there is no answer in time. The request may have been carried out.
        """
        reply: asyncio.Future[T] = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _refuse, reply, lost, f"no answer within {timeout_s} s")
        self._loop.start(self._loop.world, self._carry(server, request, reply, lost), name="carry")
        try:
            return await reply
        finally:
            timer.cancel()

    async def _carry(
        self,
        server: Incarnation,
        request: Callable[[], Coroutine[Any, Any, T]],
        reply: asyncio.Future[T],
        lost: Callable[[str], Exception],
    ) -> None:
        await asyncio.sleep(self.delay_s())
        if self._lost(max([0.0, *(i.request_loss for i in self._impairments)])) or not server.alive:
            self._vanish(reply, lost)
            return
        task = self._loop.start(server, request(), name="request")
        await asyncio.wait({task})  # for ever, if the server crashes: the caller has its timeout
        error = None if task.cancelled() else task.exception()  # asked for even if lost: asyncio warns otherwise
        if task.cancelled() or self._lost(max([0.0, *(i.reply_loss for i in self._impairments)])):
            self._vanish(reply, lost)
            return
        await asyncio.sleep(self.delay_s())
        if self.partitioned or reply.done():
            return
        if error:
            reply.set_exception(error)
        else:
            reply.set_result(task.result())

    def _vanish(self, reply: asyncio.Future[T], lost: Callable[[str], Exception]) -> None:
        # In a partition there is only silence; otherwise half of the losses are connections that visibly broke.
        if not self.partitioned and self.coin():
            _refuse(reply, lost, "the connection broke")


def _refuse(reply: asyncio.Future[Any], lost: Callable[[str], Exception], reason: str) -> None:
    if not reply.done():
        reply.set_exception(lost(reason))


def _fire(waiters: set[asyncio.Future[None]]) -> None:
    for future in list(waiters):
        if not future.done():
            future.set_result(None)
    waiters.clear()
