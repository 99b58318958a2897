"""What dies together, and what each such failure domain would lose: kept up as hosts and jobs change.

What waits for a restart after a loss is a domain of its own. It knows who is where and who waits, and decides nothing;
whether there is room for it is `reserve.py`'s affair.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job, Outcome, Request
from ..state.tables import HostState, JobState
from .witness import in_order

Shapes = tuple[Request, ...]  # in the order of `in_order`
RAN = frozenset({Outcome.HOST_LOST, Outcome.CRASHED, Outcome.STOPPED})
_LOST = frozenset({HostState.SUSPECT, HostState.FENCING})


class Domain(NamedTuple):
    """What dies together: `kind` is "host" or "label", or "lost": of lost hosts, and without a new place yet."""

    kind: str
    name: str

    def __str__(self) -> str:
        """As people say it."""
        if self.kind == "lost":
            return f"what was lost with {self.name.partition(':')[2]}"
        return f"host {self.name}" if self.kind == "host" else self.name


def restartable(job: Job) -> bool:
    """Whether it would be started again if its host died, and room can be kept for that.

    None can for one that is to be near others, or spread or packed with a gang: nobody can say where these will be
    then. None is for a preemptible one: it may use the room of others meanwhile (lent.py).
    """
    if job.terms.preemptible or (job.terms.member is not None and (job.terms.member.spread or job.terms.member.pack)):
        return False
    if job.request.rules is not None and job.request.rules.near:
        return False
    return job.max_restarts > job.restarts and job.cancel_reason is None and not job.final


def ran_before(job: Job) -> bool:
    """Whether it was admitted long ago, and lost its place since."""
    return any(attempt.outcome in RAN for attempt in job.attempts)


def lost(domain: Domain) -> Domain:
    """What was lost with it, and waits."""
    return domain if domain.kind == "lost" else Domain("lost", ":".join(domain))


class Domains:
    """See the module docstring. `of`: the domain of each host."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.of: dict[str, Domain] = {}
        self._members: dict[Domain, set[str]] = {}
        self._waiting: dict[str, Domain] = {}  # by job: the domain of its last host
        self._lost: dict[Domain, set[str]] = {}  # the same, by domain

    def members(self, domain: Domain) -> Collection[str]:
        """Its hosts; none for what waits."""
        return self._members.get(domain, ())

    def waiting(self) -> list[str]:
        """The jobs that wait for a restart."""
        return sorted(self._waiting)

    def waits(self, job: Job) -> Domain | None:
        """What the job waits as a part of, if it waits for its restart."""
        domain = self._waiting.get(job.id)
        return lost(domain) if domain is not None else None

    def shapes(self, domain: Domain) -> Shapes:
        """What the domain would lose."""
        return in_order(job.request for job in self.jobs(domain))

    def look_at_host(self, name: str) -> tuple[set[Domain], bool]:
        """Keep up where the host is; returns the domains that it touches, and whether it left one for another."""
        before, after = self.of.get(name), self._domain(self._cluster.hosts[name])
        return self._change_domain(name, before, after), before not in {None, after}

    def last_on(self, hosts: Collection[str]) -> list[str]:
        """The jobs that wait, and were last on one of these hosts."""
        return [job_id for job_id in self._waiting if hosts and self._last_host(job_id) in hosts]

    def look_at_job(self, job_id: str) -> set[Domain]:
        """Keep up what waits; returns the domains that may need more or less room."""
        touched: set[Domain] = set()
        if (before := self._waiting.pop(job_id, None)) is not None:
            touched.add(before)
            self._lost[before].discard(job_id)
        job, last = self._cluster.jobs[job_id], self._last_host(job_id)
        if not last:
            return touched
        domain = self.of.get(last, Domain("host", last))
        waits = job.state is JobState.PENDING and not job.hold and job.cancel_reason is None
        waits = waits and not job.terms.preemptible
        if waits and ran_before(job):
            self._waiting[job_id] = domain
            self._lost.setdefault(domain, set()).add(job_id)
        return {*touched, domain}

    def _last_host(self, job_id: str) -> str:
        attempts = self._cluster.jobs[job_id].attempts
        return attempts[-1].host if attempts else ""

    def _domain(self, host: Host) -> Domain:
        label = self._cluster.policy.reservation.domain_label
        labels = dict(host.inventory.labels) if label and host.inventory is not None else {}
        return Domain("label", f"{label}={labels[label]}") if label in labels else Domain("host", host.name)

    def _change_domain(self, name: str, before: Domain | None, after: Domain) -> set[Domain]:
        """Returns the domains that the host touches."""
        if before == after:
            return {after}
        if before is not None:
            self._members[before].discard(name)
        self.of[name] = after
        self._members.setdefault(after, set()).add(name)
        return {after} if before is None else {before, after}

    def jobs(self, domain: Domain) -> Iterable[Job]:
        """What would have to be restarted; of "lost": what has to be, as its host is lost. In no order."""
        cluster, waits = self._cluster, domain.kind == "lost"
        hosts = Domain(*domain.name.split(":", 1)) if waits else domain
        if waits:
            yield from (cluster.jobs[job_id] for job_id in self._lost.get(hosts, ()))
        for name in self._members.get(hosts, ()):
            if waits != (cluster.hosts[name].state in _LOST):
                continue
            for allocation_id in cluster.hosts[name].allocations:
                job = cluster.jobs.get(cluster.allocations[allocation_id].job)
                if job is not None and job.allocation_id == allocation_id and restartable(job):
                    yield job
