"""Replicas with different policies: the leader's counts, and whoever has another says so."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from gpupool.store import keys
from gpupool.v1 import records_pb2
from scheduler.api.operations_api import OperationsApi
from scheduler.core.state.policy import BrakePolicy, Device, Policy
from scheduler.mirror.mirror import Mirror
from scheduler.policy_told import differences, told
from scheduler.replica import Replica
from tests.fakes.pool import HookedStore, Pool, wall
from tests.fakes.virtual_time import until, virtual_time

OTHER = replace(Policy(), brake=BrakePolicy(share=0.5), powered={"h1": Device()})


def leader(policy: str, name: str = "s1") -> records_pb2.Leader:
    return records_pb2.Leader(id=name, policy=policy)


def test_each_setting_that_differs_is_named_with_both_values() -> None:
    assert (
        differences(Policy(), "s2", leader(told(OTHER)))
        == [
            "brake.share is 0.34 at s2, and 0.5 at s1, which leads",
            "hosts in the power file is none at s2, and 1 (8d61af6a) at s1, which leads",
        ]
        or differences(Policy(), "s2", leader(told(OTHER)))[0]
        == "brake.share is 0.34 at s2, and 0.5 at s1, which leads"
    )


def test_nothing_is_said_of_the_same_or_of_an_older_leader() -> None:
    assert not differences(Policy(), "s2", leader(told(Policy())))
    assert not differences(Policy(), "s2", leader(""))
    assert not differences(Policy(), "s1", leader(told(OTHER), "s1"))


def test_what_only_one_of_two_versions_knows_differs() -> None:
    assert differences(Policy(), "s2", leader("{")) != []
    newer = told(Policy())[:-1] + ', "zeal": 3}'
    assert differences(Policy(), "s2", leader(newer)) == ["zeal is unknown at s2, and 3 at s1, which leads"]


@virtual_time
async def test_a_standby_with_another_policy_warns_and_tells_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "scheduler.replica")
    pool = Pool()
    tasks = []

    async def begin(name: str, policy: Policy) -> OperationsApi:
        store = HookedStore(pool.backend)
        mirror = Mirror(store, wall)
        tasks.append(asyncio.create_task(Replica(name, f"{name}:1", store, mirror, policy, wall).run()))
        await mirror.synced.wait()
        return OperationsApi(store, mirror, replica=name, version="1", wall=wall, policy=policy)

    first = await begin("s1", OTHER)
    await until(lambda: pool.backend.get(keys.LEADER))
    second = await begin("s2", Policy())
    await asyncio.sleep(10)
    assert list(second.cluster().policy_differs) == differences(Policy(), "s2", leader(told(OTHER)))
    assert not first.cluster().policy_differs
    said = [record.getMessage() for record in caplog.records if "another policy" in record.getMessage()]
    assert len(said) == 1
    assert "s2 has another policy than the leader's, which counts: brake.share is 0.34 at s2" in said[0]
    for task in tasks:
        task.cancel()
