"""Which replica leads: a leased key, and the fencing token that its create revision is.

Every commit of a leader is guarded by that revision, so a paused leader that wakes up too late cannot write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from gpupool.store.keys import LEADER
from gpupool.store.port import Created, LeaseNotFound, Put, Store, StoreError, Unavailable
from gpupool.v1 import records_pb2

_log = logging.getLogger(__name__)

RETRY_S = 0.2
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
async def lead(store: Store, me: records_pb2.Leader, *, ttl_s: int) -> AsyncIterator[Term]:
    """Wait to be the leader, and stay it for the body.

    The body is cancelled, and TermLostError raised, when the lease cannot be renewed in time. On a clean exit the key
    goes at once, so that a standby need not wait for the lease to run out.
    """
    term = await _win(store, me, ttl_s)
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


async def _win(store: Store, me: records_pb2.Leader, ttl_s: int) -> Term:
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
            if leader is not None:
                await _leader_gone(store, leader.mod_revision, timeout_s=ttl_s / 3)
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


async def _leader_gone(store: Store, seen_revision: int, timeout_s: float) -> None:
    """Return once the leader key, last seen at a revision, is gone, or after `timeout_s`."""
    with suppress(TimeoutError):
        watch = store.watch(LEADER, after_revision=seen_revision)
        async with asyncio.timeout(timeout_s), aclosing(watch):
            async for changes in watch:
                if any(change.key == LEADER and change.kv is None for change in changes):
                    return


async def _keep(store: Store, term: Term, ttl_s: int) -> None:
    """Renew until that fails; returns no later than the lease may end."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ttl_s / 2  # the winner's lease may be up to ttl/3 old already
    while (sent := loop.time()) < deadline:
        try:
            async with asyncio.timeout(deadline - sent):
                await store.renew(term.lease)
            deadline = sent + ttl_s
            await asyncio.sleep(ttl_s / 3)
        except Unavailable as exc:
            _log.warning("renewing the leader lease: %s", exc)
            await asyncio.sleep(RETRY_S)
        except (StoreError, TimeoutError) as exc:
            _log.warning("leadership lost: %s", str(exc) or "no answer to a renewal in time")
            return
    _log.warning("leadership lost: the lease could not be renewed in time")
