"""A renewal counts only if the member that acknowledged it had not been deposed: a member that says what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Unavailable


class Scripted(rpc_pb2_grpc.LeaseServicer, rpc_pb2_grpc.KVServicer):  # type: ignore[misc]
    """Acknowledges each renewal in `term`; what is read after that comes from the next of `later`, or from `term`."""

    def __init__(self, term: int, later: Iterator[int]) -> None:
        self.term, self.later = term, later

    async def LeaseKeepAlive(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        del context
        async for request in requests:
            yield rpc_pb2.LeaseKeepAliveResponse(header=self._header(self.term), ID=request.ID, TTL=8)

    async def Range(self, request: Any, context: Any) -> Any:
        del request, context
        return rpc_pb2.RangeResponse(header=self._header(next(self.later, self.term)))

    @staticmethod
    def _header(term: int) -> Any:
        return rpc_pb2.ResponseHeader(cluster_id=1, member_id=2, revision=3, raft_term=term)


@asynccontextmanager
async def served(member: Scripted) -> AsyncIterator[EtcdStore]:
    server = grpc.aio.server()
    rpc_pb2_grpc.add_LeaseServicer_to_server(member, server)
    rpc_pb2_grpc.add_KVServicer_to_server(member, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = EtcdStore([f"127.0.0.1:{port}"])
    try:
        yield store
    finally:
        await store.close()
        await server.stop(None)


async def test_a_renewal_within_one_term_counts() -> None:
    async with served(Scripted(7, iter([]))) as store:
        assert await store.renew(1) == 8


async def test_a_renewal_that_a_deposed_leader_acknowledged_is_none() -> None:
    """Its successor never heard of it; once it is the leader of the term that it answers in, it counts."""
    member = Scripted(7, iter([8]))
    async with served(member) as store:
        with pytest.raises(Unavailable, match="saw an election"):
            await store.renew(1)
        assert await store.renew(1) == 8
