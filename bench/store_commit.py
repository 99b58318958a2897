"""How fast this machine's etcd takes batches of small writes, through EtcdStore and through the bare stubs.

    python -m bench.store_commit [--txns 400] [--ops 100] [--concurrency 4] [--no-fsync]

The stubs are the ceiling: what EtcdStore adds is the connection check, metadata, checks and encoding. The two take
turns, because an etcd on a busy disk is faster or slower from one second to the next.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from gpupool.embedded.etcd import EmbeddedEtcd
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Put

from .row import Row, print_table

VALUE = b"x" * 128
ROUNDS = 5


@dataclass(eq=False)
class Result:
    name: str
    rates: list[float] = field(default_factory=list)  # puts per second, one a round
    latencies_ms: list[float] = field(default_factory=list)

    def percentile_ms(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_ms, n=100)[percent - 1]


def keys(txns: int, ops: int) -> Iterator[list[str]]:
    return ([f"/bench/{txn % 50:03}/{op:03}" for op in range(ops)] for txn in range(txns))


async def measure(
    result: Result, write: Callable[[list[str]], Awaitable[object]], batches: Iterator[list[str]], concurrency: int
) -> None:
    written = 0

    async def work() -> None:
        nonlocal written
        for batch in batches:  # shared: each worker takes the next
            begun = time.perf_counter()
            await write(batch)
            result.latencies_ms.append((time.perf_counter() - begun) * 1000)
            written += len(batch)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    result.rates.append(written / (time.perf_counter() - begun))


async def compare(endpoint: str, txns: int, ops: int, concurrency: int) -> list[Row]:
    store = EtcdStore([endpoint])
    channel = grpc.aio.insecure_channel(endpoint)
    stub = rpc_pb2_grpc.KVStub(channel)

    async def through_store(batch: list[str]) -> None:
        assert (await store.commit([], [Put(key, VALUE) for key in batch])).succeeded

    async def through_stub(batch: list[str]) -> None:
        puts = [rpc_pb2.PutRequest(key=key.encode(), value=VALUE) for key in batch]
        await stub.Txn(rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts]))

    ways = {Result("EtcdStore"): through_store, Result("stubs"): through_stub}
    for write in ways.values():
        await measure(Result("warm-up"), write, keys(20, ops), concurrency)
    for _ in range(ROUNDS):
        for result, write in ways.items():
            await measure(result, write, keys(txns // ROUNDS, ops), concurrency)
    await store.close()
    await channel.close()
    ours, bare = ways
    what, limit = f"{ops} puts of {len(VALUE)} bytes a transaction, {concurrency} at a time", "the bare gRPC stubs"
    rows = [Row(what, "puts/s", ours.rates, statistics.median(bare.rates), limit)]
    for percent in (50, 99):
        ours_ms, bare_ms = ours.percentile_ms(percent), bare.percentile_ms(percent)
        rows.append(Row(f"one such transaction, p{percent}", "ms", [ours_ms], bare_ms, limit))
    return rows


async def run(
    tell: Callable[[str], None], *, txns: int = 400, ops: int = 100, concurrency: int = 4, durable: bool = True
) -> list[Row]:
    """See the module docstring."""
    etcd = EmbeddedEtcd(durable=durable)
    await etcd.start()
    tell(f"{txns} transactions in {ROUNDS} rounds")
    try:
        return await compare(etcd.endpoint, txns, ops, concurrency)
    finally:
        await etcd.stop()
        etcd.remove()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--txns", type=int, default=400)
    parser.add_argument("--ops", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--no-fsync", action="store_true", help="where this etcd has the flag (3.5)")
    o = parser.parse_args()
    rows = await run(print, txns=o.txns, ops=o.ops, concurrency=o.concurrency, durable=not o.no_fsync)
    print_table("store", rows)


if __name__ == "__main__":
    asyncio.run(main())
