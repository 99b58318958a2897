"""etcd: whether it answers, and how fast beside the lease that VMs live by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gpupool.store.keys import LEADER
from gpupool.store.port import StoreError

from .facts import Context
from .model import WARNING, Advice, Found, ok, unknown

ETCD = "etcd"
TRIES = 5
PATIENCE_S = 5.0
SLOW_SHARE = 0.1  # of the lease: a renewal is tried a few times within one, and each takes a round trip


async def etcd(context: Context, now: Callable[[], float] = time.perf_counter) -> Found:
    """Reads one key a few times and judges the slowest answer."""
    if context.store is None:
        return unknown(ETCD, "no etcd was named; say --etcd HOST:PORT, or ask the host's agent with --host")
    where = ", ".join(context.endpoints) or "etcd"
    slowest_s = 0.0
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(TRIES):
                began_s = now()
                await context.store.get(LEADER)
                slowest_s = max(slowest_s, now() - began_s)
    except (StoreError, TimeoutError) as exc:
        why = str(exc) or f"no answer within {PATIENCE_S:g} s"
        return Found(
            ETCD,
            WARNING,
            f"{where} does not answer: {why}",
            "The host's session ends with its lease; then the guard kills all VMs, and the host gets no jobs.",
            Advice(any="`etcdctl --endpoints=HOST:PORT endpoint status` for each member; look at the network between."),
        )
    if slowest_s > SLOW_SHARE * context.ttl_s:
        return Found(
            ETCD,
            WARNING,
            f"{where} took more than {SLOW_SHARE * context.ttl_s:g} s for an answer; the lease is {context.ttl_s:g} s",
            "A few answers like that in a row let the lease run out, and the guard kills all VMs of this host.",
            Advice(
                any="Give etcd disks of its own (etcd_disk_wal_fsync_duration_seconds), or a longer lease: --ttl-s."
            ),
        )
    return ok(ETCD, f"{where} answers; slowest of {TRIES} {slowest_s * 1000:.1f} ms, the lease is {context.ttl_s:g} s")
