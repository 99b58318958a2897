"""What becomes of a job when one of its attempts has ended: an end, or another attempt, and when.

A command that exits by itself has had its run, whatever the code. A lost host or a crashed VM costs a restart, a VM
that did not start costs a start failure; each has its own bound.
"""

from __future__ import annotations

from .model import ATTEMPTS_KEPT, Cluster, Evidence, Job, Outcome
from .tables import JobEvent

BACKOFF_MAX_S = 300.0


def restart_delay_s(restarts: int) -> float:
    """Seconds before restart number `restarts`: the first at once (the job has lost enough), then 2, 4, 8 .. 300."""
    return 0.0 if restarts <= 1 else min(2.0 ** (restarts - 1), BACKOFF_MAX_S)


def start_retry_delay_s(failures: int) -> float:
    """Seconds before the next try after `failures` start failures in a row: 1, 2, 4 .. 300."""
    return min(2.0 ** (failures - 1), BACKOFF_MAX_S)


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
    del job.attempts[:-ATTEMPTS_KEPT]
    move = outcome is Outcome.STOPPED and bool(moved)
    if outcome is not Outcome.START_FAILED and not move:
        job.start_failures = 0
    if outcome is Outcome.EXITED and exit_code is not None:
        job.exit_code = exit_code
        event = JobEvent.EXITED_OK if exit_code == 0 else JobEvent.EXITED_BAD
        cluster.change_job(job, event, now, f"exit code {exit_code}")
    elif job.cancel_reason is not None:
        cluster.change_job(job, JobEvent.CANCELLED, now, job.cancel_reason)
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
    job.not_before_s = now + start_retry_delay_s(job.start_failures)
    cluster.change_job(job, JobEvent.ATTEMPT_FAILED, now, f"did not start: {message}")


def _restart(cluster: Cluster, job: Job, now: float, reason: str) -> None:
    if job.restarts >= job.max_restarts:
        cluster.change_job(job, JobEvent.GIVEN_UP, now, f"no restarts left ({job.max_restarts}): {reason}")
        return
    job.restarts += 1
    delay_s = restart_delay_s(job.restarts)
    job.not_before_s = now + delay_s if delay_s else 0.0
    cluster.change_job(job, JobEvent.ATTEMPT_FAILED, now, reason)
