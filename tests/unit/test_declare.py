"""The guard, the watchdog and their absence in the session's record: what is said is so, whatever fails in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from agent.declare import KEPT
from gpupool.store import keys
from gpupool.store.port import Committed, Op, Put, Unavailable
from gpupool.store.port import Guard as StoreGuard
from gpupool.v1 import records_pb2
from tests.fakes.agent_rig import HOST, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

NONE, SOFT = records_pb2.GUARD_KIND_UNSPECIFIED, records_pb2.GUARD_KIND_SOFT
HARDWARE = records_pb2.GUARD_KIND_HARDWARE


def disarm(rig: Rig, *, disarmed: bool = True) -> None:
    wish = records_pb2.ClusterIntent(disarmed=disarmed, reason="new switches", by="ann")
    rig.put(keys.CLUSTER_INTENT, wish)


def guard_may_outlive(rig: Rig) -> bool:
    """Whether the guard lets VMs live longer than the last acknowledged renewal vouches for."""
    return rig.guard.deadline > rig.agent.keeper._deadline.kill_at + 0.01


async def watched(rig: Rig, for_s: float) -> None:
    """Nothing at any moment of it is relaxed while the store says that there is a guard."""
    for _ in range(int(for_s * 20)):
        await asyncio.sleep(0.05)
        assert not (guard_may_outlive(rig) and rig.session_record().guard != NONE)


@virtual_time
async def test_watchdog_is_declared_only_while_it_is_armed() -> None:
    rig = Rig()
    await rig.ready()
    assert rig.session_record().guard == SOFT
    rig.guard.armed_s = 4.0
    await until(lambda: rig.session_record().guard == HARDWARE)
    assert rig.session_record().watchdog_s == 4
    rig.guard.armed_s = 0.0
    await until(lambda: rig.session_record().guard == SOFT)
    assert rig.session_record().watchdog_s == 0
    rig.guard.armed_s = 60.0  # it cannot be petted in time
    await asyncio.sleep(10)
    assert rig.session_record().guard == SOFT
    await rig.close()


@virtual_time
async def test_what_the_guard_was_refused_is_in_the_record() -> None:
    rig = Rig()
    await rig.ready()
    assert not rig.session_record().guard_refused
    rig.guard.denied = "real-time priority"
    await until(lambda: rig.session_record().guard_refused == "real-time priority")
    assert rig.session_record().guard == SOFT
    await rig.close()


@virtual_time
async def test_no_vm_starts_behind_a_watchdog_that_is_declared_and_not_armed() -> None:
    rig = Rig()
    await rig.ready()
    rig.guard.armed_s = 4.0
    await until(lambda: rig.session_record().guard == HARDWARE)
    commit = rig.backend.commit

    def no_record(guards: Sequence[StoreGuard], ops: Sequence[Op]) -> Committed:
        if any(op.key == keys.session(HOST) for op in ops):
            raise Unavailable("no answer")
        return commit(guards, ops)

    rig.backend.commit = no_record  # type: ignore[method-assign]
    rig.guard.armed_s = 0.0
    rig.allocate()
    await asyncio.sleep(20)
    assert not rig.vms.history
    assert rig.session_record().guard == HARDWARE
    rig.backend.commit = commit  # type: ignore[method-assign]
    await rig.running()
    assert rig.session_record().guard == SOFT
    await rig.close()


@virtual_time
async def test_store_away_with_the_policy_to_keep() -> None:
    """No guard is declared from the start, so VMs live on; but none starts without a fresh renewal."""
    rig = Rig(unguarded=KEPT)
    session = await rig.ready()
    record = rig.session_record()
    assert (record.guard, record.unguarded) == (NONE, KEPT)
    rig.vms.default = Guest(run_s=None)
    rig.allocate("j1.1")
    await rig.running()
    rig.allocate("j2.1", units=("0000:02:00.0",))
    rig.store.away = True
    started = len(rig.vms.history)
    await asyncio.sleep(40)
    assert rig.guard.kills == 0
    assert rig.vms.vms["j1.1"].alive
    assert not rig.agent.keeper.may_start()
    assert len(rig.vms.history) <= started + 1
    assert rig.agent.keeper.session == session
    await rig.close()


@virtual_time
async def test_disarmed_host_says_so_first_and_relaxes_then() -> None:
    rig = Rig()
    await rig.ready()
    rig.vms.default = Guest(run_s=None)
    rig.allocate()
    await rig.running()
    disarm(rig)
    await watched(rig, 5)
    assert rig.session_record().unguarded == "disarmed by ann: new switches"
    rig.store.away = True
    await asyncio.sleep(30)
    assert rig.guard.kills == 0
    rig.store.away = False
    await asyncio.sleep(10)
    await rig.close()


@virtual_time
async def test_relaxes_nothing_before_the_record_is_acknowledged() -> None:
    """The record may have been written, but nobody said so; then the store is away, and the VMs die in time."""
    rig = Rig()
    await rig.ready()
    rig.vms.default = Guest(run_s=None)
    rig.allocate()
    await rig.running()
    commit = rig.backend.commit

    def lost(guards: Sequence[StoreGuard], ops: Sequence[Op]) -> Committed:
        if any(op.key == keys.session(HOST) for op in ops):
            raise Unavailable("no answer")
        return commit(guards, ops)

    rig.backend.commit = lost  # type: ignore[method-assign]
    disarm(rig)
    await watched(rig, 10)
    rig.store.away = True
    await asyncio.sleep(20)
    assert rig.guard.kills == 1
    await rig.close()


@virtual_time
async def test_armed_again_first_takes_the_deadline_back_and_declares_then() -> None:
    rig = Rig()
    await rig.ready()
    disarm(rig)
    await watched(rig, 5)
    rig.store.no_renewals = True
    await asyncio.sleep(6)
    assert guard_may_outlive(rig)
    disarm(rig, disarmed=False)
    await watched(rig, 3)
    assert "caught up" in rig.session_record().unguarded
    rig.store.no_renewals = False
    await watched(rig, 10)
    assert rig.session_record().guard == SOFT
    await rig.close()


@virtual_time
async def test_record_that_was_sent_long_ago_cannot_undo_what_was_said_since() -> None:
    """A write that declares the guard is stuck on its way; it arrives after the host was disarmed and has relaxed."""
    rig = Rig()
    await rig.ready()
    disarm(rig)
    await watched(rig, 5)
    stuck: list[tuple[Sequence[StoreGuard], Sequence[Op]]] = []
    commit = rig.backend.commit

    def slow(guards: Sequence[StoreGuard], ops: Sequence[Op]) -> Committed:
        if any(op.key == keys.session(HOST) for op in ops):
            stuck.append((guards, ops))
            raise Unavailable("no answer")
        return commit(guards, ops)

    rig.backend.commit = slow  # type: ignore[method-assign]
    disarm(rig, disarmed=False)
    await until(lambda: any(_declares(op) for _, ops in stuck for op in ops))
    disarm(rig)
    rig.backend.commit = commit  # type: ignore[method-assign]
    await watched(rig, 5)
    rig.store.no_renewals = True
    await asyncio.sleep(6)
    for guards, ops in stuck:
        rig.backend.commit(guards, ops)
    assert guard_may_outlive(rig)
    assert rig.session_record().guard == NONE
    await rig.close()


def _declares(op: Op) -> bool:
    if not isinstance(op, Put) or op.key != keys.session(HOST):
        return False
    return not records_pb2.Session.FromString(op.value).unguarded


@virtual_time
async def test_agent_that_comes_while_the_deadline_is_beyond_its_renewals_declares_nothing() -> None:
    rig = Rig(unguarded=KEPT)
    await rig.ready()
    await rig.kill_agent()
    rig.guard.extend(rig.clock.boot() + 30)  # by an agent with longer times
    rig.unguarded = ""
    await rig.boot()
    assert rig.session_record().guard == NONE
    await watched(rig, 40)
    assert rig.session_record().guard == SOFT
    await rig.close()


@pytest.mark.parametrize("policy", ["", KEPT])
def test_dead_guard_is_never_declared(policy: str) -> None:
    @virtual_time
    async def scenario() -> None:
        rig = Rig(unguarded=policy)
        await rig.ready()
        rig.guard.dead = rig.guard.unstartable = True
        await until(lambda: rig.session_record().guard == NONE)
        assert rig.session_record().unguarded == policy or "does not answer" in rig.session_record().unguarded
        assert not rig.agent.keeper.may_start()
        await rig.close()

    scenario()


@virtual_time
async def test_while_another_guard_takes_long_to_come_none_is_declared() -> None:
    """As on an emulated host: until it looks nobody holds the deadline, so the session's expiry would prove nothing."""
    rig = Rig()
    await rig.ready()
    rig.guard.slow_s, rig.guard.dead = 30.0, True
    await asyncio.sleep(4)
    assert (rig.guard.dead, rig.session_record().guard) == (True, NONE)
    assert not rig.agent.keeper.may_start()
    await until(lambda: rig.session_record().guard == SOFT)
    assert not rig.guard.dead
    await rig.close()
