"""Every transition that the scheduler decides, as literal tables, and the one funnel through which states change.

A pair that is not in a table is illegal and raises: the caller has misread the facts. Units and VMs have their tables
in the agent, which owns those states.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from .quick import QuickEnum


class HostState(QuickEnum):
    """JOINING: has a session but no inventory of it. SUSPECT: the session is gone. FENCED: its VMs are known dead."""

    JOINING = "JOINING"
    READY = "READY"
    SUSPECT = "SUSPECT"
    FENCING = "FENCING"
    FENCED = "FENCED"


class HostEvent(QuickEnum):
    """What can happen to a host."""

    INVENTORY = "inventory"
    SESSION_LOST = "session lost"
    FENCE = "fence"
    EVIDENCE = "evidence"
    SESSION_BEGAN = "session began"


class AllocationState(QuickEnum):
    """BOUND: decided, not yet reported on. ENDED: no VM exists. LOST: its host is fenced."""

    BOUND = "BOUND"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    ENDED = "ENDED"
    LOST = "LOST"


class AllocationEvent(QuickEnum):
    """What the agent reports of an allocation, and its host's loss."""

    PREPARING = "preparing"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"
    HOST_FENCED = "host fenced"


class JobState(QuickEnum):
    """PENDING waits for a place. The last three are final."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class JobEvent(QuickEnum):
    """What can happen to a job."""

    PLACED = "placed"
    RETRACTED = "placement not committed"
    STARTED = "started"
    EXITED_OK = "exited with 0"
    EXITED_BAD = "exited with another code"
    ATTEMPT_FAILED = "attempt failed, another will follow"
    MOVED = "stopped to start elsewhere"
    GIVEN_UP = "no attempts left"
    CANCELLED = "cancelled"
    UNMET = "can never start"
    EXPIRED = "out of time"


HOST: dict[tuple[HostState, HostEvent], HostState] = {
    (HostState.JOINING, HostEvent.INVENTORY): HostState.READY,
    (HostState.JOINING, HostEvent.SESSION_LOST): HostState.SUSPECT,
    (HostState.READY, HostEvent.SESSION_LOST): HostState.SUSPECT,
    (HostState.SUSPECT, HostEvent.FENCE): HostState.FENCING,
    (HostState.FENCING, HostEvent.EVIDENCE): HostState.FENCED,
    (HostState.FENCED, HostEvent.SESSION_BEGAN): HostState.JOINING,
}

# Reports are levels, not messages: a slow reader may see the last one only, so states may be skipped but never go back.
ALLOCATION: dict[tuple[AllocationState, AllocationEvent], AllocationState] = {
    (AllocationState.BOUND, AllocationEvent.PREPARING): AllocationState.PREPARING,
    (AllocationState.BOUND, AllocationEvent.RUNNING): AllocationState.RUNNING,
    (AllocationState.BOUND, AllocationEvent.STOPPING): AllocationState.STOPPING,
    (AllocationState.BOUND, AllocationEvent.ENDED): AllocationState.ENDED,
    (AllocationState.BOUND, AllocationEvent.HOST_FENCED): AllocationState.LOST,
    (AllocationState.PREPARING, AllocationEvent.RUNNING): AllocationState.RUNNING,
    (AllocationState.PREPARING, AllocationEvent.STOPPING): AllocationState.STOPPING,
    (AllocationState.PREPARING, AllocationEvent.ENDED): AllocationState.ENDED,
    (AllocationState.PREPARING, AllocationEvent.HOST_FENCED): AllocationState.LOST,
    (AllocationState.RUNNING, AllocationEvent.STOPPING): AllocationState.STOPPING,
    (AllocationState.RUNNING, AllocationEvent.ENDED): AllocationState.ENDED,
    (AllocationState.RUNNING, AllocationEvent.HOST_FENCED): AllocationState.LOST,
    (AllocationState.STOPPING, AllocationEvent.ENDED): AllocationState.ENDED,
    (AllocationState.STOPPING, AllocationEvent.HOST_FENCED): AllocationState.LOST,
}

JOB: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.PENDING, JobEvent.PLACED): JobState.STARTING,
    (JobState.PENDING, JobEvent.CANCELLED): JobState.CANCELLED,
    (JobState.PENDING, JobEvent.UNMET): JobState.CANCELLED,
    (JobState.PENDING, JobEvent.EXPIRED): JobState.FAILED,
    (JobState.STARTING, JobEvent.RETRACTED): JobState.PENDING,
    (JobState.STARTING, JobEvent.STARTED): JobState.RUNNING,
    (JobState.STARTING, JobEvent.EXITED_OK): JobState.SUCCEEDED,
    (JobState.STARTING, JobEvent.EXITED_BAD): JobState.FAILED,
    (JobState.STARTING, JobEvent.ATTEMPT_FAILED): JobState.PENDING,
    (JobState.STARTING, JobEvent.MOVED): JobState.PENDING,
    (JobState.STARTING, JobEvent.GIVEN_UP): JobState.FAILED,
    (JobState.STARTING, JobEvent.CANCELLED): JobState.CANCELLED,
    (JobState.STARTING, JobEvent.EXPIRED): JobState.FAILED,
    (JobState.RUNNING, JobEvent.EXITED_OK): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.EXITED_BAD): JobState.FAILED,
    (JobState.RUNNING, JobEvent.ATTEMPT_FAILED): JobState.PENDING,
    (JobState.RUNNING, JobEvent.MOVED): JobState.PENDING,
    (JobState.RUNNING, JobEvent.GIVEN_UP): JobState.FAILED,
    (JobState.RUNNING, JobEvent.CANCELLED): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.EXPIRED): JobState.FAILED,
}

FINAL_JOB_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


class IllegalTransitionError(Exception):
    """A state was asked to change by an event that its table does not know."""


class Transition(NamedTuple):
    """One line of the history, e.g. `host n1: READY -> SUSPECT (session 17 lost)`."""

    kind: str
    subject: str
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.before} -> {self.after} ({self.reason})"


S = TypeVar("S", HostState, AllocationState, JobState)
E = TypeVar("E", HostEvent, AllocationEvent, JobEvent)


def next_state(table: dict[tuple[S, E], S], state: S, event: E, *subject: str) -> S:
    """The state after `event`; raises IllegalTransitionError for a pair that the table does not have."""
    after = table.get((state, event))
    if after is None:
        raise IllegalTransitionError(f"{' '.join(subject)}: {event.value!r} cannot happen in {state.value}")
    return after
