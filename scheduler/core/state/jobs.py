"""Jobs and their attempts, as the scheduler records them, and what a job asks of a host."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..queueing.queue import Lane
from .amounts import NOTHING, Amounts
from .facts import (
    JobIntent,
)
from .losses import Evidence
from .quick import QuickEnum
from .rules import Labels, Rules
from .tables import (
    FINAL_JOB_STATES,
    JobState,
)
from .terms import Member, Terms

ATTEMPTS_KEPT = 16  # the newest; the count goes on


_NO_TERMS, _NO_WORD = Terms(), JobIntent()  # of most: one object for all of them


class NumaPolicy(QuickEnum):
    """How strictly a VM's resources share a NUMA node."""

    REQUIRED = "REQUIRED"
    PREFERRED = "PREFERRED"
    NONE = "NONE"


class Outcome(QuickEnum):
    """How an attempt ended."""

    EXITED = "EXITED"
    STOPPED = "STOPPED"
    START_FAILED = "START_FAILED"
    CRASHED = "CRASHED"
    HOST_LOST = "HOST_LOST"


@dataclass(frozen=True, slots=True)
class Request:
    """What a job needs of a host: its shape. Equal requests are interchangeable to placement."""

    image: str
    gpus: int = 0
    model: str = ""
    gpu_memory_mib: int = 0
    cpus: int = 1
    memory_mib: int = 0
    numa: NumaPolicy = NumaPolicy.PREFERRED
    hugepage_size_kib: int = 0  # 0: ordinary memory
    rules: Rules | None = None  # None: it demands nothing else
    amounts: Amounts = field(default=NOTHING, init=False, compare=False, repr=False)
    _hash: int = field(default=0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """What is asked for again and again is reckoned once for all jobs of the shape."""
        object.__setattr__(self, "amounts", Amounts(self.gpus, self.cpus, self.memory_mib))

    def __hash__(self) -> int:
        """Of all that it says, reckoned once: each placement looks it up several times."""
        if not self._hash:
            said = (self.image, self.gpus, self.model, self.gpu_memory_mib, self.cpus, self.memory_mib, self.numa)
            object.__setattr__(self, "_hash", hash((said, self.hugepage_size_kib, self.rules)) or 1)
        return self._hash


@dataclass(frozen=True, slots=True)
class Party(Request):
    """The shape of those of a gang that are placed together. `of` names the gang if others of it run already."""

    count: int = 1
    spread: str = ""
    pack: str = ""
    of: str = ""


def party_of(request: Request, member: Member) -> Party:
    """The shape of a whole gang."""
    plain: dict[str, Any] = {one.name: getattr(request, one.name) for one in fields(Request) if one.init}
    return Party(**plain, count=member.count, spread=member.spread, pack=member.pack)


@dataclass(slots=True)
class Attempt:
    """One incarnation of a job."""

    number: int
    host: str
    units: tuple[str, ...]
    created_s: float
    started_s: float = 0.0
    ended_s: float = 0.0
    outcome: Outcome | None = None
    exit_code: int | None = None
    message: str = ""
    evidence: Evidence | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Job:
    """A job and what became of it. `arrival` orders the queue: the revision at which its spec was written."""

    id: str
    request: Request
    arrival: int
    submitted_s: float
    priority: int = 0
    max_restarts: int = 10
    max_start_failures: int = 3
    state: JobState = JobState.PENDING
    attempts: list[Attempt] = field(default_factory=list)
    attempt_count: int = 0
    restarts: int = 0
    start_failures: int = 0
    finished_s: float = 0.0
    not_before_s: float = 0.0
    exit_code: int | None = None
    message: str = ""
    cancel_reason: str | None = None  # not None once cancellation was asked for
    name: str = ""
    restart_priority: int = 0  # among jobs to be restarted, before `priority`
    after: tuple[str, ...] = ()  # names of jobs that must run, or be over, before it restarts
    max_host_deaths: int = 3  # held once so many hosts in a row died with it; 0: never
    host_deaths: int = 0
    hold: str = ""  # why it is kept from starting until an operator releases it
    held_s: float = 0.0
    labels: Labels = ()
    max_failures_per_host: int = 0  # a host where so many attempts failed is not used again; 0: it is used last
    terms: Terms = _NO_TERMS
    intent: JobIntent = _NO_WORD
    ending: str = ""  # why its time is up: it ends for good
    freed: bool = False  # what it depends on has come about; found anew by each leader

    @property
    def lane(self) -> Lane:
        """Whose limits it shares."""
        return self.terms.queue, self.terms.user, self.terms.time_limit_s

    @property
    def depends(self) -> bool:
        """Whether it waits, as far as is known, for jobs that it depends on."""
        return bool(self.terms.dependencies) and not self.attempt_count and not self.freed

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL_JOB_STATES

    @property
    def as_submitted(self) -> bool:
        """Whether nothing has become of it yet: whoever reads its spec alone knows as much."""
        untouched = not (self.attempt_count or self.message or self.not_before_s or self.ending or self.hold)
        return untouched and self.state is JobState.PENDING and self.cancel_reason is None

    @property
    def lost(self) -> bool:
        """Whether its last VM that ran at all was lost with its host; tries that did not start since change nothing."""
        return _lost(self.attempts)

    @property
    def lost_before(self) -> bool:
        """As `lost`, before the last attempt was made."""
        return _lost(self.attempts[:-1])

    @property
    def live(self) -> bool:
        """Whether an attempt is under way."""
        return self.state is JobState.RUNNING or self.state is JobState.STARTING

    @property
    def allocation_id(self) -> str | None:
        """The allocation of the attempt that is under way."""
        return f"{self.id}.{self.attempt_count}" if self.live else None


def _lost(attempts: list[Attempt]) -> bool:
    for attempt in reversed(attempts):
        if attempt.outcome is not Outcome.START_FAILED:
            return attempt.outcome is Outcome.HOST_LOST
    return False
