"""The session: deadlines, resuming, replacing, and two agents with one name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.declare import Said
from agent.timing import PROFILES, Identity, Timing, TimingError, timing_of, why_not_replace
from gpupool.store import keys
from gpupool.store.memory import MemoryBackend
from gpupool.store.port import Committed, Created, Delete, Op, Put, Unavailable
from gpupool.store.port import Guard as StoreGuard
from gpupool.v1 import records_pb2
from tests.fakes.agent_rig import HOST, UNIT, Rig
from tests.fakes.virtual_time import until, virtual_time

ME = Identity(HOST, "boot-2", "10.0.0.1:50152", "test")


def test_timing_says_which_sum_does_not_come_out() -> None:
    Timing(ttl_s=11, renew_s=4, kill_margin_s=3)
    with pytest.raises(TimingError, match=r"2 \* renew_s \+ kill_margin_s <= ttl_s is needed, but 8 \+ 3 = 11 > 10"):
        Timing(ttl_s=10, renew_s=4, kill_margin_s=3)
    with pytest.raises(TimingError, match=r"start_margin_s <= ttl_s is needed, but 2 \+ 3 \+ 6 = 11 > 10"):
        Timing(ttl_s=10, renew_s=2, kill_margin_s=3, start_margin_s=6)
    with pytest.raises(TimingError, match="renew_s > 0"):
        Timing(renew_s=float("nan"))
    with pytest.raises(TimingError, match="kill_margin_s >= 1"):
        Timing(kill_margin_s=0.5)


def test_a_watchdog_must_be_petted_in_time() -> None:
    with pytest.raises(TimingError, match=r"watchdog_s \+ kill_margin_s / 4 <= ttl_s .* 2 \+ 6 \+ 0.5 = 8.5 > 8"):
        Timing(watchdog_s=6)
    with pytest.raises(TimingError, match="watchdog_s >= 3"):
        Timing(watchdog_s=1)
    assert Timing().allows_watchdog(5.5)
    assert not Timing().allows_watchdog(5.6)
    assert not Timing().allows_watchdog(0)


def test_profiles_and_what_replaces_their_times() -> None:
    assert timing_of("default", watchdog=False) == Timing()
    assert timing_of("patient", watchdog=True).watchdog_s == 30
    assert timing_of("fast", watchdog=False, ttl_s=None, renew_s=0.5) == replace(
        PROFILES["fast"], renew_s=0.5, watchdog_s=0
    )
    with pytest.raises(TimingError, match=r"2 \* renew_s \+ kill_margin_s <= ttl_s is needed, but 20 \+ 5 = 25 > 9"):
        timing_of("patient", watchdog=False, ttl_s=9)
    with pytest.raises(TimingError, match="etcd grants no shorter"):
        timing_of("fast", watchdog=False, ttl_s=1)


@pytest.mark.parametrize(
    ("boot_id", "address", "had_session", "expected"),
    [
        ("boot-1", "10.0.0.1:40000", False, ""),
        ("boot-2", "10.0.0.1:40000", False, "this very boot"),
        ("boot-1", "10.0.0.2:50152", False, "another machine"),
        ("boot-1", "10.0.0.1:50152", True, "lost it to the other"),
    ],
)
def test_who_may_be_replaced(boot_id: str, address: str, had_session: bool, expected: str) -> None:
    old = records_pb2.Session(boot_id=boot_id, address=address)
    reason = why_not_replace(old, ME, had_session=had_session)
    assert (expected in reason) if expected else not reason


def test_loopback_is_believed_of_simulated_hosts_only() -> None:
    old = records_pb2.Session(boot_id="boot-1", address="127.0.0.1:1")
    real = Identity(HOST, "boot-2", "127.0.0.1:2", "test")
    assert "--advertise" in why_not_replace(old, real, had_session=False)
    assert not why_not_replace(old, Identity(HOST, "boot-2", "127.0.0.1:2", "test", simulated=True), had_session=False)


@virtual_time
async def test_record_and_deadline() -> None:
    rig = Rig()
    sent = rig.clock.boot()
    session = await rig.boot()
    kv = rig.backend.get(keys.session(HOST))
    assert kv
    record = rig.session_record()
    assert kv.create_revision == session
    assert (record.boot_id, record.address, record.ttl_s) == ("boot-1", "10.0.0.1:50152", 15)
    assert (record.guard, record.vms_found_dead) == (records_pb2.GUARD_KIND_SOFT, True)
    assert sent + 12 <= rig.guard.deadline <= rig.clock.boot() + 12
    assert rig.agent.keeper.fresh()
    await rig.close()


@virtual_time
async def test_nonce_is_of_the_session_and_outlives_the_agent() -> None:
    rig = Rig()
    await rig.boot()
    first = rig.session_record().nonce
    assert first
    assert first == rig.agent.keeper.nonce
    await rig.kill_agent()
    await rig.boot()
    assert (rig.session_record().nonce, rig.agent.keeper.nonce) == (first, first)
    rig.backend.commit([], [Delete(keys.session(HOST))])
    rig.agent.keeper.doubt()
    await until(lambda: rig.session)
    assert rig.session_record().nonce not in ("", first)
    await rig.close()


@virtual_time
async def test_allocation_of_another_nonce_is_not_run() -> None:
    """Its session has our id, in a history that the store has lost since."""
    rig = Rig()
    await rig.ready()
    rig.allocate(nonce="another")
    await asyncio.sleep(30)
    assert not rig.vms.history
    rig.allocate("j2.1")
    await rig.running("j2.1")
    await rig.close()


@virtual_time
async def test_session_of_an_agent_without_nonces_goes_on() -> None:
    """The agent was upgraded while its VMs ran: their allocations name no nonce, and nor does the session."""
    rig = Rig()
    await rig.ready()
    rig.agent.keeper._nonce = ""
    rig.agent.keeper._save(rig.session)
    kv = rig.backend.get(keys.session(HOST))
    assert kv
    rig.backend.commit([], [Put(kv.key, rig.agent.keeper._put(Said(records_pb2.GUARD_KIND_SOFT)).value, kv.lease)])
    await rig.kill_agent()
    await rig.boot()
    rig.allocate(nonce="")
    await rig.running()
    await rig.close()


@virtual_time
async def test_deadline_counts_from_the_sending() -> None:
    """An acknowledgement that takes two seconds must not move the deadline by them."""
    rig = Rig()
    await rig.boot()
    renew = rig.store.renew

    async def slow(lease: int) -> int:
        ttl_s = await renew(lease)
        await asyncio.sleep(2.0)
        return ttl_s

    rig.store.renew = slow  # type: ignore[method-assign]
    before = rig.guard.deadline
    await until(lambda: rig.guard.deadline > before)
    assert rig.guard.deadline <= rig.clock.boot() - 2.0 + 12
    await rig.close()


@virtual_time
async def test_session_is_held_for_long() -> None:
    rig = Rig()
    session = await rig.boot()
    await asyncio.sleep(600)
    assert rig.session == session
    await rig.close()


@virtual_time
async def test_short_outage_changes_nothing() -> None:
    rig = Rig()
    session = await rig.boot()
    rig.store.away = True
    await asyncio.sleep(7)
    rig.store.away = False
    await asyncio.sleep(2)
    assert rig.session == session
    assert rig.agent.keeper.left_s() > 9
    await rig.close()


@virtual_time
async def test_reboot_faster_than_the_ttl_is_a_new_session_at_once() -> None:
    rig = Rig()
    first = await rig.boot()
    await rig.kill_agent()
    again = Rig(backend=rig.backend, boot_id="boot-2")
    before = again.clock.boot()
    second = await again.boot()
    assert second > first
    assert again.clock.boot() - before < 3
    assert again.session_record().boot_id == "boot-2"
    await again.close()


@virtual_time
async def test_resume_needs_the_same_key() -> None:
    rig = Rig()
    first = await rig.boot()
    await rig.kill_agent()
    kv = rig.backend.get(keys.session(HOST))
    assert kv
    rig.backend.commit([], [Delete(kv.key)])
    other_life = rig.backend.commit([], [Put(kv.key, kv.value, kv.lease)])  # on the same lease
    assert await rig.boot() not in (first, other_life.revision)
    await rig.close()


@virtual_time
async def test_agent_without_its_state_waits_for_its_own_session_to_expire() -> None:
    rig = Rig()
    first = await rig.boot()
    await rig.kill_agent()
    rig.records.kinds.clear()
    before = rig.clock.boot()
    assert await rig.boot() > first
    assert rig.clock.boot() - before > 10
    await rig.close()


@virtual_time
async def test_two_machines_with_one_name_do_not_fight(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    first = await rig.boot()
    other = Rig(backend=rig.backend, boot_id="boot-x", address="10.0.0.9:50152")
    waiting = asyncio.create_task(other.boot())
    await asyncio.sleep(40)
    assert rig.session == first
    assert not waiting.done()
    errors = [text for text in caplog.messages if "10.0.0.1:50152" in text and "10.0.0.9:50152" in text]
    assert len(errors) == 1
    await rig.kill_agent()
    await waiting
    await other.close()


@virtual_time
async def test_second_agent_of_this_very_boot_is_refused_and_says_who_holds_the_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two agents on one machine, say with two state directories: the first keeps the name and its VMs."""
    rig = Rig()
    first = await rig.ready()
    rig.allocate(units=(UNIT,))
    await rig.running()
    other = Rig(backend=rig.backend, address="10.0.0.1:60000")
    waiting = asyncio.create_task(other.boot())
    await asyncio.sleep(30)
    assert (rig.session, waiting.done()) == (first, False)
    assert rig.vms.vms["j1.1"].alive
    told = [text for text in caplog.messages if "two agents" in text or "another agent runs here" in text]
    assert len(told) == 1
    assert "session 2 of 10.0.0.1:50152 (boot boot-1) stands under the name 'h1'" in told[0]
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await other.kill_agent()
    await rig.close()


