"""How fast this machine's etcd takes batches of small writes, through EtcdStore and through the bare stubs.

    python bench/store_commit.py [--txns 400] [--ops 100] [--concurrency 4] [--no-fsync]

The stubs are the ceiling: what EtcdStore adds is the connection check, metadata, checks and encoding. The two take
turns, because an etcd on a busy disk is faster or slower from one second to the next.
"""

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

VALUE = b"x" * 128
ROUNDS = 5


@dataclass(eq=False)
class Result:
    name: str
    rates: list[float] = field(default_factory=list)  # puts per second, one a round
    latencies_ms: list[float] = field(default_factory=list)

    def row(self) -> str:
        cuts = statistics.quantiles(self.latencies_ms, n=100)
        rate = statistics.median(self.rates)
        return f"{self.name:10} {rate:12,.0f} {cuts[49]:10.2f} {cuts[98]:10.2f}"


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


async def compare(endpoint: str, txns: int, ops: int, concurrency: int) -> None:
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
    ours, bare = ways
    print(f"{txns} transactions of {ops} puts of {len(VALUE)} bytes, {concurrency} at a time, in {ROUNDS} rounds")
    print(f"{'':10} {'puts/s':>12} {'p50 ms':>10} {'p99 ms':>10}")
    print(ours.row())
    print(bare.row())
    print(f"EtcdStore / stubs: {statistics.median(ours.rates) / statistics.median(bare.rates):.2f}")
    await store.close()
    await channel.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--txns", type=int, default=400)
    parser.add_argument("--ops", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--no-fsync", action="store_true", help="where this etcd has the flag (3.5)")
    options = parser.parse_args()
    etcd = EmbeddedEtcd(durable=not options.no_fsync)
    await etcd.start()
    try:
        await compare(etcd.endpoint, options.txns, options.ops, options.concurrency)
    finally:
        await etcd.stop()
        etcd.remove()


if __name__ == "__main__":
    asyncio.run(main())
