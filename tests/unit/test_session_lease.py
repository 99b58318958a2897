"""An agent that comes back with other times: the session moves to another lease, and no guard outlives that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from agent.timing import PROFILES, Timing, why_keep_lease
from gpupool.store import keys
from gpupool.store.port import Committed, Delete, KeyValue, Op, Put, Unavailable
from gpupool.store.port import Guard as StoreGuard
from gpupool.v1 import records_pb2
from tests.fakes.agent_rig import HOST, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

DEFAULT, PATIENT = replace(PROFILES["default"], watchdog_s=0), replace(PROFILES["patient"], watchdog_s=0)
FAST = replace(PROFILES["fast"], watchdog_s=0)
NONE, SOFT = records_pb2.GUARD_KIND_UNSPECIFIED, records_pb2.GUARD_KIND_SOFT
KEY = keys.session(HOST)


def record(rig: Rig) -> KeyValue:
    kv = rig.backend.get(KEY)
    assert kv
    return kv


def ttl_s(rig: Rig) -> int:
    """Of the lease that the session hangs on."""
    return rig.backend._leases[record(rig).lease].ttl_s


async def watched(rig: Rig, for_s: float) -> None:
    """At no moment does a session that declares a guard end before the guard has killed."""
    for _ in range(int(for_s * 20)):
        await asyncio.sleep(0.05)
        kv = rig.backend.get(KEY)
        if kv is not None and records_pb2.Session.FromString(kv.value).guard != NONE:
            left_s = rig.backend._leases[kv.lease].expires_at - rig.backend.now()
            assert rig.guard.deadline - rig.clock.boot() <= left_s - 1.4


async def with_a_vm(timing: Timing) -> tuple[Rig, int]:
    rig = Rig(timing=timing)
    session = await rig.ready()
    rig.vms.default = Guest(run_s=None)
    rig.allocate()
    await rig.running()
    return rig, session


async def come_back(rig: Rig, timing: Timing) -> None:
    """The agent is restarted with other times; the rig's own helper would wait for the session, and see nothing."""
    if rig._task:
        await rig.kill_agent()
    rig.timing = timing
    booting = asyncio.create_task(rig.boot())
    while not booting.done():
        await watched(rig, 0.1)
    await booting


@pytest.mark.parametrize(
    ("before", "after"), [(DEFAULT, PATIENT), (FAST, DEFAULT), (PATIENT, DEFAULT), (PATIENT, FAST)]
)
def test_other_times_end_no_session_and_kill_nothing(before: Timing, after: Timing) -> None:
    @virtual_time
    async def scenario() -> None:
        rig, session = await with_a_vm(before)
        old = record(rig).lease
        await come_back(rig, after)
        await watched(rig, 100)
        assert (rig.session, rig.guard.kills, rig.vms.vms["j1.1"].alive) == (session, 0, True)
        assert (ttl_s(rig), rig.session_record().ttl_s) == (after.ttl_s, after.ttl_s)
        assert rig.session_record().guard == SOFT
        assert old not in rig.backend._leases
        rig.allocate("j2.1", units=("0000:02:00.0",))
        await rig.running("j2.1")
        await rig.close()

    scenario()


@pytest.mark.parametrize("cut_after_s", [0.0, 0.5, 3.0, 20.0])
def test_shorter_lease_declares_no_guard_until_the_guards_deadline_is_its_own(cut_after_s: float) -> None:
    """The guard's deadline never moves back: for most of a minute it is far beyond the new lease's end."""

    @virtual_time
    async def scenario() -> None:
        rig, _ = await with_a_vm(PATIENT)
        await come_back(rig, DEFAULT)
        if cut_after_s < 3:
            assert "no renewal has caught up" in rig.session_record().unguarded
        await watched(rig, cut_after_s)
        rig.store.away = True
        await watched(rig, 90)
        assert record_is_gone(rig)
        assert rig.guard.kills == 1
        await rig.kill_agent()

    scenario()


def record_is_gone(rig: Rig) -> bool:
    return rig.backend.get(KEY) is None


