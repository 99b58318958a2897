"""From a power cut to the job running elsewhere, on real VMs with the default timings.

The lower bound is what was left of the dead host's lease at the cut: until it has run out, nobody may believe that the
host's VMs are dead.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass
from pathlib import Path

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Change, KeyValue
from gpupool.v1 import job_pb2, records_pb2

from .row import Row

CUTS = 5
HOSTS = {"h1": "1xnvidia-t4", "h2": "1xnvidia-t4"}
IMAGES, IMAGE = Path("var/images"), "debian-numpy"
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class _Cut:
    """Seconds from one power cut on."""

    lease_s: float  # left of the lease
    placed_s: float  # the host is FENCED and the new placement is committed
    vm_s: float  # the new VM's CPUs run
    command_s: float  # the guest runs the command again


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    cluster = EmbeddedCluster(folder, images=IMAGES, hosts=HOSTS)
    cuts = []
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint])
        async with AsyncClient(cluster.server) as client:
            for number in range(CUTS):
                cuts.append(await _cut(cluster, store, client, number))
                tell(f"cut {number + 1}: {cuts[-1]}")
        await store.close()
    finally:
        await cluster.stop()
        remove_tree(folder)
    return _rows(cuts)


def _rows(cuts: Sequence[_Cut]) -> list[Row]:
    lease, placed, vm, command = zip(*map(astuple, cuts), strict=True)
    bound, limit = statistics.median(lease), "lease left at the cut"
    return [
        Row("power cut to fenced and placed", "s", placed, bound, limit),
        Row("power cut to the new VM's CPUs running", "s", vm, bound, limit, "<= 12"),
        Row("power cut to the guest's command running", "s", command, bound, limit),
        Row("of that: lease end to fenced and placed", "s", [p - s for p, s in zip(placed, lease, strict=True)]),
        Row("of that: placed to the VM's CPUs running", "s", [v - p for v, p in zip(vm, placed, strict=True)]),
        Row("of that: CPUs running to the command", "s", [c - v for c, v in zip(command, vm, strict=True)]),
    ]


async def _cut(cluster: EmbeddedCluster, store: EtcdStore, client: AsyncClient, number: int) -> _Cut:
    """One job, one power cut; everything is as before when it returns."""
    spec = job_pb2.JobSpec(
        name="bench", image=IMAGE, command=["sh", "-c", "sleep 600"], cpus=1, memory_mib=160, stop_grace_s=1,
        gpus=job_pb2.GpuRequest(count=1),
    )  # fmt: skip
    job = (await client.submit(spec)).id
    async with asyncio.timeout(PATIENCE_S):
        first = await _command_runs(store, job, 1)
        victim, standby = first.key.split("/")[4], next(h for h in HOSTS if f"/{h}/" not in first.key)
        session = await store.get(keys.session(victim))
        assert session is not None
        await asyncio.sleep(0.4 * (number % 5))  # at different moments between two renewals
        revision = (await store.list(keys.HOSTS)).revision
        begun = time.time()
        await cluster.hosts[victim].power_cut()
        lease_s, placed_at = await asyncio.gather(
            _lease_left(cluster.etcd.endpoint, session.lease, begun), _placed(store, standby, revision)
        )
        again = records_pb2.VmReport.FromString((await _command_runs(store, job, 2)).value)
        record = await store.get(keys.host(victim))
        assert record is not None
        assert records_pb2.HostRecord.FromString(record.value).state == records_pb2.HOST_STATE_FENCED
        cluster.hosts[victim].power_on()
        await client.cancel(job)
        await client.wait(job)
        await cluster.ready(set(HOSTS))
    return _Cut(lease_s, placed_at - begun, again.vm_started_s - begun, again.started_s - begun)


async def _command_runs(store: EtcdStore, job: str, attempt: int) -> KeyValue:
    """The report of that attempt's VM, once its guest has started the command."""
    while True:
        found = await store.list(keys.AGENTS)
        for kv in found.items:
            if kv.key.endswith(f"/vms/{job}.{attempt}") and records_pb2.VmReport.FromString(kv.value).started_s:
                return kv
        await asyncio.sleep(0.1)


async def _placed(store: EtcdStore, host: str, revision: int) -> float:
    """When the next allocation on `host` is seen in the store (Unix time), which is when the agent can see it."""
    async with aclosing(store.watch(keys.allocation_prefix(host), after_revision=revision)) as batches:
        await _first(batches)
        return time.time()


async def _first(batches: AsyncGenerator[Sequence[Change], None]) -> None:
    async for changes in batches:
        if any(change.kv is not None for change in changes):
            return


async def _lease_left(endpoint: str, lease: int, begun: float) -> float:
    """Seconds that the lease had left at `begun`. etcd tells whole seconds, so wait for one to pass."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = rpc_pb2_grpc.LeaseStub(channel)
        request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease)
        whole = (await stub.LeaseTimeToLive(request)).TTL
        while whole == (await stub.LeaseTimeToLive(request)).TTL:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return float(whole + time.time() - begun)
