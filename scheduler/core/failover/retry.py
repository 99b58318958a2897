"""What becomes of a job when one of its attempts has ended: an end, or another attempt, and when.

A command that exits by itself has had its run, whatever the code. A lost host or a crashed VM costs a restart, a VM
that did not start costs a start failure; each has its own bound. Delays grow, and are spread by a hash of the job and
its count, so that what failed together does not come back together.
"""

from __future__ import annotations

from hashlib import sha256

from ..queueing import hold
from ..state.cluster import Cluster
from ..state.hosts import Allocation
from ..state.jobs import ATTEMPTS_KEPT, Job, Outcome
from ..state.losses import Evidence
from ..state.tables import JobEvent, JobState
from . import breaker

BACKOFF_MAX_S = 300.0
SAME_HOST_S = 30.0  # how long a job whose VM crashed waits for its own units to be clean


def restart_delay_s(job: Job) -> float:
    """Seconds before its restart: the first at once (it has lost enough), then up to 2, 4, 8 .. 300, at least half."""
    return 0.0 if job.restarts <= 1 else _spread(2.0 ** min(job.restarts - 1, 30), f"{job.id} restart {job.restarts}")


def start_retry_delay_s(job: Job) -> float:
    """Seconds before the next try after start failures in a row: up to 1, 2, 4 .. 300, at least half."""
    return _spread(2.0 ** min(job.start_failures - 1, 30), f"{job.id} start {job.start_failures}")


def _spread(delay_s: float, what: str) -> float:
    """Between half and all of `delay_s`, cut at the maximum, as `what` says."""
    part = int.from_bytes(sha256(what.encode()).digest()[:4], "big") / 2**32
    return min(delay_s, BACKOFF_MAX_S) * (0.5 + 0.5 * part)


def crashed_on(job: Job) -> list[str]:
    """Hosts of the last attempts, newest first, as long as each was a crash of the VM alone."""
    hosts = []
    for attempt in reversed(job.attempts):
        if attempt.outcome is not Outcome.CRASHED:
            break
        hosts.append(attempt.host)
    return hosts


def units_clean(cluster: Cluster, allocation: Allocation) -> None:
    """An ended allocation is released: whoever waited to start again on the same units need wait no longer for that."""
    job = cluster.jobs.get(allocation.job)
    waits = job is not None and job.state is JobState.PENDING and job.attempts[-1:] and len(crashed_on(job)) == 1
    if job is None or not waits or job.attempts[-1].number != allocation.attempt:
        return
    due_s = job.attempts[-1].ended_s + restart_delay_s(job)
    if due_s < job.not_before_s:
        job.not_before_s = due_s
        cluster.dirty.jobs.add(job.id)
        cluster.enqueue(job)


def end_attempt(
    cluster: Cluster,
    job: Job,
    outcome: Outcome,
    now: float,
    *,
    exit_code: int | None = None,
    message: str = "",
    evidence: Evidence | None = None,
    moved: str = "",
) -> None:
    """Close the job's current attempt and decide what follows. `moved`: why it was asked to stop, or ""."""
    attempt = job.attempts[-1]
    attempt.ended_s, attempt.outcome, attempt.exit_code = now, outcome, exit_code
    attempt.message, attempt.evidence = message, evidence
    hold.apply(job)
    del job.attempts[:-ATTEMPTS_KEPT]
    move = outcome is Outcome.STOPPED and bool(moved)
    if outcome is not Outcome.START_FAILED and not move:
        job.start_failures = 0
    if outcome not in (Outcome.START_FAILED, Outcome.HOST_LOST):
        job.host_deaths = 0
    if outcome is Outcome.EXITED and exit_code is not None:
        job.exit_code = exit_code
        event = JobEvent.EXITED_OK if exit_code == 0 else JobEvent.EXITED_BAD
        cluster.change_job(job, event, now, f"exit code {exit_code}")
    elif job.cancel_reason is not None:
        cluster.change_job(job, JobEvent.CANCELLED, now, job.cancel_reason)
    elif job.ending:  # its time is up, however this attempt ended
        cluster.change_job(job, JobEvent.EXPIRED, now, job.ending)
    elif move:  # our doing: it costs no restart, and nothing that must be waited out has failed
        cluster.change_job(job, JobEvent.MOVED, now, moved)
    elif outcome is Outcome.START_FAILED:
        _start_failed(cluster, job, now, message)
    else:
        _restart(cluster, job, now, f"{outcome.value.lower().replace('_', ' ')}: {message}")


def _start_failed(cluster: Cluster, job: Job, now: float, message: str) -> None:
    job.start_failures += 1
    if job.start_failures >= job.max_start_failures:
        reason = f"did not start in {job.start_failures} tries: {message}"
        cluster.change_job(job, JobEvent.GIVEN_UP, now, reason)
        return
    job.not_before_s = now + start_retry_delay_s(job)
    cluster.change_job(job, JobEvent.ATTEMPT_FAILED, now, f"did not start: {message}")


def _restart(cluster: Cluster, job: Job, now: float, reason: str) -> None:
    if job.restarts >= job.max_restarts:
        cluster.change_job(job, JobEvent.GIVEN_UP, now, f"no restarts left ({job.max_restarts}): {reason}")
        return
    job.restarts += 1
    delay_s = restart_delay_s(job)
    if len(crashed_on(job)) == 1:
        delay_s = max(delay_s, SAME_HOST_S)
        reason += f"; waits for its units on {job.attempts[-1].host}, at most {delay_s:.0f} s"
    breaker.judge(job, now)
    job.not_before_s = now + delay_s if delay_s else 0.0
    cluster.change_job(job, JobEvent.ATTEMPT_FAILED, now, reason)
