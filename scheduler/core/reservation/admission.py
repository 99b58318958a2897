"""Which of the hosts that fit a job may take it, so that room for restarts stays: the reservation's part of placement.

A job that has not run yet is placed where every failure domain that is covered stays so, or, by policy, with a warning.
One that lost its place may use what was kept for it; it leaves the room of the others that wait where it can. While the
site keeps no room this decides nothing and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from ..fitting.fit import Fit
from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job, Request
from ..state.reasons import Reason, Refusal
from .domains import ran_before, restartable
from .reserve import Gap, Reserve, Verdict

TRIES = 32  # hosts, the best first
EXPLAINED = 128  # hosts


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the job goes. `warning`: what that breaks, by policy."""

    host: Host
    fit: Fit
    verdict: Verdict | None = None
    warning: str = ""


@dataclass(slots=True)
class Admission:
    """See the module docstring. Belongs to one cluster."""

    reserve: Reserve | None = None
    refused: set[tuple[Request, bool, bool]] = field(default_factory=set)  # see `_kind`
    epoch: int = -1
    patient: set[str] = field(default_factory=set)  # restarts that wait, in this turn, for what is lent of their room
    moved: int = 0  # restarts that were placed: they may open gaps, and a gap blocks nobody
    _moved_before: int = 0

    def begin(self) -> None:
        """A turn begins."""
        self.patient.clear()
        if self.moved != self._moved_before:
            self._moved_before = self.moved
            self.refused.clear()

    def out(self, cluster: Cluster, job: Job) -> bool:
        """Whether a job just like this one was refused, and nothing has been set free since."""
        if job.id in self.patient:
            return True
        if not self.refused:
            return False
        if self.epoch != cluster.capacity_epoch:
            self.refused.clear()
        return _kind(job) in self.refused and not _owed(job)

    def choose(
        self, cluster: Cluster, job: Job, ranked: Sequence[tuple[str, Fit]], fitting: Container[str]
    ) -> Choice | None:
        """One of the hosts that are `fitting`, of which the best are `ranked`; None: the job waits."""
        reserve = self.known(cluster)
        if _owed(job):
            return self._restart(reserve, cluster, job, ranked, fitting)
        first: Verdict | None = None
        for name, found in ranked:
            verdict = reserve.judge(job, cluster.hosts[name], found)
            if verdict.broken is None:
                return Choice(cluster.hosts[name], found, None if job.terms.preemptible else verdict)
            first = first or verdict
        if first is not None and cluster.policy.reservation.warn:
            return Choice(cluster.hosts[ranked[0][0]], ranked[0][1], warning=said(first))
        self.refused.add(_kind(job))
        self.epoch = cluster.capacity_epoch
        return None

    def known(self, cluster: Cluster) -> Reserve:
        """What is kept, as far as it was looked at."""
        if self.reserve is None:
            self.reserve = Reserve(cluster)
        return self.reserve

    def own_affair(self, job: Job) -> None:
        """What kept this one out were hosts of its own: others of its shape may be luckier, and are to be asked."""
        self.refused.discard(_kind(job))

    def _restart(
        self, reserve: Reserve, cluster: Cluster, job: Job, ranked: Sequence[tuple[str, Fit]], fitting: Container[str]
    ) -> Choice | None:
        """The best host that leaves the others' room, or the room that was kept for this one, or just the best.

        None: its room is lent, and others would lose theirs if it did not wait until it is left (lent.py).
        """
        kept = reserve.promised(job)
        on_loan = kept is None and any(take.request == job.request for take in reserve.meant_for(job))
        for name, found in ranked:
            if (kept is None and not on_loan) or reserve.spares(job, cluster.hosts[name], found):
                return Choice(cluster.hosts[name], found)
        if kept is not None and kept[0].name in fitting:
            return Choice(*kept)
        if on_loan:
            self.patient.add(job.id)
            return None
        return Choice(cluster.hosts[ranked[0][0]], ranked[0][1])

    def placed(self, job: Job, choice: Choice) -> None:
        """The job was placed so."""
        self.moved += self.reserve is not None and _owed(job)
        if choice.warning:
            job.attempts[-1].warnings += (choice.warning,)
        if choice.verdict is not None and self.reserve is not None:
            self.reserve.placed(job, choice.host, choice.verdict)


def _kind(job: Job) -> tuple[Request, bool, bool]:
    """What is asked once for all: the shape, and what is promised to it."""
    return job.request, restartable(job), job.terms.preemptible


def _owed(job: Job) -> bool:
    """Whether it may use what is kept: it ran, and was not there on the condition that it leaves."""
    return ran_before(job) and not job.terms.preemptible


def said(verdict: Verdict) -> str:
    """Why a place is refused, for people."""
    domain = verdict.broken
    if domain is not None and domain.kind == "lost":
        why = f"not all of {domain} would find a place"
    else:
        why = f"if {domain} died, not all that is to be restarted would find a place"
    maybe = "" if verdict.complete else ", or none was found before the search was given up"
    return f"it would take room that is kept: {why}{maybe}"


def kept_out(
    cluster: Cluster, job: Job, fits: Sequence[tuple[str, Fit]], known: Callable[[], Reserve] | None = None
) -> dict[str, Refusal]:
    """Of the hosts that fit a job that waits, those that the reservation keeps it from. Asks at most EXPLAINED.

    `known` gives the reservation as it is now, if somebody has it.
    """
    policy = cluster.policy.reservation
    if not policy.hosts or policy.warn or not fits or _owed(job):
        return {}
    reserve = known() if known is not None else Reserve(cluster, once=True)
    found = {}
    for name, place in fits[:EXPLAINED]:
        verdict = reserve.judge(job, cluster.hosts[name], place)
        if verdict.broken is not None:
            found[name] = Refusal(Reason.RESERVED_FOR_FAILOVER, said(verdict))
    if len(found) == EXPLAINED:
        more = f"not asked, as the {EXPLAINED} hosts before it would all take room kept for failover"
        found |= {name: Refusal(Reason.RESERVED_FOR_FAILOVER, more) for name, _ in fits[EXPLAINED:]}
    return found


def gaps(cluster: Cluster) -> list[Gap]:
    """The failure domains that are not covered now, if the site keeps room for restarts."""
    return Reserve(cluster, once=True).gaps() if cluster.policy.reservation.hosts else []
