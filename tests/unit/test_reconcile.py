"""The pure plan: what is done about each difference between what should run and what does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.work.reconcile import (
    Adopt,
    Destroy,
    End,
    Forget,
    Reclaim,
    Retry,
    Start,
    Stop,
    UnitRecord,
    View,
    VmRecord,
    Vouch,
    audit,
    next_deadline,
    plan,
)
from agent.work.tables import UnitIs, VmIs
from gpupool.v1 import job_pb2, records_pb2
from gpupool.v1.records_pb2 import Allocation, UnitIntent

SESSION, NOW = 7, 1000.0
RUN, STOP = records_pb2.DESIRED_RUN, records_pb2.DESIRED_STOP


def want(name: str = "j.1", desired: records_pb2.Desired.ValueType = RUN, session: int = SESSION) -> Allocation:
    return Allocation(id=name, session=session, units=["u0"], desired=desired, stop_reason="cancelled")


def vm(state: VmIs, name: str = "j.1", **changes: Any) -> VmRecord:
    return replace(VmRecord(name, SESSION, ("u0",), state, deadline=NOW + 10, vm_started_s=1.0), **changes)


def view(*wanted: Allocation, vms: tuple[VmRecord, ...] = (), unit: UnitIs = UnitIs.FREE, **changes: Any) -> View:
    base = View(
        session=SESSION,
        desired={one.id: one for one in wanted},
        vms={record.allocation: record for record in vms},
        units={"u0": UnitRecord("u0", unit, since_s=50.0, allocation="j.1")},
        boot_s=NOW,
        may_start=True,
    )
    return replace(base, **changes)


def test_start_only_when_everything_allows_it() -> None:
    assert plan(view(want())) == [Start("j.1")]
    assert plan(view(want(), may_start=False)) == []
    assert plan(view(want(session=6), unit=UnitIs.HELD)) == []
    assert plan(view(want(), busy={"j.1"})) == []
    assert plan(view(want(), busy={"u0"})) == []
    assert plan(view(want(), unit=UnitIs.HELD)) == []
    assert plan(view(want(), unit=UnitIs.RESETTING)) == []
    assert plan(view(want(), unit=UnitIs.DIRTY)) == [Reclaim("u0")]


def test_what_cannot_start_ends() -> None:
    failed = job_pb2.OUTCOME_START_FAILED
    assert plan(view(want(), units={})) == [End("j.1", failed, "unit u0 is not on this host")]
    bad = UnitRecord("u0", UnitIs.QUARANTINED, 50.0, reason="dead")
    assert plan(view(want(), units={"u0": bad})) == [End("j.1", failed, "unit u0 is quarantined: dead")]
    assert plan(view(want(desired=STOP))) == [End("j.1", job_pb2.OUTCOME_STOPPED, "cancelled")]


def test_a_session_id_that_came_again_in_a_restored_store_starts_nothing() -> None:
    named, unnamed, other = want(), want(), want()
    named.session_nonce, other.session_nonce = "n", "x"
    assert plan(view(named, nonce="n")) == [Start("j.1")]
    assert Start("j.1") not in plan(view(other, nonce="n"))
    assert audit(view(other, nonce="n"), ["j.1"], agent_is_new=True) == [Destroy("j.1", "it is no VM of this session")]
    assert plan(view(other, vms=(vm(VmIs.RUNNING),), unit=UnitIs.HELD, nonce="n")) == [
        Destroy("j.1", "its allocation is gone")
    ]
    assert plan(view(want())) == [Start("j.1")], "a session that an agent without nonces began"
    refused = [action for action in plan(view(unnamed, nonce="n")) if isinstance(action, End)]
    assert [(end.outcome, "upgrade schedulers first" in end.message) for end in refused] == [
        (job_pb2.OUTCOME_START_FAILED, True)
    ]


HELD: dict[str, Any] = {"unit": UnitIs.HELD}


@pytest.mark.parametrize(
    ("state", "wanted", "expected"),
    [
        (VmIs.PREPARING, RUN, []),
        (VmIs.PREPARING, STOP, [Stop("j.1", 15, "cancelled")]),
        (VmIs.PREPARING, None, [Destroy("j.1", "its allocation is gone")]),
        (VmIs.RUNNING, RUN, []),
        (VmIs.RUNNING, STOP, [Stop("j.1", 15, "cancelled")]),
        (VmIs.RUNNING, None, [Destroy("j.1", "its allocation is gone")]),
        (VmIs.STOPPING, RUN, []),
        (VmIs.STOPPING, STOP, []),
        (VmIs.STOPPING, None, [Destroy("j.1", "its allocation is gone")]),
        (VmIs.ENDED, RUN, []),
        (VmIs.ENDED, STOP, []),
        (VmIs.ENDED, None, [Forget("j.1")]),
    ],
)
def test_every_state_and_wish(state: VmIs, wanted: records_pb2.Desired.ValueType | None, expected: list[Any]) -> None:
    wishes = () if wanted is None else (want(desired=wanted),)
    assert plan(view(*wishes, vms=(vm(state),), **HELD)) == expected


def test_deadlines() -> None:
    late: dict[str, Any] = {"deadline": NOW}
    assert plan(view(want(), vms=(vm(VmIs.STOPPING, **late),), **HELD)) == [Destroy("j.1", "its grace is over")]
    (action,) = plan(view(want(), vms=(vm(VmIs.PREPARING, **late),), **HELD))
    assert isinstance(action, Destroy)
    assert plan(view(want(), vms=(vm(VmIs.RUNNING, **late),), **HELD)) == []
    assert next_deadline(view(vms=(vm(VmIs.RUNNING), vm(VmIs.ENDED, "k.1")))) is None
    assert next_deadline(view(vms=(vm(VmIs.STOPPING), vm(VmIs.PREPARING, "k.1", deadline=5.0)))) == 5.0
    assert next_deadline(view(vms=(vm(VmIs.STOPPING),), busy={"j.1"})) is None


def test_a_record_of_another_sessions_allocation_is_not_wanted() -> None:
    """An adopted allocation must be of this session, else its VM dies."""
    assert plan(view(want(session=6), vms=(vm(VmIs.RUNNING),), **HELD)) == [Destroy("j.1", "its allocation is gone")]
    assert plan(view(want(session=6), vms=(vm(VmIs.ENDED),))) == []


def test_units() -> None:
    bad: dict[str, Any] = {"unit": UnitIs.QUARANTINED}
    assert plan(view(**bad)) == []
    assert plan(view(**bad, intents={"u0": UnitIntent(retry_requested_s=50.0)})) == []
    assert plan(view(**bad, intents={"u0": UnitIntent(retry_requested_s=50.1)})) == [Retry("u0")]
    assert plan(view(unit=UnitIs.DIRTY, busy={"u0"})) == []
    assert plan(view(want("k.1", session=6))) == [Vouch("u0", "k.1")]
    assert plan(view(want("k.1"), vms=(vm(VmIs.ENDED, "k.1"),))) == [Vouch("u0", "k.1")]


def test_audit() -> None:
    stray = Destroy("j.1", "it is no VM of this session")
    assert audit(view(want()), ["j.1"], agent_is_new=True) == [Adopt("j.1")]
    assert audit(view(), ["j.1"], agent_is_new=True) == [stray]
    assert audit(view(want(session=6)), ["j.1"], agent_is_new=True) == [stray]
    assert audit(view(want(), vms=(vm(VmIs.RUNNING),)), ["j.1"], agent_is_new=True) == []
    assert audit(view(want(), vms=(vm(VmIs.RUNNING, session=6),)), ["j.1"], agent_is_new=True) == [stray]
    assert audit(view(want(), vms=(vm(VmIs.ENDED),)), ["j.1"], agent_is_new=False) == [stray]
    half = vm(VmIs.PREPARING, vm_started_s=0.0)
    (action,) = audit(view(want(), vms=(half,)), ["j.1"], agent_is_new=True)
    assert isinstance(action, Destroy)
    assert audit(view(want(), vms=(half,)), ["j.1"], agent_is_new=False) == []
    lost = [Destroy("j.1", "no process of it was found")]
    assert audit(view(want(), vms=(vm(VmIs.RUNNING),)), [], agent_is_new=False) == lost
    assert audit(view(want(), vms=(vm(VmIs.RUNNING),), busy={"j.1"}), [], agent_is_new=False) == []


@given(
    desired=st.dictionaries(st.sampled_from("abc"), st.tuples(st.sampled_from([RUN, STOP]), st.sampled_from([6, 7]))),
    states=st.dictionaries(st.sampled_from("abc"), st.sampled_from(VmIs)),
    unit=st.sampled_from(UnitIs),
    may_start=st.booleans(),
)
def test_starts_are_always_allowed_ones(
    desired: dict[str, Any], states: dict[str, VmIs], unit: UnitIs, may_start: bool
) -> None:
    wanted = [want(name, wish, session) for name, (wish, session) in desired.items()]
    seen = view(*wanted, vms=tuple(vm(state, name) for name, state in states.items()), unit=unit, may_start=may_start)
    actions = plan(seen)
    assert actions == plan(seen)
    for action in actions:
        if isinstance(action, Start):
            assert may_start
            assert unit == UnitIs.FREE
            assert desired[action.allocation] == (RUN, SESSION)
            assert action.allocation not in states