class Moves:
    """Loses the first writes that move the session to another lease; if `done`, only the answers to them."""

    def __init__(self, rig: Rig, lose: int, *, done: bool = False) -> None:
        self._commit = rig.backend.commit
        self._rig, self._lose, self._done = rig, lose, done
        self.kept: list[tuple[Sequence[StoreGuard], Sequence[Op]]] = []
        rig.backend.commit = self._do  # type: ignore[method-assign]

    def _do(self, guards: Sequence[StoreGuard], ops: Sequence[Op]) -> Committed:
        kv = self._rig.backend.get(KEY)
        moves = kv is not None and any(isinstance(op, Put) and op.key == KEY and op.lease != kv.lease for op in ops)
        if not moves or not self._lose:
            return self._commit(guards, ops)
        self._lose -= 1
        self.kept.append((guards, ops))
        if self._done:
            self._commit(guards, ops)
        raise Unavailable("no answer")

    def arrive(self) -> list[bool]:
        """What was lost arrives after all."""
        return [self._commit(*one).succeeded for one in self.kept]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(("before", "after"), [(DEFAULT, PATIENT), (PATIENT, DEFAULT)])
def test_move_whose_fate_is_unknown(done: bool, before: Timing, after: Timing) -> None:
    @virtual_time
    async def scenario() -> None:
        rig, session = await with_a_vm(before)
        Moves(rig, 2, done=done)
        await come_back(rig, after)
        await watched(rig, 100)
        assert (rig.session, rig.guard.kills, rig.vms.vms["j1.1"].alive) == (session, 0, True)
        assert ttl_s(rig) == after.ttl_s
        assert list(rig.backend._leases) == [record(rig).lease]
        await rig.close()

    scenario()


@pytest.mark.parametrize("done", [False, True])
def test_agent_that_dies_during_the_move(done: bool) -> None:
    """Both leases are on its record, and the next agent asks the key which of them it hangs on."""

    @virtual_time
    async def scenario() -> None:
        rig, session = await with_a_vm(DEFAULT)
        await rig.kill_agent()
        rig.timing = PATIENT
        moves = Moves(rig, 1, done=done)
        booting = asyncio.create_task(rig.boot())
        await until(lambda: moves.kept)
        await rig.kill_agent()
        booting.cancel()
        await asyncio.gather(booting, return_exceptions=True)
        await come_back(rig, DEFAULT)
        assert not any(moves.arrive())
        await watched(rig, 100)
        assert (rig.session, rig.guard.kills, rig.vms.vms["j1.1"].alive) == (session, 0, True)
        assert ttl_s(rig) == DEFAULT.ttl_s
        await rig.close()

    scenario()


@virtual_time
async def test_session_that_is_gone_takes_its_spare_leases_along() -> None:
    rig, session = await with_a_vm(DEFAULT)
    await rig.kill_agent()
    rig.timing = PATIENT
    moves = Moves(rig, 100)
    booting = asyncio.create_task(rig.boot())
    await until(lambda: moves.kept)
    rig.backend.commit([], [Delete(KEY)])
    await booting
    assert rig.session > session
    assert list(rig.backend._leases) == [record(rig).lease]
    await rig.close()


@virtual_time
async def test_watchdog_that_no_shorter_lease_could_pet_keeps_the_long_one(caplog: pytest.LogCaptureFixture) -> None:
    """Or the machine would be reset: the guard that runs keeps its watchdog's timeout."""
    rig = Rig(timing=PROFILES["patient"])
    session = await rig.ready()
    rig.guard.armed_s = 30.0
    await come_back(rig, PROFILES["default"])
    await watched(rig, 70)
    assert (rig.session, ttl_s(rig), rig.session_record().ttl_s) == (session, 60, 60)
    assert rig.guard.limit - rig.clock.boot() > 30
    assert any("the lease of host h1 is of 60 s; it stays" in text for text in caplog.messages)
    await rig.close()


def test_which_leases_are_kept() -> None:
    default, patient = PROFILES["default"], PROFILES["patient"]
    assert not why_keep_lease(patient, 8, 4.0)
    assert not why_keep_lease(DEFAULT, 60, 0.0)
    assert not why_keep_lease(default, 60, 4.0)
    assert "of 30 s" in why_keep_lease(default, 60, 30.0)
    assert "may be armed" in why_keep_lease(default, 60, 0.0)  # softdog is not told of
