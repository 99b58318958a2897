"""Facts that others wrote. Each is a level, not a message: it says how things are, and may be told again at no harm."""

from __future__ import annotations

from .facts import ClusterIntent, HostIntent, InventoryFact, JobIntent, QueueIntent, SessionFact, UnitReport
from .jobs import Job, Outcome
from .quick import fact
from .tables import AllocationState


@fact(frozen=True, slots=True)
class SessionChanged:
    """A host's session key is now so; None: it is gone."""

    host: str
    fact: SessionFact | None


@fact(frozen=True, slots=True)
class InventoryChanged:
    """A host's inventory is now so; None: it is gone."""

    host: str
    fact: InventoryFact | None


@fact(frozen=True, slots=True)
class UnitReported:
    """The agent's report of a unit is now so; None: it is gone."""

    host: str
    unit: str
    report: UnitReport | None


@fact(frozen=True, slots=True)
class VmReported:
    """The agent's report of an allocation is now so. `state` is never BOUND or LOST."""

    host: str
    allocation: str
    session: int
    state: AllocationState
    outcome: Outcome | None = None
    exit_code: int | None = None
    message: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0
    warnings: tuple[str, ...] = ()


@fact(frozen=True, slots=True)
class JobSubmitted:
    """A spec that was not known. `job` is PENDING and fresh."""

    job: Job


@fact(frozen=True, slots=True)
class JobCancelRequested:
    """Somebody wants the end of a job."""

    job: str
    reason: str


@fact(frozen=True, slots=True)
class HostIntentChanged:
    """What an operator wants of a host is now so."""

    host: str
    intent: HostIntent


@fact(frozen=True, slots=True)
class ClusterIntentChanged:
    """What an operator wants of all hosts together is now so."""

    intent: ClusterIntent


@fact(frozen=True, slots=True)
class JobIntentChanged:
    """What an operator wants of a job is now so."""

    job: str
    intent: JobIntent


@fact(frozen=True, slots=True)
class QueueChanged:
    """What operators want of a queue is now so; None: it is gone."""

    queue: str
    intent: QueueIntent | None


@fact(frozen=True, slots=True)
class PowerFenced:
    """A try to switch a host off has ended at `at_s`; `off`: its power was seen to be off. No fact of the store."""

    host: str
    session: int  # the lost one that it was for
    device: str
    at_s: float
    off: bool
    detail: str = ""


Event = (
    SessionChanged
    | InventoryChanged
    | UnitReported
    | VmReported
    | JobSubmitted
    | JobCancelRequested
    | HostIntentChanged
    | ClusterIntentChanged
    | JobIntentChanged
    | QueueChanged
    | PowerFenced
)
