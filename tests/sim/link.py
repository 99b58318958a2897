"""The network between one node and the others: latency, partitions, lost requests and replies, by seed.

A request travels as the world's own code, so it arrives even if its sender is paused or dead by then, as on a wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar

from tests.sim.loop import VirtualLoop
from tests.sim.nodes import Incarnation

T = TypeVar("T")


@dataclass(eq=False, slots=True)  # not frozen, which would make making one twice as dear
class _Letter(Generic[T]):
    """A request under way."""

    server: Incarnation
    request: Callable[[], Coroutine[Any, Any, T]]
    reply: asyncio.Future[T]
    lost: Callable[[str], Exception]
    inbound: bool


@dataclass(frozen=True, eq=False)
class Impairment:
    """Something wrong with a link, from `Link.impair` to `Link.mend`; the worst of those in force counts."""

    cut_out: bool = False  # nothing that this node says gets through
    cut_in: bool = False  # nothing that is said to it does
    request_loss: float = 0.0
    reply_loss: float = 0.0
    slow: float = 1.0
    lag_s: float = 0.0  # a watch tells so much later; calls are as quick as ever, so what they read is newer
    deposed: bool = False  # its member of the store was the leader, and does not know better


class Link:
    """A node's connection. Losses are probabilities from 0 to 1; `slow` multiplies the latency."""

    def __init__(self, loop: VirtualLoop, rng: Random, *, latency_s: tuple[float, float] = (0.0005, 0.005)) -> None:
        self.latency_s = latency_s
        self.at_commit: Callable[[bool], bool] = lambda _: False  # (applied): whether its node crashes now
        self._loop = loop
        self._rng = rng
        self._impairments: list[Impairment] = []
        self._healed: set[asyncio.Future[None]] = set()  # SimFuture hashes by number, so sets are in a fixed order
        self._broken: set[asyncio.Future[None]] = set()

    @property
    def partitioned(self) -> bool:
        """Whether nothing gets through, in one direction at least: no connection can be made."""
        return any(i.cut_out or i.cut_in for i in self._impairments)

    @property
    def deposed(self) -> bool:
        """Whether its member of the store is a leader of the past."""
        return any(i.deposed for i in self._impairments)

    @property
    def deaf(self) -> bool:
        """Whether nothing that is said to this node gets through."""
        return any(i.cut_in for i in self._impairments)

    def impair(self, impairment: Impairment) -> None:
        """Put `impairment` in force."""
        self._impairments.append(impairment)
        if impairment.cut_out and impairment.cut_in:
            self.reset()

    def mend(self, impairment: Impairment) -> None:
        """End `impairment`; one that has ended is fine."""
        with suppress(ValueError):
            self._impairments.remove(impairment)
        if not self.partitioned:
            _fire(self._healed)

    def partition(self) -> None:
        """Cut the link until `heal`."""
        self.impair(Impairment(cut_out=True, cut_in=True))

    def heal(self) -> None:
        """End all impairments."""
        self._impairments.clear()
        _fire(self._healed)

    def reset(self) -> None:
        """Break the open connections (watches); new ones may be made at once."""
        _fire(self._broken)

    def delay_s(self) -> float:
        """A latency for one way."""
        low, high = self.latency_s
        delay_s = low + (high - low) * self._rng.random()
        return delay_s * max(1.0, self._worst("slow")) if self._impairments else delay_s

    @property
    def lag_s(self) -> float:
        """How much later watches tell."""
        return self._worst("lag_s")

    def share(self) -> float:
        """Any part of one."""
        return self._rng.random()

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

    def _cut(self, *, out: bool) -> bool:
        return any(i.cut_out if out else i.cut_in for i in self._impairments)

    def _worst(self, loss: str) -> float:
        return max(getattr(i, loss) for i in self._impairments) if self._impairments else 0.0

    def _lost(self, *, out: bool, loss: str) -> bool:
        if not self._impairments:
            return False
        chance = self._worst(loss)
        return self._cut(out=out) or (chance > 0 and self._rng.random() < chance)

    async def call(
        self,
        server: Incarnation,
        request: Callable[[], Coroutine[Any, Any, T]],
        *,
        timeout_s: float,
        lost: Callable[[str], Exception] = ConnectionError,
        inbound: bool = False,
    ) -> T:
        """Run `request` as `server` and return or raise what it does.

        Raises `lost(reason)` when request or reply is lost (at once or at the timeout: a connection that breaks is
        noticed, a silent one is not), or when there is no answer in time. The request may have been carried out.
        `inbound`: this is the link of the server, so the request comes in and the reply goes out.
        """
        reply: asyncio.Future[T] = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _refuse, reply, lost, f"no answer within {timeout_s} s")
        self._later(self._arrive, _Letter(server, request, reply, lost, inbound))
        try:
            return await reply
        finally:
            timer.cancel()

    def _later(self, step: Callable[..., None], *args: Any) -> None:
        """Call `step` as the world, one way later: callbacks, since a task for each message costs twice the time."""
        self._loop.call_at(self._loop.time() + self.delay_s(), step, *args, context=self._loop.world.shared)

    def _arrive(self, letter: _Letter[T]) -> None:
        if self._lost(out=not letter.inbound, loss="request_loss") or not letter.server.alive:
            self._vanish(letter)
            return
        # For ever, if the server crashes: the caller has its timeout.
        task = self._loop.start(letter.server, letter.request(), name="request")
        task.add_done_callback(lambda done: self._answered(letter, done), context=self._loop.world.shared)

    def _answered(self, letter: _Letter[T], task: asyncio.Task[T]) -> None:
        error = None if task.cancelled() else task.exception()  # asked for even if lost: asyncio warns otherwise
        if task.cancelled() or self._lost(out=letter.inbound, loss="reply_loss"):
            self._vanish(letter)
        else:
            self._later(self._deliver, letter, task, error)

    def _deliver(self, letter: _Letter[T], task: asyncio.Task[T], error: BaseException | None) -> None:
        if letter.reply.done() or self._cut(out=letter.inbound):
            return
        if error:
            letter.reply.set_exception(error)
        else:
            letter.reply.set_result(task.result())

    def _vanish(self, letter: _Letter[Any]) -> None:
        # In a partition there is only silence; otherwise half of the losses are connections that visibly broke.
        if not self._cut(out=True) and not self._cut(out=False) and self.coin():
            _refuse(letter.reply, letter.lost, "the connection broke")


def _refuse(reply: asyncio.Future[Any], lost: Callable[[str], Exception], reason: str) -> None:
    if not reply.done():
        reply.set_exception(lost(reason))


def _fire(waiters: set[asyncio.Future[None]]) -> None:
    for future in list(waiters):
        if not future.done():
            future.set_result(None)
    waiters.clear()
