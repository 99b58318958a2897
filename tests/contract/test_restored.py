"""An etcd whose data are put back to an earlier day under an agent that lives: session and lease are in the backup."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest

from agent.agent import Agent, Parts
from agent.timing import Identity, Limits, Timing
from gpupool.embedded.etcd import EmbeddedEtcd
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Put
from gpupool.v1 import job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, UNIT, FakeDevices, FakeLogs, FakeVolumes, MemoryRecords, inline
from tests.fakes.virtual_time import until
from tests.fakes.vms import FakeClock, FakeGuard, FakeVms, Guest

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd on this machine")


def allocation(agent: Agent) -> Put:
    want = records_pb2.Allocation(
        id="j1.1", job="j1", attempt=1, host=HOST, units=[UNIT], pci_addresses=[UNIT], memory_mib=1024,
        session=agent.keeper.session, session_nonce=agent.keeper.nonce, desired=records_pb2.DESIRED_RUN,
        spec=job_pb2.JobSpec(image="ubuntu", command=["true"], cpus=2),
    )  # fmt: skip
    return Put(keys.allocation(HOST, want.id), want.SerializeToString())


@pytest.mark.parametrize("writes", [0, 60])
async def test_agent_ends_what_a_restored_etcd_does_not_know(tmp_path: Path, writes: int) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    await etcd.start()
    store, other, clock = EtcdStore([etcd.endpoint]), EtcdStore([etcd.endpoint]), FakeClock()
    vms = FakeVms(default=Guest(boot_s=0.2, run_s=None))
    devices = FakeDevices([UNIT])
    devices.reclaim_s = 0.1
    parts = Parts(
        store, vms, FakeGuard(vms, clock.boot), clock, devices, MemoryRecords(), FakeLogs(), FakeVolumes(),
        lambda: ["ubuntu"], run_blocking=inline,
    )  # fmt: skip
    agent = Agent(Identity(HOST, "boot-1", "10.0.0.1:1", "test"), Timing(ttl_s=60, renew_s=1.0), Limits(), parts)
    life = asyncio.create_task(agent.run())
    try:
        await until(agent.keeper.may_start)
        await asyncio.sleep(2)
        await etcd.stop()
        shutil.copytree(tmp_path / "etcd", tmp_path / "backup")
        await etcd.start()
        await until(agent.keeper.may_start)
        nonce = agent.keeper.nonce
        await other.commit([], [allocation(agent)])
        await until(lambda: "j1.1" in agent.ledger.vms and agent.ledger.vms["j1.1"].started_s)
        await asyncio.sleep(1)  # its report stands
        await etcd.stop()
        shutil.rmtree(tmp_path / "etcd/member")
        shutil.copytree(tmp_path / "backup/member", tmp_path / "etcd/member")
        await etcd.start()
        for n in range(writes):
            await other.commit([], [Put("/other", str(n).encode())])
        await until(lambda: agent.keeper.nonce != nonce and agent.keeper.session)
        assert not vms.vms["j1.1"].alive
        assert [event for _, event, _ in vms.history] == ["run", "end"]
    finally:
        life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await life
        await store.close()
        await other.close()
        await etcd.kill()
