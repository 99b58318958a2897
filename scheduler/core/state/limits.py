"""The times that a job has: until when it may start, run and be kept. It computes; `deadlines.py` acts.

An attempt's time runs from its guest's start, as the agent dates it, but not from before the decision that made it, nor
from after the leader heard of it. A
deadline is the moment at which the VM is gone: so the stop is asked for a grace before it. The limit itself says when
the stop is asked for; the grace comes after it.

A limit counts time in which the attempt is known to have run. A host may have died before it, and nobody knows yet:
then the stop goes unheard, and the job, which may not have had its time, is restarted as any that lost its host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tables import AllocationState, JobState

if TYPE_CHECKING:
    from .hosts import Allocation
    from .jobs import Job
    from .policy import Policy

LIVE = (JobState.STARTING, JobState.RUNNING)


def due_s(job: Job, policy: Policy) -> float | None:
    """When time next changes something about the job; None: never."""
    if job.final:
        keep_s = job.terms.keep_s or policy.keep_finished_s
        return job.finished_s + keep_s if keep_s else None
    terms = job.terms
    if not (terms.start_within_s or terms.end_within_s or terms.time_limit_s):
        return None  # as most have none
    if job.state is JobState.PENDING:
        return _first(start_by_s(job), last_stop_s(job))
    return None if job.ending else _first(run_out_s(job), last_stop_s(job))


def _first(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def start_by_s(job: Job) -> float | None:
    """Until when it must have started for the first time."""
    if not job.terms.start_within_s or any(a.started_s for a in job.attempts) or job.attempt_count > len(job.attempts):
        return None
    return job.submitted_s + job.terms.start_within_s


def last_stop_s(job: Job) -> float | None:
    """The latest moment at which to ask for its stop, if its VM is to be gone by its deadline."""
    if not job.terms.end_within_s:
        return None
    return job.submitted_s + job.terms.end_within_s - job.terms.stop_grace_s


def run_out_s(job: Job) -> float | None:
    """When the present attempt has run for as long as it may; None: that is not known yet, or it has no limit."""
    if not job.terms.time_limit_s or job.state is not JobState.RUNNING:
        return None
    return max(job.attempts[-1].started_s, job.attempts[-1].created_s) + job.terms.time_limit_s


def gone_by_s(job: Job) -> float | None:
    """When the present attempt's VM is gone at the latest, if that is known: a stop, and its grace."""
    if not (job.terms.time_limit_s or job.terms.end_within_s):
        return None  # as most have none
    stop_s = _first(run_out_s(job) or _if_started_now(job), last_stop_s(job))
    return None if stop_s is None else stop_s + job.terms.stop_grace_s


def _if_started_now(job: Job) -> float | None:
    """The limit of an attempt that is starting counts from its decision: it will be a little later."""
    if not job.terms.time_limit_s or job.state is not JobState.STARTING:
        return None
    return job.attempts[-1].created_s + job.terms.time_limit_s


def unheard(job: Job, allocation: Allocation, now: float) -> bool:
    """Whether nothing but its time limit ends it, and its agent has not answered that: it may not have run so long."""
    out_s, stop_s = run_out_s(job), last_stop_s(job)
    if out_s is None or now < out_s or (stop_s is not None and stop_s <= now):
        return False
    heard = allocation.state in (AllocationState.STOPPING, AllocationState.ENDED)
    return not heard or allocation.stop_requested_s < out_s  # what it heard was asked before, for another reason


def fell_short(job: Job, started_s: float, ended_s: float, now: float) -> bool:
    """Whether nothing but its time limit ends it, and by its agent's clock it ended before that."""
    out_s, stop_s = run_out_s(job), last_stop_s(job)
    if out_s is None or now < out_s or (stop_s is not None and stop_s <= now) or not started_s:
        return False
    return started_s <= ended_s < started_s + job.terms.time_limit_s


def expired(job: Job, now: float, *, lost: bool = False) -> str:
    """Why its time is up at `now`; "": it is not. While its host is lost, nothing of its limit runs out."""
    start_s, stop_s, out_s = start_by_s(job), last_stop_s(job), None if lost else run_out_s(job)
    if out_s is not None and out_s <= now:
        return f"its time limit of {job.terms.time_limit_s} s is over"
    if stop_s is not None and stop_s <= now:
        ends = f"{job.terms.end_within_s} s after its submission"
        return f"its deadline: it was to be over {ends}, which leaves only its stop grace"
    if job.state is JobState.PENDING and start_s is not None and start_s <= now:
        return f"it was to start within {job.terms.start_within_s} s of its submission"
    return ""


def in_words(job: Job, now: float, *, lost: bool = False) -> str:
    """What is said of the time that is left; "": it has no limits. `lost`: its host is."""
    told = []
    if job.ending and not job.final:
        told.append(f"it is being stopped: {job.ending}")
    elif job.state in LIVE and not lost and (run_out := run_out_s(job)) is not None:
        told.append(f"its time limit stops it in {max(0.0, run_out - now):.0f} s")
    if job.state is JobState.PENDING and (start_s := start_by_s(job)) is not None:
        told.append(f"given up if it has not started in {max(0.0, start_s - now):.0f} s")
    if not job.final and not job.ending and (stop_s := last_stop_s(job)) is not None:
        told.append(f"its deadline stops it in {max(0.0, stop_s - now):.0f} s")
    return "".join(f"; {text}" for text in told)
