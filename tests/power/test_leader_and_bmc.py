"""The real leader, a lost host, and a real Redfish request: the job restarts because the power was seen off."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gpupool.store import keys
from gpupool.store.port import Put
from gpupool.v1 import job_pb2, records_pb2
from scheduler.core.state.policy import Device, Policy
from scheduler.election import Term
from scheduler.fencing.config import load_power
from scheduler.leader import Leader
from tests.fakes.emulator import PASSWORD, USER, Emulator
from tests.fakes.pool import Pool
from tests.fakes.virtual_time import eventually, until


@pytest.mark.parametrize("kind", ["redfish", "fence_redfish"])
async def test_a_dead_host_is_switched_off_and_its_job_restarts(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pool = Pool()
    with Emulator(tmp_path) as bmc:
        parameters = f"parameters: {{ip: 127.0.0.1, ipport: {bmc.port}, username: {USER}, ssl_insecure: true}}"
        redfish = f"address: '{bmc.address}', username: {USER}, verify: cert.pem"
        how = redfish if kind == "redfish" else parameters
        text = f"hosts: {{h1: {{device: {kind}, password_file: password, power_on: true, {how}}}}}\n"
        await asyncio.to_thread((tmp_path / "power.yaml").write_text, text)
        devices = load_power(tmp_path / "power.yaml")
        term = Term(await pool.put(Put(keys.LEADER, b"")), 0)
        policy = Policy(powered=dict.fromkeys(devices, Device()))
        leading = asyncio.create_task(Leader(pool.store, term, wall=time.time, policy=policy, power=devices).run())
        try:
            await pool.join("h1")
            await _guardless(pool)
            await pool.submit("j1")
            await until(pool.allocations)
            await pool.report(pool.allocations()[0], records_pb2.ALLOCATION_STATE_RUNNING)
            await until(lambda: pool.status("j1").state == job_pb2.JOB_STATE_RUNNING)
            await pool.join("h2")
            await pool.leave("h1")
            await until(lambda: [(a.id, a.host) for a in pool.allocations()] == [("j1.2", "h2")])
            assert pool.status("j1").attempts[0].evidence == job_pb2.EVIDENCE_POWER_OFF
            await until(lambda: f"{kind} saw its power off" in pool.host("h1").last_fence.detail)
            await eventually(lambda: _powered(bmc))  # switched on again, as wanted
        finally:
            leading.cancel()
            with suppress(asyncio.CancelledError):
                await leading
    stored = b"".join(kv.value for kv in (await pool.store.list(keys.ROOT)).items)
    assert PASSWORD.encode() not in stored
    assert PASSWORD not in caplog.text


async def _guardless(pool: Pool) -> None:
    found = pool.backend.get(keys.session("h1"))
    assert found is not None
    session = records_pb2.Session.FromString(found.value)
    session.guard, session.simulated = records_pb2.GUARD_KIND_UNSPECIFIED, False
    await pool.put(Put(keys.session("h1"), session.SerializeToString()))


async def _powered(bmc: Emulator) -> bool:
    return await asyncio.to_thread(lambda: bmc.power) == "On"
