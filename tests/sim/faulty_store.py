"""The store as one node sees it through its link, and the backend behind it with a hook on every change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from gpupool.store.memory_backend import MemoryBackend
from gpupool.store.port import (
    Change,
    Committed,
    Each,
    Guard,
    KeyValue,
    Op,
    Poll,
    Sight,
    Snapshot,
    Store,
    StoreError,
    Unavailable,
)
from tests.sim.link import Link
from tests.sim.loop import VirtualLoop

T = TypeVar("T")


class SimBackend(MemoryBackend):
    """The memory backend, telling `on_change` of every revision (leases that end make some too) once it is in force."""

    def __init__(self, *, clock: Callable[[], float], keep_revisions: int | None = None) -> None:
        super().__init__(clock=clock, keep_revisions=keep_revisions)
        self.on_change: Callable[[Sequence[Change]], None] = lambda _: None
        self.frozen = False
        self.commit_s = 0.0  # how long the disk takes
        self._cut_off = False
        self.members = dict.fromkeys(("m1", "m2", "m3"), Sight.LEADER)

    def _record(self, changes: tuple[Change, ...]) -> None:
        super()._record(changes)
        if changes:
            self.on_change(changes)

    def expire(self) -> None:
        """As in the base; without a leader no lease ends."""
        if not self.frozen:
            super().expire()

    def _schedule(self) -> None:
        if not self.frozen:  # a timer for a lease that is due but may not end would fire for ever
            super()._schedule()

    def freeze(self, *, cut_off: bool = False, down: bool = False) -> None:
        """No member leads: leases do not end (and the doors, FaultyStore, let nobody in). One of three may be `down`.

        With `cut_off` there still is a leader, out of everybody's reach.
        """
        self.frozen, self._cut_off = True, cut_off
        third = Sight.SILENT if cut_off else Sight.NOT_RUNNING if down else Sight.NO_LEADER
        self.members = {"m1": Sight.NO_LEADER, "m2": Sight.NO_LEADER, "m3": third}

    def thaw(self) -> None:
        """A leader is elected: as in etcd, every lease starts afresh. One that was cut off goes on as before."""
        self.frozen = False
        self.members = dict.fromkeys(self.members, Sight.LEADER)
        if self._cut_off:
            self._schedule()
        else:
            self.renew_all()

    def renew_all(self) -> None:
        """Another member leads: as in etcd, every lease starts afresh."""
        for lease in self._leases.values():
            lease.expires_at = self.now() + lease.ttl_s
        self._schedule()


class FaultyStore:
    """A Store that asks `inner` through `link`. Calls run as the world's code: see link.py."""

    def __init__(
        self,
        inner: Store,
        link: Link,
        loop: VirtualLoop,
        *,
        timeout_s: float = 5.0,
        leaderless: Callable[[], bool] = lambda: False,
        commit_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._inner = inner
        self._link = link
        self._loop = loop
        self._timeout_s = timeout_s
        self._leaderless = leaderless
        self._commit_s = commit_s
        self._closed = False
        self._streams: dict[asyncio.Queue[Sequence[Change] | Exception], None] = {}

    async def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        return await self._call(lambda: self._inner.get(key))

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        """See Store.list."""
        snapshot = await self._call(lambda: self._inner.list(prefix))
        if each is not None:  # here, and not on the store's side, where it could come late
            await each(0, snapshot.items)
        return snapshot

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        """See Store.commit."""
        # Copied, as a wire would: the caller may change its lists while the request travels.
        sent_guards, sent_ops = tuple(guards), tuple(ops)
        return await self._call(lambda: self._commit(sent_guards, sent_ops))

    async def _commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        """On the store's side: slow disks wait before the commit is in force and after it; the client may crash."""
        wait_s = self._commit_s() * self._link.share() if self._commit_s() else 0.0
        if wait_s:
            await asyncio.sleep(wait_s)
        if self._link.at_commit(False):
            raise Unavailable("the client is gone")
        done = await self._inner.commit(guards, ops)
        self._link.at_commit(True)
        if wait_s:
            await asyncio.sleep(wait_s)
        return done

    async def grant(self, ttl_s: int) -> int:
        """See Store.grant."""
        return await self._call(lambda: self._inner.grant(ttl_s))

    async def renew(self, lease: int) -> int:
        """See Store.renew."""
        return await self._call(lambda: self._inner.renew(lease))

    async def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        await self._call(lambda: self._inner.revoke(lease))

    async def learn_members(self) -> None:
        """See Store.learn_members."""
        await self._call(self._inner.learn_members)

    async def poll_members(self) -> Poll:
        """See Store.poll_members. Each member answers or not by itself; nothing is heard through a cut link."""
        names = [name for name, _ in (await self._inner.poll_members()).members]
        sights = await asyncio.gather(*(self._sight(name) for name in names))
        return Poll(tuple(zip(names, sights, strict=True)))

    async def _sight(self, member: str) -> Sight:
        async def arrive() -> Sight:
            return dict((await self._inner.poll_members()).members)[member]

        try:
            return await self._link.call(self._loop.world, arrive, timeout_s=1.0, lost=Unavailable)
        except Unavailable:
            return Sight.SILENT

    async def close(self) -> None:
        """See Store.close."""
        self._closed = True
        for stream in self._streams:
            stream.put_nowait(Unavailable("the store is closed"))

    @property
    def max_ops(self) -> int:
        """See Store.max_ops."""
        return self._inner.max_ops

    async def _call(self, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._closed:
            raise Unavailable("the store is closed")

        async def arrive() -> T:
            if self._leaderless():
                # A member that knows that there is no leader says so; one that waits for an election is silent.
                await asyncio.sleep(self._link.coin() * self._timeout_s)
                raise Unavailable("no leader")
            return await request()

        return await self._link.call(self._loop.world, arrive, timeout_s=self._timeout_s, lost=Unavailable)

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """See Store.watch. A partition only delays: the stream resumes after the last batch that got through."""
        if self._closed:
            raise Unavailable("the store is closed")
        stream: asyncio.Queue[Sequence[Change] | Exception] = asyncio.Queue()
        owner = self._loop.current()
        pump = self._loop.start(self._loop.world, self._pump(prefix, after_revision, stream), name=f"watch {prefix}")
        self._streams[stream] = None
        owner.on_crash[pump.cancel] = None  # a crashed client's connection goes with it
        try:
            while True:
                item = await stream.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            del self._streams[stream]
            owner.on_crash.pop(pump.cancel, None)
            pump.cancel()

    async def _pump(self, prefix: str, last: int, out: asyncio.Queue[Sequence[Change] | Exception]) -> None:
        """Carry batches from the inner watch, over a new connection whenever one breaks."""
        while True:
            await self._link.healed()
            await asyncio.sleep(self._link.delay_s())
            broken = self._link.broken()
            inner = self._inner.watch(prefix, after_revision=last)
            try:
                async with aclosing(inner):
                    while not self._link.deaf and (batch := await self._next(inner, broken)) is not None:
                        await asyncio.sleep(self._link.delay_s() + self._link.lag_s)
                        if broken.done() or self._link.deaf:
                            break
                        last = batch[-1].revision
                        out.put_nowait(batch)
            except StoreError as exc:
                out.put_nowait(exc)
                return
            finally:
                self._link.forget(broken)

    async def _next(
        self, inner: AsyncGenerator[Sequence[Change], None], broken: asyncio.Future[None]
    ) -> Sequence[Change] | None:
        """The next batch, or None when the connection breaks first."""
        batch = self._loop.start(self._loop.world, _anext(inner), name="next batch")
        try:
            await asyncio.wait({batch, broken}, return_when=asyncio.FIRST_COMPLETED)
            return cast("Sequence[Change]", batch.result()) if batch.done() else None
        finally:
            if not batch.done():  # a generator cannot be closed while it runs
                batch.cancel()
                await asyncio.wait({batch})


async def _anext(stream: AsyncGenerator[T, None]) -> T:
    return await anext(stream)
