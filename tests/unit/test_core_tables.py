"""Every state x event pair of the scheduler's tables, the illegal ones too."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from scheduler.core.state import tables

TABLES: dict[str, tuple[dict[Any, Any], Any, Any]] = {
    "host": (tables.HOST, tables.HostState, tables.HostEvent),
    "allocation": (tables.ALLOCATION, tables.AllocationState, tables.AllocationEvent),
    "job": (tables.JOB, tables.JobState, tables.JobEvent),
}

# Written out a second time, on purpose: a change of a table must be made twice, by somebody who means it.
LEGAL = {
    "host": """
        JOINING + inventory -> READY
        JOINING + session lost -> SUSPECT
        READY + session lost -> SUSPECT
        SUSPECT + fence -> FENCING
        FENCING + evidence -> FENCED
        FENCED + session began -> JOINING
    """,
    "allocation": """
        BOUND + preparing -> PREPARING
        BOUND + running -> RUNNING
        BOUND + stopping -> STOPPING
        BOUND + ended -> ENDED
        BOUND + host fenced -> LOST
        PREPARING + running -> RUNNING
        PREPARING + stopping -> STOPPING
        PREPARING + ended -> ENDED
        PREPARING + host fenced -> LOST
        RUNNING + stopping -> STOPPING
        RUNNING + ended -> ENDED
        RUNNING + host fenced -> LOST
        STOPPING + ended -> ENDED
        STOPPING + host fenced -> LOST
    """,
    "job": """
        PENDING + placed -> STARTING
        PENDING + cancelled -> CANCELLED
        PENDING + can never start -> CANCELLED
        PENDING + out of time -> FAILED
        STARTING + out of time -> FAILED
        RUNNING + out of time -> FAILED
        STARTING + placement not committed -> PENDING
        STARTING + started -> RUNNING
        STARTING + exited with 0 -> SUCCEEDED
        STARTING + exited with another code -> FAILED
        STARTING + attempt failed, another will follow -> PENDING
        STARTING + stopped to start elsewhere -> PENDING
        STARTING + no attempts left -> FAILED
        STARTING + cancelled -> CANCELLED
        RUNNING + exited with 0 -> SUCCEEDED
        RUNNING + exited with another code -> FAILED
        RUNNING + attempt failed, another will follow -> PENDING
        RUNNING + stopped to start elsewhere -> PENDING
        RUNNING + no attempts left -> FAILED
        RUNNING + cancelled -> CANCELLED
    """,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_pair(name: str) -> None:
    table, states, happenings = TABLES[name]
    legal = {line.strip() for line in LEGAL[name].splitlines() if line.strip()}
    seen = set()
    for state, event in product(states, happenings):
        if (state, event) in table:
            after = tables.next_state(table, state, event, "x")
            seen.add(f"{state.value} + {event.value} -> {after.value}")
        else:
            with pytest.raises(tables.IllegalTransitionError, match=rf"x: .* cannot happen in {state.value}"):
                tables.next_state(table, state, event, "x")
    assert seen == legal


@pytest.mark.parametrize("state", list(tables.FINAL_JOB_STATES))
def test_final_states_are_final(state: tables.JobState) -> None:
    assert not [pair for pair in tables.JOB if pair[0] is state]
