"""The store on etcd (3.4 and later), over grpc.aio and the generated stubs of `aetcd`; nothing else of that package.

It never retries a write whose fate is unknown, never lets a call outlast its deadline, and never hands out a change
twice. What is asked of a cluster: see `gpupool.store.port`. Members older than 3.4.28 or 3.5.10 can end a live lease
when a leader that was stuck wakes up (https://github.com/etcd-io/etcd/issues/15247): no client can mend that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2

from gpupool.store import etcd_wire as wire
from gpupool.store._check import check_commit, check_key
from gpupool.store.etcd_link import Link, Member, TlsFiles
from gpupool.store.etcd_members import Members
from gpupool.store.etcd_pages import pages
from gpupool.store.etcd_watch import watch
from gpupool.store.port import Change, Committed, Each, Guard, KeyValue, LeaseNotFound, Op, Poll, Snapshot, Unavailable

__all__ = ["EtcdStore", "TlsFiles"]

_LIST_TRIES = 5
_DECODED = 1000  # keys between two looks at what else there is to do


class EtcdStore:
    """A client of one etcd cluster; implements gpupool.store.port.Store. Make it inside a running event loop.

    `endpoints` are host:port of members, asked in turn when one fails. `timeout_s` bounds every call. `user` and
    `password` log in where etcd's auth is on; a certificate's common name needs neither. `max_ops` is the cluster's
    --max-txn-ops, `page_keys` how many keys the first read of a list asks for (later: up to 20 times as many). A
    watch hears from its peer within `silence_s` or moves to another connection. `probe_key` is any key that our role
    may read, present or not (see `renew`).
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TlsFiles | None = None,
        user: str | None = None,
        password: str | None = None,
        timeout_s: float = 5.0,
        max_ops: int = 128,
        page_keys: int = 1000,
        silence_s: float = 6.0,
        probe_key: str = "\0",
    ) -> None:
        self._link = Link(endpoints, tls=tls, user=user, password=password, timeout_s=timeout_s)
        self._max_ops = max_ops
        self._page_keys = page_keys
        self._silence_s = silence_s
        self._probe = rpc_pb2.RangeRequest(key=wire.encode_key(probe_key), keys_only=True)
        self._members = Members(self._link, self._probe)

    async def get(self, key: str) -> KeyValue | None:
        """See Store.get."""
        check_key(key)
        response = await self._range(rpc_pb2.RangeRequest(key=wire.encode_key(key)))
        return wire.decode_kv(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        """See Store.list. A compaction that overtakes the pages starts the list again, a few times."""
        for _ in range(_LIST_TRIES):
            try:
                return await self._list_once(prefix, each)
            except grpc.aio.AioRpcError as exc:  # Link.run lets only "compacted" through
                last = exc
        raise Unavailable(f"compacted during {_LIST_TRIES} lists of {prefix!r} in a row: {wire.details(last)}")

    async def _list_once(self, prefix: str, each: Each | None) -> Snapshot:
        items: list[KeyValue] = []
        revision = 0
        async with contextlib.aclosing(pages(self._page, prefix, self._page_keys)) as answers:
            async for page in answers:
                revision = revision or page.header.revision  # later headers say what etcd is at by then
                before = len(items)
                await _decode(page.kvs, items)
                if each is not None:
                    await each(before, items[before:])
        return Snapshot(revision, tuple(items))

    async def _page(self, first: bytes, end: bytes, revision: int, limit: int) -> Any:
        """`revision` 0: the newest, linearizable."""
        return await self._range(rpc_pb2.RangeRequest(key=first, range_end=end, limit=limit, revision=revision))

    async def _range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        async def send(member: Member, timeout_s: float, metadata: grpc.aio.Metadata) -> Any:
            return await member.kv.Range(request, timeout=timeout_s, metadata=metadata)

        return await self._link.run(send, again=True)

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        """See Store.commit. Unavailable means "perhaps done", save when there was no connection at all."""
        check_commit(guards, ops, self._max_ops)
        request = wire.encode_txn(guards, ops)

        async def send(member: Member, timeout_s: float, metadata: grpc.aio.Metadata) -> Any:
            return await member.kv.Txn(request, timeout=timeout_s, metadata=metadata)

        response = await self._link.run(send, again=False)
        return Committed(succeeded=response.succeeded, revision=response.header.revision)

    def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """See Store.watch."""
        return watch(self._link, prefix, after_revision, silence_s=self._silence_s)

    async def grant(self, ttl_s: int) -> int:
        """See Store.grant. etcd raises a TTL below 1.5 election timeouts to that; `renew` tells. Sent only once."""
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_s)

        async def send(member: Member, timeout_s: float, metadata: grpc.aio.Metadata) -> Any:
            return await member.lease.LeaseGrant(request, timeout=timeout_s, metadata=metadata)

        return int((await self._link.run(send, again=False)).ID)

    async def renew(self, lease: int) -> int:
        """See Store.renew. The lease ends no earlier than the TTL after this call began.

        A leader that has been deposed without knowing it acknowledges renewals that its successor never hears of. So a
        linearizable read follows on the same member: if it succeeds in the same raft term, then the renewal was handled
        by the leader of that term, no later leader had been elected, and a later one starts the TTL afresh.
        """

        async def send(member: Member, timeout_s: float, metadata: grpc.aio.Metadata) -> int:
            async with asyncio.timeout(timeout_s):
                response = await _keep_alive(member, lease, metadata)
                if response.TTL > 0:
                    probe = await member.kv.Range(self._probe, metadata=metadata)
                    if _origin(probe.header) != _origin(response.header):
                        raise Unavailable(f"{member.endpoint} saw an election during the renewal")
            return int(response.TTL)

        ttl_s = await self._link.run(send, again=True)
        if ttl_s <= 0:
            raise LeaseNotFound(f"lease {lease} has ended")
        return ttl_s

    async def revoke(self, lease: int) -> None:
        """See Store.revoke."""
        request = rpc_pb2.LeaseRevokeRequest(ID=lease)

        async def send(member: Member, timeout_s: float, metadata: grpc.aio.Metadata) -> Any:
            return await member.lease.LeaseRevoke(request, timeout=timeout_s, metadata=metadata)

        with contextlib.suppress(LeaseNotFound):
            await self._link.run(send, again=True)

    async def learn_members(self) -> None:
        """See Store.learn_members."""
        await self._members.learn()

    async def poll_members(self) -> Poll:
        """See Store.poll_members."""
        return await self._members.poll()

    async def close(self) -> None:
        """See Store.close."""
        await self._link.close()

    @property
    def max_ops(self) -> int:
        """See Store.max_ops."""
        return self._max_ops


async def _decode(kvs: Sequence[Any], items: list[KeyValue]) -> None:
    """A few at a time, so that others run in between; and before the first, so that the next page is asked for."""
    for begin in range(0, len(kvs), _DECODED):
        await asyncio.sleep(0)
        items.extend(wire.decode_kvs(kvs[begin : begin + _DECODED]))


async def _keep_alive(member: Member, lease: int, metadata: grpc.aio.Metadata) -> Any:
    """One renewal on a stream of its own: failing over and giving up then work as for any other call."""
    call = member.lease.LeaseKeepAlive(metadata=metadata)
    try:
        await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
        response = await call.read()
    except asyncio.InvalidStateError:  # what grpc.aio raises for a write on a stream that has ended
        raise Unavailable(f"{member.endpoint}: {await call.details()}") from None
    finally:
        call.cancel()
    if response is grpc.aio.EOF:
        raise Unavailable(f"{member.endpoint} ended the stream without an answer")
    return response


def _origin(header: rpc_pb2.ResponseHeader) -> tuple[int, int]:
    """Which member answered, in which term."""
    return header.member_id, header.raft_term
