"""What a session said last of its guard: with its record, beside its lease, and so for a leader who was away."""

from __future__ import annotations

import asyncio

import pytest

from agent.declare import KEPT
from gpupool.store import keys
from gpupool.store.port import KeyValue
from gpupool.v1 import records_pb2
from scheduler.codec.decode import last_word
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import GuardKind, LastWord
from scheduler.core.state.losses import Evidence
from scheduler.load import load
from tests.fakes.agent_rig import HOST, Rig
from tests.fakes.virtual_time import until, virtual_time

SOFT, HARDWARE, NONE = (
    records_pb2.GUARD_KIND_SOFT,
    records_pb2.GUARD_KIND_HARDWARE,
    records_pb2.GUARD_KIND_UNSPECIFIED,
)


def word(rig: Rig) -> LastWord:
    kv = rig.backend.get(keys.guard(HOST))
    assert kv is not None
    assert kv.lease == 0
    return last_word(kv)


@virtual_time
async def test_it_is_written_with_the_record_and_stays_when_that_goes() -> None:
    rig = Rig()
    session = await rig.ready()
    assert word(rig) == LastWord(session, GuardKind.SOFT, "m1")
    rig.guard.armed_s = 4.0
    await until(lambda: rig.session_record().guard == HARDWARE)
    assert word(rig) == LastWord(session, GuardKind.HARDWARE, "m1")
    rig.guard.armed_s = 0.0
    await until(lambda: rig.session_record().guard == SOFT)
    assert word(rig) == LastWord(session, GuardKind.SOFT, "m1")
    record, said = rig.backend.get(keys.session(HOST)), rig.backend.get(keys.guard(HOST))
    assert record is not None
    assert said is not None
    assert record.mod_revision == said.mod_revision
    await rig.kill_agent()
    await asyncio.sleep(60)
    assert rig.backend.get(keys.session(HOST)) is None
    assert word(rig) == LastWord(session, GuardKind.SOFT, "m1")


@virtual_time
async def test_the_next_session_says_its_own() -> None:
    rig = Rig()
    first = await rig.ready()
    await rig.kill_agent()
    await asyncio.sleep(60)
    rig.unguarded = KEPT
    second = await rig.ready()
    assert second > first
    assert word(rig) == LastWord(second, GuardKind.NONE, "m1")
    await rig.close()


@virtual_time
async def test_a_resumed_session_says_it_too() -> None:
    """Settings that change while nobody leads: the restarted agent declares no guard."""
    rig = Rig()
    session = await rig.ready()
    await rig.kill_agent()
    rig.unguarded = KEPT
    assert await rig.ready() == session
    assert word(rig) == LastWord(session, GuardKind.NONE, "m1")
    await rig.close()


def judged(recorded: records_pb2.GuardKind.ValueType, said: KeyValue | None) -> Evidence | None:
    """What a new leader finds who reads this of a host whose session 7 is gone, with a VM on it."""
    host = records_pb2.HostRecord(
        state=records_pb2.HOST_STATE_READY, session=7, boot_id="b", guard=recorded, since_s=1.0
    )
    allocation = records_pb2.Allocation(id="j1.1", job="j1", attempt=1, host=HOST, session=7)
    items = [
        KeyValue(keys.host(HOST), host.SerializeToString(), 3, 3),
        KeyValue(keys.allocation(HOST, "j1.1"), allocation.SerializeToString(), 3, 3),
    ]
    cluster = Cluster()
    load(cluster, [*items, said] if said is not None else items, 100.0)
    fence = cluster.hosts[HOST].last_fence
    return fence.evidence if fence is not None else None


def said(guard: records_pb2.GuardKind.ValueType, session: int = 7, why: str = "") -> KeyValue:
    record = records_pb2.GuardRecord(session=session, guard=guard, unguarded=why)
    return KeyValue(keys.guard(HOST), record.SerializeToString(), 9, 9)


@pytest.mark.parametrize(
    ("recorded", "word", "expected"),
    [
        (HARDWARE, said(HARDWARE), Evidence.LEASE_EXPIRED_WATCHDOG),
        (HARDWARE, said(SOFT), None),
        (HARDWARE, said(NONE), None),
        (HARDWARE, said(HARDWARE, why="disarmed"), None),
        (SOFT, said(HARDWARE), None),  # no leader ever committed that; a real host's soft guard is not enough
        (HARDWARE, None, Evidence.LEASE_EXPIRED_WATCHDOG),  # an agent that leaves no word, as ever
        (HARDWARE, said(NONE, session=6), Evidence.LEASE_EXPIRED_WATCHDOG),  # such an agent, before it deletes it
        (HARDWARE, said(HARDWARE, session=8), None),  # what was said last of 7 is lost
        (HARDWARE, KeyValue(keys.guard(HOST), b"\xff", 9, 9), None),
        (HARDWARE, KeyValue(keys.guard(HOST), b"", 7, 7), None),  # written as 7 began: no guard
    ],
)
def test_a_new_leader_believes_no_more_than_the_last_word(
    recorded: records_pb2.GuardKind.ValueType, word: KeyValue | None, expected: Evidence | None
) -> None:
    assert judged(recorded, word) is expected


def test_another_session_that_stands_there_does_not_vouch_for_the_lost_one() -> None:
    """Its key is there as the leader begins, and goes later: by then nobody knows what session 7 said last."""
    host = records_pb2.HostRecord(state=records_pb2.HOST_STATE_READY, session=7, boot_id="b", guard=HARDWARE)
    session = records_pb2.Session(boot_id="b", guard=HARDWARE)
    cluster = Cluster()
    items = [
        KeyValue(keys.host(HOST), host.SerializeToString(), 3, 3),
        KeyValue(keys.session(HOST), session.SerializeToString(), 9, 9),
        said(HARDWARE, session=9),
    ]
    allocation = records_pb2.Allocation(id="j1.1", job="j1", attempt=1, host=HOST, session=7)
    items.append(KeyValue(keys.allocation(HOST, "j1.1"), allocation.SerializeToString(), 3, 3))
    load(cluster, items, 100.0)
    assert cluster.hosts[HOST].guard is GuardKind.NONE
