"""A gang on simulated hosts with real VMs: it starts together, starts again together, and ends together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.store.etcd import EtcdStore
from gpupool.v1 import job_pb2
from tests.e2e import needs
from tests.e2e.fleet import A100, FOREVER, Fleet, one_vm_at_a_time

pytestmark = [*needs.ETCD, *needs.VMS]

HOSTS = dict.fromkeys(("h1", "h2", "h3"), f"1x{A100}")


@pytest.fixture(scope="module")
def cluster(images: Path, module_folder: Path) -> Iterator[EmbeddedCluster]:
    made = EmbeddedCluster(module_folder, images=images, hosts=HOSTS)
    try:
        asyncio.run(made.start())
        yield made
    finally:
        asyncio.run(made.stop())


@pytest.fixture
async def fleet(cluster: EmbeddedCluster) -> AsyncIterator[Fleet]:
    store = EtcdStore([cluster.etcd.endpoint])
    async with AsyncClient(cluster.server, timeout_s=30) as client:
        made = Fleet(cluster, client, store)
        await made.heal()
        yield made
    await store.close()


async def test_a_gang_survives_the_loss_of_a_host_as_a_whole(fleet: Fleet) -> None:
    gang = await fleet.submit(FOREVER, gang=job_pb2.Gang(count=2, spread_over="host"))
    first, second = f"{gang}-0", f"{gang}-1"
    hosts = [await fleet.runs(first), await fleet.runs(second)]
    assert hosts[0] is not hosts[1]
    async with one_vm_at_a_time(first), one_vm_at_a_time(second):
        await hosts[0].power_cut()
        again = {await fleet.runs(first, attempt=2), await fleet.runs(second, attempt=2)}
    assert hosts[0] not in again
    assert len(again) == 2
    lost, left = [(await fleet.client.get(job)).status for job in (first, second)]
    assert lost.attempts[0].outcome == job_pb2.OUTCOME_HOST_LOST
    assert left.attempts[0].outcome == job_pb2.OUTCOME_STOPPED
    assert (lost.restarts, left.restarts) == (1, 0)
    assert left.attempts[1].created_s == lost.attempts[1].created_s >= left.attempts[0].ended_s
    hosts[0].power_on()
    await fleet.client.cancel(first)
    assert {(await fleet.ends(job)).state for job in (first, second)} == {job_pb2.JOB_STATE_CANCELLED}
    await fleet.all_free()
