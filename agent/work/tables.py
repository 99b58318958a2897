"""What a unit and a VM may become, as literal tables, and the one function through which they change.

A pair that is not in its table is a bug in the agent: `change` raises IllegalTransition and nothing is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

_log = logging.getLogger(__name__)


class UnitIs(StrEnum):
    """The states of a device unit on this host."""

    FREE = "FREE"
    HELD = "HELD"
    DIRTY = "DIRTY"
    RESETTING = "RESETTING"
    QUARANTINED = "QUARANTINED"


class UnitEvent(StrEnum):
    """What happens to a unit."""

    TAKEN = "TAKEN"  # an allocation is about to start
    RELEASED = "RELEASED"  # the VM that held it is gone
    RESET = "RESET"  # its reclaim begins
    PROVEN = "PROVEN"
    FAILED = "FAILED"  # it could not be proven clean
    RETRIED = "RETRIED"  # an operator asks for another try
    DOUBTED = "DOUBTED"  # the agent or the session is new, and nothing vouches for the unit


class VmIs(StrEnum):
    """The states of an allocation's VM on this host."""

    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    ENDED = "ENDED"


class VmHappened(StrEnum):
    """What happens to a VM."""

    GUEST_STARTED = "GUEST_STARTED"
    STOP_ASKED = "STOP_ASKED"
    GONE = "GONE"  # no process of it exists


UNITS: Mapping[tuple[UnitIs, UnitEvent], UnitIs] = {
    (UnitIs.FREE, UnitEvent.TAKEN): UnitIs.HELD,
    (UnitIs.FREE, UnitEvent.DOUBTED): UnitIs.DIRTY,
    (UnitIs.HELD, UnitEvent.RELEASED): UnitIs.DIRTY,
    (UnitIs.HELD, UnitEvent.DOUBTED): UnitIs.DIRTY,
    (UnitIs.DIRTY, UnitEvent.RESET): UnitIs.RESETTING,
    (UnitIs.DIRTY, UnitEvent.DOUBTED): UnitIs.DIRTY,
    (UnitIs.RESETTING, UnitEvent.PROVEN): UnitIs.FREE,
    (UnitIs.RESETTING, UnitEvent.FAILED): UnitIs.QUARANTINED,
    (UnitIs.RESETTING, UnitEvent.DOUBTED): UnitIs.DIRTY,
    (UnitIs.QUARANTINED, UnitEvent.RETRIED): UnitIs.DIRTY,
}

VMS: Mapping[tuple[VmIs, VmHappened], VmIs] = {
    (VmIs.PREPARING, VmHappened.GUEST_STARTED): VmIs.RUNNING,
    (VmIs.PREPARING, VmHappened.STOP_ASKED): VmIs.STOPPING,
    (VmIs.PREPARING, VmHappened.GONE): VmIs.ENDED,
    (VmIs.RUNNING, VmHappened.STOP_ASKED): VmIs.STOPPING,
    (VmIs.RUNNING, VmHappened.GONE): VmIs.ENDED,
    # The guest may say that it started after it was asked to stop; the stop stands.
    (VmIs.STOPPING, VmHappened.GUEST_STARTED): VmIs.STOPPING,
    (VmIs.STOPPING, VmHappened.GONE): VmIs.ENDED,
}


class IllegalTransition(Exception):
    """The table has no such pair."""


State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


def change(table: Mapping[tuple[State, Event], State], what: str, state: State, event: Event, reason: str) -> State:
    """The state after `event`, logged as `unit 0000:21:00.0: FREE -> HELD (reason)`. Raises IllegalTransition."""
    try:
        after = table[state, event]
    except KeyError:
        raise IllegalTransition(f"{what}: {event} in state {state} ({reason})") from None
    if after != state:
        _log.info("%s: %s -> %s (%s)", what, state, after, reason)
    return after
