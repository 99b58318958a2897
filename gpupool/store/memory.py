"""A store in memory that behaves as etcd does: for tests, the simulation, and a laptop without etcd.

`MemoryBackend` is the cluster, `MemoryStore` one client's handle on it; several daemons in one process share a backend.
It must never be kinder than etcd: what etcd refuses is refused here too, a lease never ends before its TTL has passed
since the last renewal, and every call lets other tasks run first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from gpupool.store._check import check_commit, check_key
from gpupool.store.memory_backend import MemoryBackend
from gpupool.store.port import (
    Change,
    Committed,
    Each,
    Guard,
    KeyValue,
    Op,
    Poll,
    Put,
    Refused,
    Restored,
    Snapshot,
    Unavailable,
)

__all__ = ["MAX_OPS", "MAX_REQUEST_BYTES", "MemoryBackend", "MemoryStore"]

MAX_OPS = 128
"""etcd's default for --max-txn-ops."""

MAX_REQUEST_BYTES = 1536 * 1024
"""etcd's default for --max-request-bytes."""


class MemoryStore:
    """One client's handle on a backend; implements gpupool.store.port.Store."""

    def __init__(self, backend: MemoryBackend, *, max_ops: int = MAX_OPS) -> None:
        self._backend = backend
        self._max_ops = max_ops
        self._closed = False
        self._wakes: list[asyncio.Event] = []

    async def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        await self._turn()
        check_key(key)
        return self._backend.get(key)

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        """See Store.list."""
        await self._turn()
        snapshot = self._backend.list(prefix)
        if each is not None:
            await each(0, snapshot.items)
        return snapshot

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        """See Store.commit."""
        await self._turn()
        check_commit(guards, ops, self._max_ops)
        size = sum(len(op.key.encode("utf-8", "surrogateescape")) + len(op.value) for op in ops if isinstance(op, Put))
        if size > MAX_REQUEST_BYTES:
            raise Refused(f"request of {size} bytes; the limit is {MAX_REQUEST_BYTES}")
        return self._backend.commit(guards, ops)

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """See Store.watch."""
        last: Change | None = None
        watcher = self._backend.subscribe(prefix)
        self._wakes.append(watcher.wake)
        try:
            while True:
                # A quiet prefix must not fall behind the compaction: etcd does not cancel a watch that is up to date.
                after_revision = max(after_revision, watcher.rest())
                await self._turn()
                seen = self._backend.revision
                # A restore breaks etcd's streams; they find this when they resume.
                if after_revision > seen:
                    raise Restored(f"it is at revision {seen}, and was at {after_revision}")
                if last and not self._backend.remembers(last):
                    raise Restored(f"as of revision {last.revision}, {last.key} is not what it was")
                batch = self._backend.changes(prefix, after_revision)
                after_revision = max(after_revision, batch[-1].revision if batch else seen)
                if batch:
                    last = batch[-1]
                    yield batch
                else:
                    await watcher.wake.wait()
        finally:
            self._wakes.remove(watcher.wake)
            self._backend.unsubscribe(watcher)

    async def grant(self, ttl_s: int) -> int:
        """See Store.grant."""
        await self._turn()
        if ttl_s <= 0:
            raise Refused(f"a TTL must be positive: {ttl_s}")
        return self._backend.grant(ttl_s)

    async def renew(self, lease: int) -> int:
        """See Store.renew."""
        await self._turn()
        return self._backend.renew(lease)

    async def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        await self._turn()
        self._backend.revoke(lease)

    async def learn_members(self) -> None:
        """See Store.learn_members."""
        await self._turn()

    async def poll_members(self) -> Poll:
        """See Store.poll_members."""
        await asyncio.sleep(0)
        return Poll(tuple(sorted(self._backend.members.items())))

    async def close(self) -> None:
        """See Store.close."""
        self._closed = True
        for wake in self._wakes:
            wake.set()

    @property
    def max_ops(self) -> int:
        """See Store.max_ops."""
        return self._max_ops

    async def _turn(self) -> None:
        """Give way once, as a network would: code that relies on no other task running in between must fail here."""
        if not self._closed:
            await asyncio.sleep(0)
        if self._closed:
            raise Unavailable("the store is closed")
