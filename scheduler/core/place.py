"""Which pending job goes where: the only place that makes allocations.

Jobs are taken by priority, then arrival; a job that does not fit lets later ones pass. Among hosts: the least valuable
GPU that will do, then one NUMA node before several, then the host where the fewest free units would stay (so that whole
hosts stay free for large jobs), then one where this job has not failed to start, then the name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .fit import Fit, fit
from .model import Allocation, Attempt, Cluster, Host, Job, Outcome, Request
from .reasons import Refusal
from .tables import HostState, JobEvent


@dataclass(slots=True)
class Placer:
    """Remembers which shapes fit nowhere until something may have changed."""

    epoch: int = -1
    hopeless: set[Request] = field(default_factory=set)

    def place(self, cluster: Cluster, now: float, limit: int = 1000) -> int:
        """Place up to `limit` pending jobs; returns how many. The cluster then has their allocations, marked dirty."""
        cluster.pending.due(now)
        if self.epoch != cluster.capacity_epoch:
            self.epoch = cluster.capacity_epoch
            self.hopeless.clear()
        hosts = [cluster.hosts[n] for n in sorted(cluster.hosts) if cluster.hosts[n].state is HostState.READY]
        placed = 0
        for job_id, request in cluster.pending.offers(self.hopeless):
            job = cluster.jobs[job_id]
            best = best_host(hosts, job)
            if best is None:
                self.hopeless.add(request)
                continue
            _bind(cluster, job, *best, now)
            placed += 1
            if placed >= limit:
                break
        return placed


def best_host(hosts: list[Host], job: Job) -> tuple[Host, Fit] | None:
    """The best of `hosts` for the job, with what it would take there."""
    failed_on = {a.host for a in job.attempts if a.outcome is Outcome.START_FAILED}
    best: tuple[tuple[int, int, int, bool, str], Host, Fit] | None = None
    for host in hosts:
        outcome = fit(host, job.request)
        if isinstance(outcome, Refusal):
            continue
        rank = (outcome.gpu_memory_mib, len(outcome.nodes), outcome.leftover, host.name in failed_on, host.name)
        if best is None or rank < best[0]:
            best = (rank, host, outcome)
    return None if best is None else best[1:]


def _bind(cluster: Cluster, job: Job, host: Host, found: Fit, now: float) -> None:
    job.attempt_count += 1
    job.not_before_s = 0.0
    allocation = Allocation(
        id=f"{job.id}.{job.attempt_count}",
        job=job.id,
        attempt=job.attempt_count,
        host=host.name,
        session=host.session,
        units=found.units,
        nodes=found.nodes,
        cores=found.cores,
        memory_mib=found.memory_mib,
        created_s=now,
    )
    job.attempts.append(Attempt(job.attempt_count, host.name, found.units, now))
    cluster.reserve(allocation)
    cluster.dirty.allocations.add(allocation.id)
    cluster.dirty.created.add(allocation.id)
    cluster.change_job(job, JobEvent.PLACED, now, f"placed on {host.name}")


def retract(cluster: Cluster, allocation: Allocation, now: float, reason: str) -> None:
    """Undo a placement that the store certainly does not have: the attempt never was."""
    job = cluster.jobs[allocation.job]
    cluster.release(allocation)
    cluster.dirty.allocations.discard(allocation.id)
    cluster.dirty.created.discard(allocation.id)
    job.attempts.pop()
    job.attempt_count -= 1
    cluster.change_job(job, JobEvent.RETRACTED, now, reason)
