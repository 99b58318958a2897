"""The leader switches lost hosts off: once each, never a living one, never holding its loop, over deaths of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from gpupool.store import keys
from gpupool.store.port import Change, Delete, KeyValue, Put, Store, Unavailable
from gpupool.v1 import job_pb2, records_pb2
from scheduler.core.failover.power import PowerOff
from scheduler.core.state.policy import Device, Policy
from scheduler.election import Term, TermLostError
from scheduler.fencing.acting import AT_ONCE, Acting
from scheduler.fencing.port import FenceDevice
from scheduler.leader import Leader
from tests.fakes.pool import WALL, HookedStore, Pool
from tests.fakes.power import FakeDevice, Switch
from tests.fakes.virtual_time import until, virtual_time


def now() -> float:
    return WALL + asyncio.get_running_loop().time()


async def new_term(pool: Pool) -> Term:
    await pool.store.commit([], [Delete(keys.LEADER)])
    return Term(await pool.put(Put(keys.LEADER, b"")), 0)


@asynccontextmanager
async def leading(pool: Pool, devices: Mapping[str, FenceDevice], store: Store | None = None) -> AsyncIterator[Leader]:
    policy = Policy(powered=dict.fromkeys(devices, Device()))
    leader = Leader(store or pool.store, await new_term(pool), wall=now, policy=policy, power=devices)
    task = asyncio.create_task(leader.run())
    try:
        yield leader
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Unavailable, TermLostError):
            await task


async def lost_host(pool: Pool) -> None:
    """j1 runs on h1, whose session has no guard and ends."""
    await pool.join("h1")
    stored = pool.backend.get(keys.session("h1"))
    assert stored is not None
    session = records_pb2.Session.FromString(stored.value)
    session.guard, session.simulated = records_pb2.GUARD_KIND_UNSPECIFIED, False
    await pool.put(Put(keys.session("h1"), session.SerializeToString()))
    await pool.submit("j1")
    await until(pool.allocations)
    await pool.report(pool.allocations()[0], records_pb2.ALLOCATION_STATE_RUNNING)
    await until(lambda: pool.status("j1").state == job_pb2.JOB_STATE_RUNNING)
    await pool.join("h2")
    await pool.leave("h1")


def restarted(pool: Pool) -> bool:
    placed = [(a.id, a.host) for a in pool.allocations()] == [("j1.2", "h2")]
    return placed and pool.host("h1").HasField("last_fence")  # written after the jobs


def evidence(pool: Pool) -> int:
    return pool.status("j1").attempts[0].evidence


@virtual_time
async def test_a_lost_host_is_switched_off_and_its_job_restarts() -> None:
    pool, power = Pool(), Switch()
    async with leading(pool, {"h1": power.device()}):
        await lost_host(pool)
        await until(lambda: restarted(pool))
    assert (power.on, power.times) == (False, 1)
    assert evidence(pool) == job_pb2.EVIDENCE_POWER_OFF
    assert "fake saw its power off, 2 s after the loss" in pool.host("h1").last_fence.detail


@virtual_time
async def test_off_already_is_success() -> None:
    pool, power = Pool(), Switch(on=False)
    async with leading(pool, {"h1": power.device()}):
        await lost_host(pool)
        await until(lambda: restarted(pool))
    assert power.times == 0
    assert "(it was off already)" in pool.host("h1").last_fence.detail


@pytest.mark.parametrize("fault", ["unreachable", "deaf", "denies"])
@virtual_time
async def test_what_is_not_seen_off_proves_nothing_and_is_asked_ever_more_rarely(fault: str) -> None:
    pool, power = Pool(), Switch()
    device = power.device(**{fault: True})
    async with leading(pool, {"h1": device}):
        await lost_host(pool)
        await asyncio.sleep(3600)
        assert [a.id for a in pool.allocations()] == ["j1.1"]
        kept = pool.host("h1").power
        assert kept.tries == device.calls.count("off")
        assert 10 <= kept.tries <= 20
        assert kept.error
        setattr(device, fault, False)
        await until(lambda: restarted(pool), within_s=400)
    assert evidence(pool) == job_pb2.EVIDENCE_POWER_OFF


@virtual_time
async def test_a_device_that_hangs_does_not_hold_up_the_loop() -> None:
    pool, power = Pool(), Switch()
    async with leading(pool, {"h1": power.device(hangs=True)}):
        await lost_host(pool)
        await pool.submit("j2")
        await until(lambda: len(pool.allocations()) == 2, within_s=5)
        await until(lambda: pool.host("h1").power.tries == 1, within_s=400)
        assert "no answer within 300 s" in pool.host("h1").power.error


@virtual_time
async def test_another_leader_switches_off_again_and_keeps_the_back_off() -> None:
    pool, power = Pool(), Switch()
    device = power.device(loses_the_answer=True)
    async with leading(pool, {"h1": device}):
        await lost_host(pool)
        await until(lambda: pool.host("h1").power.tries == 1)
    device.loses_the_answer = False
    begun = now()
    async with leading(pool, {"h1": device}):
        await until(lambda: restarted(pool))
    assert now() - begun > 4
    assert power.times == 1
    assert "off already" in pool.host("h1").last_fence.detail


@virtual_time
async def test_a_leader_that_dies_in_the_middle_leaves_it_to_the_next() -> None:
    pool, power = Pool(), Switch()
    device = power.device(takes_s=30.0)
    async with leading(pool, {"h1": device}):
        await lost_host(pool)
        await until(lambda: "off" in device.calls)
    async with leading(pool, {"h1": device}):
        await until(lambda: restarted(pool), within_s=120)
    assert device.calls == ["off", "off"]


@virtual_time
async def test_a_host_that_comes_back_is_not_switched_off() -> None:
    """The news of its new session is late: the store is asked just before the act."""
    pool, power = Pool(), Switch()
    store = LateNews(pool)
    async with leading(pool, {"h1": power.device()}, store):
        await lost_host(pool)
        await until(lambda: restarted(pool), within_s=200)
    assert power.times == 0
    assert evidence(pool) == job_pb2.EVIDENCE_OTHER_BOOT


class LateNews(HookedStore):
    """As the leader asks for h1's session, h1 has just joined anew, and the news of it takes a while."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.backend)
        self._pool, self._late = pool, False

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        async with aclosing(super().watch(prefix, after_revision=after_revision)) as batches:
            async for batch in batches:
                await asyncio.sleep(10 if self._late else 0)
                yield batch

    async def get(self, key: str) -> KeyValue | None:
        if key == keys.session("h1") and await super().get(key) is None:
            self._late = True
            await self._pool.join("h1", boot="b2")
            await self._pool.store.commit([], [Delete(keys.inventory("h1"))])  # so that j1 goes to h2
        return await super().get(key)


