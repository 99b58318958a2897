"""What keeps one job, and perhaps no other of its shape, from a host: its own failures there, and who shuns it.

It must never widen what the job demands, save in one case: the first of jobs that want to be near each other is near
nobody, and may go anywhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job, Outcome, Request
from ..state.reasons import Reason, Refusal
from ..state.rules import Label, Labels, means, shown

FAILED = frozenset({Outcome.START_FAILED, Outcome.CRASHED, Outcome.HOST_LOST})
Case = tuple[Request, frozenset[str], Labels]  # jobs of one case are alike in all that matters to hosts


def asked(cluster: Cluster, job: Job) -> Request:
    """The job's shape as hosts are to be asked for it now."""
    rules = job.request.rules
    if rules is None or not rules.near:
        return job.request
    near = tuple(p for p in rules.near if _somewhere(cluster, p) or not any(means(p, label) for label in job.labels))
    return job.request if near == rules.near else replace(job.request, rules=replace(rules, near=near))


def _somewhere(cluster: Cluster, pattern: tuple[str, str]) -> bool:
    return any(means(pattern, label) for label in cluster.company.labels)


def case(cluster: Cluster, job: Job) -> Case | None:
    """What sets the job apart from others of its shape; None: nothing does."""
    request, failed = asked(cluster, job), failed_on(job)
    mine: Labels = ()
    if job.labels and (shunned := cluster.company.shunned):
        mine = tuple(label for label in job.labels if any(means(pattern, label) for pattern in shunned))
    return (request, failed, mine) if failed or mine or request is not job.request else None


def shunned(cluster: Cluster, label: Label) -> bool:
    """Whether anybody anywhere is to be apart from jobs with the label."""
    return any(means(pattern, label) for pattern in cluster.company.shunned)


def failed_on(job: Job) -> frozenset[str]:
    """Hosts that the job is not to use again, by the attempts that are kept."""
    if not job.max_failures_per_host or not job.attempts:
        return frozenset()
    times = Counter(attempt.host for attempt in job.attempts if attempt.outcome in FAILED)
    return frozenset(host for host, count in times.items() if count >= job.max_failures_per_host)


def barred(host: Host, found: Case) -> Refusal | None:
    """Why a job of this case must not go to the host, though its shape may."""
    _, failed, labels = found
    if host.name in failed:
        return Refusal(Reason.FAILED_BEFORE, "as many attempts of this job failed there as may")
    for pattern in sorted(host.company.shunned) if labels else ():
        for label in labels:
            if means(pattern, label):
                return Refusal(Reason.APART_FROM_JOBS, f"a job there is to be apart from jobs with {shown(pattern)}")
    return None


@dataclass(slots=True)
class Own:
    """Remembers which cases found no host, until something is set free."""

    hopeless: set[Case] = field(default_factory=set)
    epoch: int = -1

    def out(self, cluster: Cluster, found: Case | None) -> bool:
        """Whether a job of the case found nothing lately."""
        if self.epoch != cluster.capacity_epoch:
            self.epoch = cluster.capacity_epoch
            self.hopeless.clear()
        return found is not None and found in self.hopeless
