"""One watch on etcd that survives its connection: a stream at a time, resumed after the last revision handed out.

Progress notifications tell that the peer is alive, and nothing else. They must never move the revision to resume from:
etcd before 3.4.25 and 3.5.8 sends a requested one ahead of events that it has still to deliver
(https://github.com/etcd-io/etcd/issues/15220). The price is a list after a compaction that a quiet watch slept through.

etcd takes a watch from a revision that is yet to come, and is silent until then. So one that was restored from a backup
under us would leave us with what we knew, for hours. Whenever a stream begins, a linearizable read on the same member
tells whether the store is as new as what we saw, and was then as we were told. It must come after the stream began: a
restore after that ends the stream.

Responses are not asked for in fragments (`fragment`): etcd then keeps the events of one revision in one response, the
batch that we promise, and our side accepts responses of any size.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2

from gpupool.store import etcd_wire as wire
from gpupool.store.backoff import Backoff
from gpupool.store.etcd_link import Link, Member
from gpupool.store.port import Change, Compacted, Refused, Restored, Unavailable

_log = logging.getLogger(__name__)

_NOT_ALLOWED = ("permission denied", "user name is empty")
_PING = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())


class _TokenError(Exception):
    """The member did not look at the watch, or may not have, because of our token."""


async def watch(
    link: Link, prefix: str, after_revision: int, *, silence_s: float
) -> AsyncGenerator[Sequence[Change], None]:
    """See Store.watch."""
    backoff = Backoff(first_s=0.05, cap_s=2.0)
    renew_token = False
    last: Change | None = None
    while True:
        member = None
        try:
            with link.open():
                member = await link.ready(_now() + link.timeout_s)
                metadata = await link.metadata(member, _now() + link.timeout_s, renew=renew_token)
                async with aclosing(_stream(member, metadata, prefix, after_revision, silence_s)) as responses:
                    async for response in responses:
                        if response.created:
                            await _same_history(member, metadata, prefix, last or after_revision, link.timeout_s)
                        backoff.reset()
                        renew_token = False
                        batch = _new_changes(response, after_revision)
                        if batch:
                            after_revision = batch[-1].revision
                            last = next((c for c in batch if c.kv and c.revision == after_revision), batch[-1])
                            yield batch
        except _TokenError as exc:
            if renew_token:
                raise Refused(f"watch of {prefix!r}: {exc}") from None
            _log.info("watch of %s: %s; logging in again", prefix, exc)
            renew_token = True
            continue
        except Unavailable as exc:
            if link.closed:
                raise Unavailable("the store was closed") from None
            _log.warning("watch of %s: %s; resuming after revision %d", prefix, exc, after_revision)
        if member:
            link.rotate(member)
        await backoff.sleep()


def _new_changes(response: rpc_pb2.WatchResponse, after_revision: int) -> tuple[Change, ...]:
    """The changes that were not handed out yet: a resumed stream may begin with what the last one ended with."""
    return tuple(wire.decode_event(event) for event in response.events if event.kv.mod_revision > after_revision)


async def _stream(
    member: Member, metadata: grpc.aio.Metadata, prefix: str, after_revision: int, silence_s: float
) -> AsyncGenerator[rpc_pb2.WatchResponse, None]:
    """The responses of one stream. Raises Unavailable when it breaks or is silent, Compacted, Refused, _TokenError."""
    first, end = wire.prefix_range(prefix)
    create = rpc_pb2.WatchCreateRequest(
        key=first, range_end=end, start_revision=after_revision + 1, progress_notify=True, fragment=False
    )
    call = member.watch.Watch(metadata=metadata)
    try:
        await _write(call, rpc_pb2.WatchRequest(create_request=create), silence_s)
        while True:
            response = await _read(call, silence_s)
            if response is grpc.aio.EOF:
                raise Unavailable(f"{member.endpoint} ended the stream")
            if response.canceled:
                _raise_cancelled(response, member)
            yield response
    except grpc.aio.AioRpcError as exc:
        raise _error(exc, member) from exc
    finally:
        call.cancel()


async def _same_history(
    member: Member, metadata: grpc.aio.Metadata, prefix: str, seen: int | Change, timeout_s: float
) -> None:
    """Raise Restored if the store has forgotten what we `seen` last: a revision, or a change. Else as `_stream`."""
    key, revision = (seen.key, seen.revision) if isinstance(seen, Change) else (prefix, seen)
    as_of = revision if isinstance(seen, Change) else 0
    request = rpc_pb2.RangeRequest(key=wire.encode_key(key) or b"\0", revision=as_of)
    try:
        answer = await member.kv.Range(request, timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as exc:
        if wire.is_compacted(exc):
            raise Compacted(revision + 1) from None
        if wire.is_future(exc):
            raise Restored(f"revision {revision}, which was seen, is yet to come") from None
        raise _error(exc, member) from exc
    if answer.header.revision < revision:
        raise Restored(f"it is at revision {answer.header.revision}, and was at {revision}")
    if isinstance(seen, Change) and (wire.decode_kv(answer.kvs[0]) if answer.kvs else None) != seen.kv:
        raise Restored(f"as of revision {revision}, {key} is not what it was")


def _error(exc: grpc.aio.AioRpcError, member: Member) -> Exception:
    text = wire.details(exc)
    return _TokenError(text) if wire.is_stale_token(text) else wire.store_error(exc, member.endpoint)


def _raise_cancelled(response: rpc_pb2.WatchResponse, member: Member) -> None:
    """Say why the server cancelled the watch."""
    reason = response.cancel_reason
    if response.compact_revision:
        raise Compacted(response.compact_revision)
    # Some members say "permission denied" for a token that they do not know: a new token tells which it is.
    if wire.is_stale_token(reason) or any(part in reason for part in _NOT_ALLOWED):
        raise _TokenError(reason)
    raise Unavailable(f"{member.endpoint} cancelled the watch: {reason or 'no reason given'}")


async def _read(call: Any, silence_s: float) -> Any:
    """The next response. A peer that is silent for half of `silence_s` is asked for a sign of life, then given up."""
    reading = asyncio.ensure_future(call.read())  # a task, as a read that is cancelled by a timeout ends the whole call
    try:
        for _ in range(2):
            done, _pending = await asyncio.wait({reading}, timeout=silence_s / 2)
            if done:
                break
            await _write(call, _PING, silence_s / 2)
        else:
            raise Unavailable(f"no sign of life for {silence_s:g} s")
        if reading.cancelled():
            raise Unavailable("the call was cancelled on our side")
        return reading.result()
    finally:
        if not reading.done():
            reading.cancel()
            await asyncio.wait({reading})


async def _write(call: Any, request: rpc_pb2.WatchRequest, timeout_s: float) -> None:
    """Hand it to the peer. Waited for in two halves: after a pause of this process (it got no CPU, or was stopped) the
    first is over at once, which says nothing of the peer. Each stream that is given up for that costs another.
    """
    writing = asyncio.ensure_future(call.write(request))
    try:
        for _ in range(2):
            if (await asyncio.wait({writing}, timeout=timeout_s / 2))[0]:
                break
        else:
            raise Unavailable("the peer takes no requests")
        with contextlib.suppress(asyncio.InvalidStateError):  # grpc.aio: the stream ended; the next read says why
            if writing.cancelled():
                raise Unavailable("the call was cancelled on our side")
            writing.result()
    finally:
        if not writing.done():
            writing.cancel()
            await asyncio.wait({writing})


def _now() -> float:
    return asyncio.get_running_loop().time()
