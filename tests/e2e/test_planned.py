"""Planned work for real: VMs of a drained host save their state, stop, and their jobs go on elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gpupool.cli.app import run
from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.store.etcd import EtcdStore
from gpupool.v1 import job_pb2, records_pb2
from tests.e2e import needs
from tests.e2e.fleet import A100, FOREVER, Fleet, one_vm_at_a_time, until, vms

pytestmark = [*needs.ETCD, *needs.VMS]

STEPS = 40


@pytest.fixture(scope="module")
def cluster(images: Path, module_folder: Path) -> Iterator[EmbeddedCluster]:
    made = EmbeddedCluster(module_folder, images=images, hosts={"h1": f"2x{A100}", "h2": f"2x{A100}"})
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


async def gpupool(fleet: Fleet, *arguments: str) -> int:
    """The command line, which has an event loop of its own."""
    return await asyncio.to_thread(run, [*arguments, "--server", fleet.cluster.server])


async def test_training_moves_with_its_state_when_its_host_is_drained(fleet: Fleet) -> None:
    train = ["python3", "/opt/gpupool/train.py", f"--steps={STEPS}", "--checkpoint-every=1000", "--seed=3"]
    train += ["--checkpoint-dir=/mnt/ckpt", "--step-delay-s=0.2"]  # it saves only when it is asked to
    disk = [job_pb2.Volume(name="ckpt", size_mib=32, path="/mnt/ckpt")]
    job = await fleet.submit("", command=train, volumes=disk, stop_grace_s=30, restart={"max_restarts": 0})
    first = await fleet.runs(job)
    await fleet.prints(job, "step 5 ")
    async with one_vm_at_a_time(job) as seen:
        assert await gpupool(fleet, "drain", first.name, "--reason", "new fans", "--timeout-s", "80") == 0
        assert not vms(job).get(1), "drained, and yet its VM lives"
        second = await fleet.runs(job, attempt=2)
        assert second is not first
        status = await fleet.ends(job)
    assert seen[-1] == 2
    assert (status.state, status.restarts) == (job_pb2.JOB_STATE_SUCCEEDED, 0)
    assert [each.outcome for each in status.attempts] == [job_pb2.OUTCOME_STOPPED, job_pb2.OUTCOME_EXITED]
    resumed = await fleet.prints(job, "resumed from checkpoint at step", attempt=2)
    assert int(resumed.split()[-1]) >= 5
    later = await fleet.submit("true")
    assert (await fleet.ends(later)).attempts[0].host == second.name, "a drained host takes nothing new"
    assert await gpupool(fleet, "undrain", first.name) == 0
    both = [await fleet.submit(FOREVER, gpus=2) for _ in range(2)]
    assert {(await fleet.runs(each)).name for each in both} == {"h1", "h2"}


async def test_a_drain_goes_on_under_another_leader_and_waits_for_a_place(fleet: Fleet) -> None:
    big = await fleet.submit(FOREVER, gpus=2)
    host = await fleet.runs(big)
    other = next(each for name, each in fleet.hosts.items() if each is not host)
    small = await fleet.submit(FOREVER)
    assert await fleet.runs(small) is other
    await fleet.client.drain(host.name, "new fans", wait=True, grace_s=3)
    leader = (await fleet.client.cluster()).leader.id
    await fleet.cluster.replicas[leader].kill()
    await fleet.cluster.start_replica(leader)
    await asyncio.sleep(3)
    assert (await fleet.client.get(big)).status.state == job_pb2.JOB_STATE_RUNNING, "it has nowhere to go"
    await fleet.client.cancel(small)
    assert await fleet.runs(big, attempt=2) is other
    await until(lambda: _drained(fleet, host.name))
    assert (await fleet.client.get(big)).status.restarts == 0


async def _drained(fleet: Fleet, name: str) -> bool:
    return next(not host.vms for host in await fleet.client.hosts() if host.name == name)


async def test_a_host_in_maintenance_is_rebooted_and_nobody_is_alarmed(fleet: Fleet) -> None:
    host = fleet.hosts["h1"]
    before = await fleet.session(host)
    await fleet.client.maintenance("h1", on=True, reason="new board")
    await host.power_cut()
    await until(lambda: _lost(fleet, before))
    host.power_on()
    await fleet.cluster.ready({"h1"})
    shown = next(each for each in await fleet.client.hosts() if each.name == "h1")
    assert shown.record.last_fence.evidence == job_pb2.EVIDENCE_NOTHING_RAN
    assert shown.intent.maintenance
    job = await fleet.submit("true")
    assert (await fleet.ends(job)).attempts[0].host == "h2"


async def _lost(fleet: Fleet, session: int) -> bool:
    shown = next(each for each in await fleet.client.hosts() if each.name == "h1")
    return shown.record.last_fence.session == session and shown.record.state == records_pb2.HOST_STATE_FENCED


async def test_a_rolling_reboot_boots_every_host_and_loses_no_job(fleet: Fleet, short_folder: Path) -> None:
    job = await fleet.submit(FOREVER, restart={"max_restarts": 0}, stop_grace_s=2)
    before = {each.name: each.record.boot_id for each in await fleet.client.hosts()}

    async def machines() -> None:
        """What an operator's command does: power off, power on."""
        while True:
            for name, host in fleet.hosts.items():
                asked = short_folder / name
                if asked.exists():
                    asked.unlink()
                    await host.power_cut()
                    host.power_on()
            await asyncio.sleep(0.1)

    power = asyncio.create_task(machines())
    try:
        await fleet.runs(job)
        line = f"touch {short_folder}/{{host}}"
        assert await gpupool(fleet, "reboot", "h1", "h2", "--command", line, "--back-within-s", "120") == 0
    finally:
        power.cancel()
    after = {each.name: each for each in await fleet.client.hosts()}
    assert all(after[name].record.boot_id != boot for name, boot in before.items())
    assert not any(each.intent.maintenance or each.intent.HasField("drain") for each in after.values())
    status = (await fleet.client.get(job)).status
    assert (status.state, status.restarts) in [
        (job_pb2.JOB_STATE_RUNNING, 0),
        (job_pb2.JOB_STATE_STARTING, 0),
    ]
    assert {each.outcome for each in status.attempts[:-1]} == {job_pb2.OUTCOME_STOPPED}
