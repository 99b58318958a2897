"""What the queue keeps track of beside the order: who waits for whom, and for when. Indexes, so that a turn
costs what changed.

It decides nothing and holds nothing that could not be found anew from the jobs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..gangs.members import Gangs
from ..queueing.arrays import Arrays
from ..queueing.queues import Queues
from ..queueing.shares import Shares
from .timers import Timers

if TYPE_CHECKING:
    from .jobs import Job, Request


@dataclass(frozen=True, slots=True)
class Claim:
    """A place on a host that is kept for a job: what it needs, once those have left who are about to leave.

    Those are all that were asked to stop; with `at_s` all that are gone by then, by that or by their limits of time.
    `count`: it is for so many of a gang, of which the job is one.
    """

    host: str
    at_s: float = 0.0
    count: int = 1


@dataclass(slots=True)
class Books:
    """Kept up by `note`, which `Cluster.enqueue` calls whenever a job has changed."""

    dependents: dict[str, set[str]] = field(default_factory=dict)  # unfinished jobs by each that they depend on
    timers: Timers = field(default_factory=Timers)
    queues: Queues = field(default_factory=Queues)
    shares: Shares = field(default_factory=Shares)
    limited: set[str] = field(default_factory=set)  # jobs that have a VM, and a limit of time
    live: Counter[int] = field(default_factory=Counter)  # jobs that have a VM, by priority
    preemptible: set[str] = field(default_factory=set)  # jobs that have a VM, and stop for others
    claims: dict[str, Claim] = field(default_factory=dict)  # places that are kept, by job; claims.py
    arrays: Arrays = field(default_factory=Arrays)
    requests: Counter[Request] = field(default_factory=Counter)  # of the jobs on record
    submitted: int = 0  # jobs that ever were on record
    gangs: Gangs = field(default_factory=Gangs)
    _counted: set[str] = field(default_factory=set)
    unjudged: set[str] = field(default_factory=set)  # jobs that depend on others, and may be met or lost by now

    def __post_init__(self) -> None:
        """Shares are of what the queues use."""
        self.shares.queues = self.queues

    def on_record(self, job: Job) -> None:
        """The job is known from now on."""
        self.requests[job.request] += 1
        self.submitted += 1

    def off_record(self, job: Job) -> None:
        """The job is kept no longer."""
        self.arrays.forget(job)
        self.gangs.forget(job)
        self.requests[job.request] -= 1
        if not self.requests[job.request]:
            del self.requests[job.request]

    def note(self, job: Job, due_s: float | None) -> None:
        """Something about the job has changed; `due_s` is when time next changes it."""
        terms = job.terms
        self.timers.set(job.id, due_s)
        if terms.time_limit_s or terms.end_within_s:
            (self.limited.add if job.live else self.limited.discard)(job.id)
        self.count(job)
        if terms.preemptible:
            (self.preemptible.add if job.live else self.preemptible.discard)(job.id)
        if terms.element is not None:
            self.arrays.note(job)
        for other in terms.dependencies:
            self._depend(job, other.job)
        if job.depends and not job.final:
            self.unjudged.add(job.id)
        if job.final:
            self.unjudged |= self.dependents.get(job.id, set())

    def count(self, job: Job) -> None:
        """As `note`, of a job of which nothing else matters: its terms are plain, and it is not over."""
        if (job.id in self._counted) == job.live:
            return
        if job.id in self._counted:
            self._counted.discard(job.id)
            self.live[job.priority] -= 1
            if not self.live[job.priority]:
                del self.live[job.priority]
        else:
            self._counted.add(job.id)
            self.live[job.priority] += 1

    def _depend(self, job: Job, other: str) -> None:
        if not job.final:
            self.dependents.setdefault(other, set()).add(job.id)
        elif job.id in self.dependents.get(other, ()):
            self.dependents[other].discard(job.id)
            if not self.dependents[other]:
                del self.dependents[other]
