"""An etcd whose data are put back to an earlier day under those who live on it: an agent, and one who follows."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.agent import Agent, Parts
from agent.timing import Identity, Limits, Timing
from gpupool.embedded.etcd import EmbeddedEtcd
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.follow import follow
from gpupool.store.port import Change, Put, Snapshot
from gpupool.v1 import job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, UNIT, FakeDevices, FakeLogs, FakeVolumes, MemoryRecords, inline
from tests.fakes.relay import Relay
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


@pytest.mark.parametrize("writes", [0, 60])
async def test_who_follows_a_restored_etcd_lists_anew(tmp_path: Path, writes: int) -> None:
    """With no more writes its revision is yet to come; with many, only the key that changed last tells."""
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    await etcd.start()
    cable = await Relay(lambda: etcd.endpoint).__aenter__()
    store, other = EtcdStore([cable.endpoint]), EtcdStore([etcd.endpoint])
    seen: dict[str, bytes] = {}
    told: list[str] = []

    def reset(snapshot: Snapshot) -> None:
        told.append("reset")
        seen.clear()
        seen.update({kv.key: kv.value for kv in snapshot.items})

    def changed(changes: Sequence[Change]) -> None:
        told.append("changes")
        seen.update({change.key: change.kv.value for change in changes if change.kv})

    following = asyncio.create_task(
        follow(store, "/f/", on_reset=reset, on_changes=changed, on_restored=lambda: told.append("restored"))
    )
    try:
        await other.commit([], [Put("/f/k", b"old")])
        await until(lambda: seen.get("/f/k") == b"old")
        await etcd.stop()
        shutil.copytree(tmp_path / "etcd", tmp_path / "backup")
        await etcd.start()
        for n in range(5):
            await other.commit([], [Put("/f/k", f"new {n}".encode())])
        await until(lambda: seen["/f/k"] == b"new 4")
        assert "restored" not in told
        await etcd.stop()
        shutil.rmtree(tmp_path / "etcd/member")
        shutil.copytree(tmp_path / "backup/member", tmp_path / "etcd/member")
        cable.silence()  # until the store has caught up
        await etcd.start()
        for n in range(writes):
            await other.commit([], [Put("/other", str(n).encode())])
        cable.speak()
        await until(lambda: "restored" in told and seen["/f/k"] == b"old")
        assert told[-2:] == ["restored", "reset"]
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await cable.__aexit__()
        await store.close()
        await other.close()
        await etcd.kill()
