"""Hosts whose loss nobody could prove are told while they live, as are fence devices of hosts that nobody knows."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.declare import KEPT
from gpupool.store import keys
from gpupool.store.port import Put
from gpupool.v1 import records_pb2
from scheduler.api.operations_api import OperationsApi
from scheduler.api.provable import compare
from scheduler.core.failover.proof import why_unprovable
from scheduler.core.state.facts import GuardKind
from scheduler.core.state.policy import Device, Policy
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import Pool, wall
from tests.fakes.virtual_time import virtual_time

NONE, SOFT, HARDWARE = GuardKind.NONE, GuardKind.SOFT, GuardKind.HARDWARE
TRUSTS = Policy(soft_guard_is_enough=True)
POWERED = Policy(powered={"h1": Device()})


@pytest.mark.parametrize(
    ("guard", "simulated", "policy", "why"),
    [
        (SOFT, False, Policy(), "a soft guard only, and no fence device"),
        (SOFT, True, Policy(), ""),
        (SOFT, False, TRUSTS, ""),
        (SOFT, False, POWERED, ""),
        (SOFT, True, POWERED, ""),
        (HARDWARE, False, Policy(), ""),
        (NONE, False, TRUSTS, "no guard, and no fence device"),
        (NONE, True, Policy(), "no guard, and no fence device"),
        (NONE, False, POWERED, ""),
    ],
)
def test_what_can_be_proven(guard: GuardKind, simulated: bool, policy: Policy, why: str) -> None:
    assert why_unprovable("h1", guard, policy, simulated=simulated) == why


def test_an_unguarded_host_says_why() -> None:
    why = why_unprovable("h1", NONE, Policy(), simulated=False, unguarded=KEPT)
    assert why == f"no guard ({KEPT}), and no fence device"


@virtual_time
async def test_the_summary_names_those_that_live_and_slips_of_the_power_file() -> None:
    pool = Pool()
    none, soft = records_pb2.GUARD_KIND_UNSPECIFIED, records_pb2.GUARD_KIND_SOFT
    kinds = {"kept": none, "lost": soft, "powered": soft, "soft": soft, "watched": records_pb2.GUARD_KIND_HARDWARE}
    for name, guard in kinds.items():
        session = await pool.join(name)
        kv = await pool.store.get(keys.session(name))
        assert kv
        said = records_pb2.Session.FromString(kv.value)
        said.guard, said.simulated = guard, False
        said.unguarded = KEPT if name == "kept" else ""
        state = records_pb2.HOST_STATE_FENCING if name == "lost" else records_pb2.HOST_STATE_READY
        record = records_pb2.HostRecord(state=state, session=session)
        await pool.put(
            Put(kv.key, said.SerializeToString(), kv.lease), Put(keys.host(name), record.SerializeToString())
        )
    mirror = Mirror(pool.store, wall)
    task = asyncio.create_task(mirror.run())
    await mirror.synced.wait()
    policy = replace(Policy(), powered={"powered": Device(), "pwoered": Device()})
    found = OperationsApi(pool.store, mirror, replica="s1", version="1", wall=wall, policy=policy).cluster()
    assert [each.host for each in found.unprovable] == ["kept", "soft"]
    assert found.unprovable[0].why == f"no guard ({KEPT}), and no fence device"
    assert list(found.powered_unknown) == ["pwoered"]
    assert await compare(pool.store, policy) == [
        "pwoered: no host is known by this name; a slip in the power file?",
        f"kept: nobody could prove its loss: no guard ({KEPT}), and no fence device",
        "soft: nobody could prove its loss: a soft guard only, and no fence device",
    ]
    task.cancel()
