"""Which replica leads: a leased key, and the fencing token that its create revision is.

Every commit of a leader is guarded by that revision, so a paused leader that wakes up too late cannot write. For the
same reason it is always safe to delete the key, in the life in which it was seen: a standby does so when the leader's
process is gone (deathwatch.py), rather than wait for the lease to end. It must never delete a later life of the key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from google.protobuf.message import DecodeError

from gpupool.store.keys import LEADER
from gpupool.store.port import Compacted, Created, Delete, KeyValue, LeaseNotFound, Put, Store, StoreError, Unavailable
from gpupool.v1 import records_pb2

from .deathwatch import Gone, never

_log = logging.getLogger(__name__)

RETRY_S = 0.2
LAST_TRY_S = 1.0  # for a renewal that is late already
REVOKE_S = 1.0  # a store that does not answer must not hold up an exit


@dataclass(frozen=True, slots=True)
class Term:
    """One spell of leadership. `revision` is the create revision of the leader key."""

    revision: int
    lease: int

    @property
    def guard(self) -> Created:
        """Holds while this term lasts."""
        return Created(LEADER, self.revision)


class TermLostError(Exception):
    """The lease could not be kept, or another replica leads."""


@asynccontextmanager
async def lead(
    store: Store,
    me: records_pb2.Leader,
    *,
    ttl_s: int,
    gone: Gone = never,
    first: bool = False,
    other: Callable[[records_pb2.Leader], None] = lambda _: None,
) -> AsyncIterator[Term]:
    """Wait to be the leader, and stay it for the body. `first`: the process has just begun, so that a leader with our
    name and address is an earlier life of us, which nobody need wait for. `other` is told of each who leads meanwhile.

    The body is cancelled, and TermLostError raised, when the lease cannot be renewed in time. On a clean exit the key
    goes at once, so that a standby need not wait for the lease to run out.
    """
    async with _Watch(store, gone, other) as watch:
        term = await _win(store, me, ttl_s, watch, first=first)
    body = asyncio.current_task()
    assert body is not None
    asked_to_stop = body.cancelling()
    lost = False

    async def keep() -> None:
        nonlocal lost
        await _keep(store, term, ttl_s)
        lost = True
        body.cancel()

    keeper = asyncio.create_task(keep(), name="election: keep lease")
    try:
        yield term
    except (asyncio.CancelledError, StoreError):
        if not lost:
            raise
        if body.uncancel() > asked_to_stop:  # somebody else wants an end of it, too
            raise asyncio.CancelledError from None
        raise TermLostError(f"leader lease {term.lease:x} could not be renewed") from None
    finally:
        keeper.cancel()
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(REVOKE_S):
                await store.revoke(term.lease)


class _Watch:
    """Waits for the end of another's leadership: of the key, or of the process that the key names."""

    def __init__(self, store: Store, gone: Gone, other: Callable[[records_pb2.Leader], None]) -> None:
        self._store = store
        self._gone = gone
        self._other = other
        self._life = 0  # of the leader key, which the task below is about
        self._death: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._death is not None:
            self._death.cancel()

    async def ended(self, leader: KeyValue, timeout_s: float) -> None:
        """Return once the leader key is gone, or after `timeout_s`. Raises StoreError."""
        key = asyncio.create_task(_key_gone(self._store, leader))
        try:
            await asyncio.wait({key, self._process(leader)}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if key.done():
                key.result()
            elif self._process(leader).done():
                await self.depose(leader)
        finally:
            key.cancel()

    async def depose(self, leader: KeyValue) -> None:
        """End this life of the leader key, if it has not ended yet."""
        await self._store.commit([Created(LEADER, leader.create_revision)], [Delete(LEADER)])

    def _process(self, leader: KeyValue) -> asyncio.Task[None]:
        """Ends when the process of this term does. One task a term: it remembers that the process was once there."""
        if self._death is None or self._life != leader.create_revision:
            if self._death is not None:
                self._death.cancel()
            self._life = leader.create_revision
            with suppress(DecodeError):
                self._other(records_pb2.Leader.FromString(leader.value))
            self._death = asyncio.create_task(_process_gone(self._gone, leader), name="election: death watch")
        return self._death


async def _process_gone(gone: Gone, leader: KeyValue) -> None:
    try:
        await gone(records_pb2.Leader.FromString(leader.value).address)
    except Exception:  # noqa: BLE001 - an address that makes no sense is no death: then the lease tells
        _log.exception("cannot watch the leader's process")
        await asyncio.Event().wait()


def _earlier_self(leader: KeyValue, me: records_pb2.Leader) -> bool:
    try:
        found = records_pb2.Leader.FromString(leader.value)
    except DecodeError:
        return False
    return (found.id, found.address) == (me.id, me.address)


async def _win(store: Store, me: records_pb2.Leader, ttl_s: int, watch: _Watch, *, first: bool) -> Term:
    loop = asyncio.get_running_loop()
    lease, renewed = 0, 0.0
    while True:
        try:
            if not lease or loop.time() - renewed > ttl_s / 3:
                renewed = loop.time()
                lease = await _standby_lease(store, lease, ttl_s)
            won = await store.commit([Created(LEADER, 0)], [Put(LEADER, me.SerializeToString(), lease)])
            if won.succeeded:
                return Term(won.revision, lease)
            leader = await store.get(LEADER)
            if leader is not None and leader.lease == lease:
                return Term(leader.create_revision, lease)  # a commit whose answer was lost has made us leader
            if leader is not None and first and _earlier_self(leader, me):
                first = (
                    False  # once: of two replicas that share a name by mistake, each would depose the other for ever
                )
                await watch.depose(leader)
            elif leader is not None:
                await watch.ended(leader, timeout_s=ttl_s / 3)
        except LeaseNotFound:
            lease = 0
        except Unavailable as exc:
            _log.warning("election: %s", exc)
            await asyncio.sleep(RETRY_S)


async def _standby_lease(store: Store, lease: int, ttl_s: int) -> int:
    """A live lease to campaign with: kept warm, so that winning costs one round trip."""
    if lease:
        await store.renew(lease)
        return lease
    return await store.grant(ttl_s)


async def _key_gone(store: Store, leader: KeyValue) -> None:
    """Return once the leader key is gone, or is in another life."""
    seen = leader.mod_revision
    while True:
        try:
            async with aclosing(store.watch(LEADER, after_revision=seen)) as batches:
                async for changes in batches:
                    if any(change.key == LEADER and change.kv is None for change in changes):
                        return
        except Compacted:  # the key is written once a term, so soon it is older than the history that is kept
            found = await store.list(LEADER)
            if not any((kv.key, kv.create_revision) == (LEADER, leader.create_revision) for kv in found.items):
                return
            seen = found.revision


async def _keep(store: Store, term: Term, ttl_s: int) -> None:
    """Renew until that fails; returns soon after the lease may have ended without an answer.

    To be late is no failure: on a busy machine an answer may have waited for us, and the lease live all the same. So
    there is one more try after its end. Nothing rests on it, as every commit is guarded by the term.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ttl_s / 2  # the winner's lease may be up to ttl/3 old already
    while True:
        sent = loop.time()
        try:
            async with asyncio.timeout(max(deadline - sent, LAST_TRY_S)):
                await store.renew(term.lease)
            deadline = sent + ttl_s
            await asyncio.sleep(ttl_s / 3)
        except Unavailable as exc:
            _log.warning("renewing the leader lease: %s", exc)
            if loop.time() >= deadline:
                break
            await asyncio.sleep(RETRY_S)
        except TimeoutError:
            if sent >= deadline:
                break
        except StoreError as exc:
            _log.warning("leadership lost: %s", exc)
            return
    _log.warning("leadership lost: the lease could not be renewed in time")
