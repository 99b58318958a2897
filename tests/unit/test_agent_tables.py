"""Every state x event pair of the agent's tables, the illegal ones too."""

from __future__ import annotations

import logging
from itertools import product

import pytest

from agent.work.tables import UNITS, VMS, IllegalTransition, UnitEvent, UnitIs, VmHappened, VmIs, change

# Written out a second time, so that a change of a table is a change here: rows are states, "-" is illegal.
UNIT_ROWS = {
    #              TAKEN   RELEASED  RESET        PROVEN  FAILED         RETRIED  DOUBTED
    "FREE":        ("HELD", "-",     "-",         "-",    "-",           "-",     "DIRTY"),
    "HELD":        ("-",    "DIRTY", "-",         "-",    "-",           "-",     "DIRTY"),
    "DIRTY":       ("-",    "-",     "RESETTING", "-",    "-",           "-",     "DIRTY"),
    "RESETTING":   ("-",    "-",     "-",         "FREE", "QUARANTINED", "-",     "DIRTY"),
    "QUARANTINED": ("-",    "-",     "-",         "-",    "-",           "DIRTY", "-"),
}  # fmt: skip
VM_ROWS = {
    #            GUEST_STARTED  STOP_ASKED  GONE
    "PREPARING": ("RUNNING",    "STOPPING", "ENDED"),
    "RUNNING":   ("-",          "STOPPING", "ENDED"),
    "STOPPING":  ("STOPPING",   "-",        "ENDED"),
    "ENDED":     ("-",          "-",        "-"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "event"), [*product(UnitIs, UnitEvent)])
def test_unit_pair(state: UnitIs, event: UnitEvent) -> None:
    expected = UNIT_ROWS[state][list(UnitEvent).index(event)]
    if expected == "-":
        with pytest.raises(IllegalTransition, match=rf"unit u: {event} in state {state} \(why\)"):
            change(UNITS, "unit u", state, event, "why")
    else:
        assert change(UNITS, "unit u", state, event, "why") == expected


@pytest.mark.parametrize(("state", "event"), [*product(VmIs, VmHappened)])
def test_vm_pair(state: VmIs, event: VmHappened) -> None:
    expected = VM_ROWS[state][list(VmHappened).index(event)]
    if expected == "-":
        with pytest.raises(IllegalTransition):
            change(VMS, "vm j.1", state, event, "why")
    else:
        assert change(VMS, "vm j.1", state, event, "why") == expected


def test_a_change_is_logged_and_no_change_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "agent.work.tables"):
        change(UNITS, "unit 0000:21:00.0", UnitIs.FREE, UnitEvent.TAKEN, "j1.1")
        change(UNITS, "unit 0000:21:00.0", UnitIs.DIRTY, UnitEvent.DOUBTED, "new agent")
    assert caplog.messages == ["unit 0000:21:00.0: FREE -> HELD (j1.1)"]
