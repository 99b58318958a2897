"""Gangs: which of their members may be offered to hosts, if all of a gang start together or not at all.

While every unfinished member waits, the first of them is offered for all; the others are not. That is so only once all
members are known, none is kept from starting by itself, and so all of the gang's earlier VMs are dead by evidence: a
member is PENDING only then. Where the gang says so, a member that lost its VM while others run is offered alone.

An index, kept up by `Cluster.enqueue`. It decides nothing about hosts, and stops nobody (`together.py` does).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..state.tables import JobState
from ..state.terms import Member, OnLoss

if TYPE_CHECKING:
    from ..state.jobs import Job

SHOWN = 3  # members, in a sentence


@dataclass(slots=True)
class _Gang:
    count: int
    alone: bool  # who lost its VM starts again alone
    known: set[str] = field(default_factory=set)
    open: dict[str, int] = field(default_factory=dict)  # index of each that is not finished
    pending: dict[str, float] = field(default_factory=dict)  # not before when
    free: set[str] = field(default_factory=set)  # of these: nothing keeps it from starting by itself
    lost: set[str] = field(default_factory=set)  # of these: lost its host
    doomed: set[str] = field(default_factory=set)  # finished, and not well
    offered: frozenset[str] = frozenset()

    @property
    def whole(self) -> bool:
        """All that are not finished wait."""
        return len(self.pending) == len(self.open)

    def choose(self) -> frozenset[str]:
        """Who may be offered now."""
        if len(self.known) < self.count or not self.open or self.doomed:
            return frozenset()
        if not self.whole:
            return frozenset(self.free) if self.alone else frozenset()
        return (
            frozenset({min(self.open, key=self.open.__getitem__)}) if len(self.free) == len(self.open) else frozenset()
        )


@dataclass(slots=True)
class Gangs:
    """See the module docstring."""

    _gangs: dict[str, _Gang] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)  # gangs of which something has changed; for `together.py`

    def __bool__(self) -> bool:
        return bool(self._gangs)

    def note(self, job: Job, *, free: bool) -> list[str]:
        """Something about a member has changed; returns others that must be queued anew.

        `free`: it waits, and nothing that is its own affair keeps it from starting.
        """
        member = job.terms.member
        if member is None:
            return []
        gang = self._gangs.setdefault(member.gang, _Gang(member.count, member.on_loss is OnLoss.RESTART_MEMBER))
        self.touched.add(member.gang)
        self._enter(gang, job, member, free=free)
        before, gang.offered = gang.offered, gang.choose()
        return sorted(((before ^ gang.offered) | gang.offered) - {job.id} & gang.pending.keys())

    @staticmethod
    def _enter(gang: _Gang, job: Job, member: Member, *, free: bool) -> None:
        gang.known.add(job.id)
        gang.open.pop(job.id, None)
        gang.pending.pop(job.id, None)
        gang.free.discard(job.id)
        gang.lost.discard(job.id)
        if job.final:
            if job.state is not JobState.SUCCEEDED:
                gang.doomed.add(job.id)
            return
        gang.open[job.id] = member.index
        if job.state is JobState.PENDING:
            gang.pending[job.id] = job.not_before_s
            if free:
                gang.free.add(job.id)
            if job.lost:
                gang.lost.add(job.id)

    def _of(self, job: Job) -> _Gang | None:
        return self._gangs.get(job.terms.member.gang) if job.terms.member is not None else None

    def gated(self, job: Job) -> bool:
        """Whether it is not to be offered: it has to wait for its gang, or another is offered for it."""
        gang = self._of(job)
        return gang is not None and job.state is JobState.PENDING and job.id not in gang.offered

    def party(self, job: Job) -> list[str]:
        """Who is placed together with it, by index: itself, or all of its gang."""
        gang = self._of(job)
        return [job.id] if gang is None or not gang.whole else sorted(gang.open, key=gang.open.__getitem__)

    def lead(self, job: Job) -> str:
        """Who is offered for it at the moment: itself, another of its gang, or, "", nobody."""
        gang = self._of(job)
        if gang is None or job.id in gang.offered:
            return job.id
        return next(iter(gang.offered)) if gang.whole and gang.offered else ""

    def first(self, job: Job) -> bool:
        """Whether it, or any that is placed with it, lost its host."""
        gang = self._of(job)
        return job.lost if gang is None or not gang.whole else bool(gang.lost)

    def not_before_s(self, job: Job) -> float:
        """When all that are placed with it may start."""
        gang = self._of(job)
        return job.not_before_s if gang is None or not gang.whole else max(gang.pending.values(), default=0.0)

    def unfinished(self, name: str) -> list[str]:
        """Members of the gang that are not finished, by index."""
        gang = self._gangs.get(name)
        return sorted(gang.open, key=gang.open.__getitem__) if gang is not None else []

    def known(self, name: str) -> list[str]:
        """All members that are known, by name."""
        return sorted(self._gangs[name].known) if name in self._gangs else []

    def doomed(self, name: str) -> list[str]:
        """Members that are finished and did not succeed, by name."""
        return sorted(self._gangs[name].doomed) if name in self._gangs else []

    def needs(self, job: Job) -> bool:
        """Whether others of its gang need to know of the job though it is finished."""
        gang = self._of(job)
        return gang is not None and bool(gang.open)

    def forget(self, job: Job) -> None:
        """The job is kept no longer."""
        gang = self._of(job)
        if gang is None or job.terms.member is None:
            return
        gang.known.discard(job.id)
        gang.doomed.discard(job.id)
        if not gang.known:
            del self._gangs[job.terms.member.gang]

    def kept(self, job: Job) -> tuple[list[str], list[str], int]:
        """Who keeps its gang from starting: who has a VM, who waits for something else, and how many are unknown."""
        gang = self._of(job)
        if gang is None:
            return [], [], 0
        live = sorted(gang.open.keys() - gang.pending.keys(), key=gang.open.__getitem__)
        held = sorted(gang.pending.keys() - gang.free, key=gang.open.__getitem__)
        return live, held, gang.count - len(gang.known)