@virtual_time
async def test_a_deposed_leader_switches_nothing_off() -> None:
    pool, power = Pool(), Switch()
    store = Deposed(pool)
    async with leading(pool, {"h1": power.device()}, store):
        store.armed = True
        await lost_host(pool)
        await asyncio.sleep(60)
    assert not store.armed
    assert power.times == 0


class Deposed(HookedStore):
    """Another replica leads from the moment at which the leader asks whether it does."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.backend)
        self._pool, self.armed = pool, False

    async def get(self, key: str) -> KeyValue | None:
        if key == keys.LEADER and self.armed:
            self.armed = False
            await new_term(self._pool)
        return await super().get(key)


@virtual_time
async def test_a_host_that_comes_back_during_the_try_is_let_go() -> None:
    pool, power = Pool(), Switch()
    device = power.device(takes_s=30.0)
    async with leading(pool, {"h1": device}):
        await lost_host(pool)
        await until(lambda: "off" in device.calls)
        await pool.join("h1", boot="b2")
        await asyncio.sleep(120)
    assert power.times == 0
    assert evidence(pool) == job_pb2.EVIDENCE_OTHER_BOOT


@virtual_time
async def test_disarmed_nothing_is_switched_off_and_what_is_under_way_is_given_up() -> None:
    pool, power = Pool(), Switch()
    device = power.device(takes_s=30.0)
    async with leading(pool, {"h1": device}):
        await lost_host(pool)
        await until(lambda: "off" in device.calls)
        disarmed = records_pb2.ClusterIntent(disarmed=True, reason="etcd work")
        await pool.put(Put(keys.CLUSTER_INTENT, disarmed.SerializeToString()))
        await asyncio.sleep(600)
        assert power.times == 0
        await pool.put(Put(keys.CLUSTER_INTENT, records_pb2.ClusterIntent().SerializeToString()))
        await until(lambda: power.times == 1, within_s=60)


@virtual_time
async def test_power_comes_on_again_where_that_is_wanted() -> None:
    pool, power = Pool(), Switch()
    device = power.device(power_on=True)
    async with leading(pool, {"h1": device}):
        await lost_host(pool)
        await until(lambda: restarted(pool) and power.on)
    assert (power.times, device.calls) == (1, ["off", "on"])


@virtual_time
async def test_only_a_few_at_once_and_one_a_host() -> None:
    busy: set[int] = set()
    most = 0

    class Counted(FakeDevice):
        async def _call(self, what: str) -> None:
            nonlocal most
            assert id(self) not in busy
            busy.add(id(self))
            most = max(most, len(busy))
            await asyncio.sleep(5)
            busy.discard(id(self))

    async def may(_effect: PowerOff) -> str:
        return ""

    switches = {f"h{n:02}": Switch() for n in range(20)}
    devices = {name: Counted(lambda s=s: s.on, s.cut) for name, s in switches.items()}  # type: ignore[misc]
    acting = Acting(devices, why_not=may, wall=now, news=asyncio.Event())
    owed = [PowerOff(name, 1) for name in sorted(devices)]
    for _ in range(10):
        acting.begin(owed)
        await asyncio.sleep(0.1)
    await asyncio.sleep(60)
    assert most == AT_ONCE
    assert sorted(result.host for result in acting.take() if result.off) == sorted(devices)


@virtual_time
async def test_a_bug_in_a_device_ends_neither_the_term_nor_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(FakeDevice):
        async def _call(self, what: str) -> None:
            raise ValueError("password=hunter2")

    pool, power = Pool(), Switch()
    async with leading(pool, {"h1": Buggy(lambda: power.on, power.cut)}):
        await lost_host(pool)
        await until(lambda: pool.host("h1").power.tries == 2)
    assert "bug in fake: ValueError" in caplog.text
    assert "hunter2" not in caplog.text
