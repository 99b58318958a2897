"""One watch on etcd that survives its connection: a stream at a time, resumed after the last revision handed out.

Progress notifications tell that the peer is alive, and nothing else. They must never move the revision to resume from:
etcd before 3.4.25 and 3.5.8 sends a requested one ahead of events that it has still to deliver
(https://github.com/etcd-io/etcd/issues/15220). The price is a list after a compaction that a quiet watch slept through.

Responses are not asked for in fragments (`fragment`): etcd then keeps the events of one revision in one response, the
batch that we promise, and our side accepts responses of any size.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2

from gpupool.store import etcd_wire as wire
from gpupool.store.backoff import Backoff
from gpupool.store.etcd_link import Link, Member
from gpupool.store.port import Change, Compacted, Refused, Unavailable

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
    while True:
        member = None
        try:
            with link.open():
                member = await link.ready(_now() + link.timeout_s)
                metadata = await link.metadata(member, _now() + link.timeout_s, renew=renew_token)
                async with aclosing(_stream(member, metadata, prefix, after_revision, silence_s)) as responses:
                    async for response in responses:
                        backoff.reset()
                        renew_token = False
                        batch = _new_changes(response, after_revision)
                        if batch:
                            after_revision = batch[-1].revision
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
        if wire.is_stale_token(wire.details(exc)):
            raise _TokenError(wire.details(exc)) from None
        raise wire.store_error(exc, member.endpoint) from exc
    finally:
        call.cancel()


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
    try:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes while the write is done.
        async with asyncio.timeout(timeout_s):
            await call.write(request)
    except TimeoutError:
        raise Unavailable("the peer takes no requests") from None
    except asyncio.InvalidStateError:  # grpc.aio: the stream has ended; the next read says why
        return


def _now() -> float:
    return asyncio.get_running_loop().time()