@pytest.mark.parametrize("jump_s", [-3e8, 3e8, 1e6])
def test_clock_that_jumps_changes_nothing(jump_s: float) -> None:
    """Dates are for people: each deadline is on the boot clock, which no one can set."""

    @virtual_time
    async def scenario() -> None:
        rig = Rig()
        session = await rig.ready()
        rig.allocate()
        await rig.running()
        rig.clock.wall_offset_s += jump_s
        await asyncio.sleep(20)
        assert (rig.session, rig.guard.kills) == (session, 0)
        assert rig.vms.vms["j1.1"].alive
        kill_at = rig.guard.deadline
        rig.store.away = True
        rig.clock.wall_offset_s -= jump_s
        await until(lambda: rig.guard.kills)
        assert rig.clock.boot() <= kill_at + rig.timing.renew_s + 0.5
        await rig.close()

    scenario()


@virtual_time
async def test_replaced_agent_does_not_take_the_name_back() -> None:
    """Two machines behind one address: the second replaces the first once, then there is peace."""
    rig = Rig()
    await rig.boot()
    other = Rig(backend=rig.backend, boot_id="boot-x")
    session = await other.boot()
    await asyncio.sleep(100)
    assert other.session == session
    await rig.close()
    await other.close()


@pytest.mark.parametrize("done", [False, True])
def test_announcement_whose_fate_is_unknown(done: bool) -> None:
    @virtual_time
    async def scenario() -> None:
        rig = Rig()
        _lose_first(rig, done=done)
        session = await rig.boot()
        kv = rig.backend.get(keys.session(HOST))
        assert kv
        assert kv.create_revision == session
        await rig.close()

    scenario()


def _lose_first(rig: Rig, *, done: bool) -> None:
    commit: Callable[..., Committed] = rig.backend.commit
    lost: list[bool] = []

    def flaky(guards: list[StoreGuard], ops: list[Op]) -> Committed:
        announcing = Created(keys.session(HOST), 0) in guards
        if announcing and not lost:
            lost.append(True)
            if done:
                commit(guards, ops)
            raise Unavailable("no answer")
        return commit(guards, ops)

    rig.backend.commit = flaky  # type: ignore[method-assign,assignment]


@virtual_time
async def test_deleted_key_ends_the_session_although_the_lease_lives() -> None:
    rig = Rig()
    first = await rig.ready()
    rig.backend.commit([], [Delete(keys.session(HOST))])
    rig.images.append("debian")  # the next report is refused, and the agent looks
    await until(lambda: rig.session not in (0, first))
    await rig.close()


@virtual_time
async def test_reboot_of_a_host_whose_lease_ran_out() -> None:
    backend = MemoryBackend()
    rig = Rig(backend=backend)
    first = await rig.boot()
    await rig.kill_agent()
    await asyncio.sleep(30)
    assert backend.get(keys.session(HOST)) is None
    assert await rig.boot() > first
    await rig.close()
