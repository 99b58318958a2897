"""Dependencies: whether the jobs that a job depends on have ended as it wants, are yet to end, or never will so.

A job may only name jobs that were submitted before it, which the API sees to, so there are no circles. One that can
never be met ends its job, and in the same turn whoever depends on that one. They are asked about before the first start
only: what has started once, and lost its host, starts again.
"""

from __future__ import annotations

from ..state.cluster import Cluster
from ..state.jobs import Job
from ..state.tables import JobEvent, JobState
from ..state.terms import Dependency, When

SHOWN = 3  # of those that are waited for, in a sentence
_WANTED = {When.OK: "to succeed", When.ANY: "to end", When.NOT_OK: "not to succeed"}


def release(cluster: Cluster, now: float) -> None:
    """Let go whoever has what it depends on; end whoever can never have it."""
    while cluster.books.unjudged:
        waiting, cluster.books.unjudged = sorted(cluster.books.unjudged), set()
        for job_id in waiting:
            job = cluster.jobs.get(job_id)
            if job is not None and job.state is JobState.PENDING and job.depends:
                _judge(cluster, job, now)


def _judge(cluster: Cluster, job: Job, now: float) -> None:
    open_ = False
    for dependency in job.terms.dependencies:
        why = never(cluster, dependency)
        if why:
            cluster.change_job(job, JobEvent.UNMET, now, f"it can never start: {why}")
            return
        open_ |= not cluster.jobs[dependency.job].final
    if not open_:
        job.freed = True
        cluster.enqueue(job)
        cluster.books.unjudged.discard(job.id)


def never(cluster: Cluster, dependency: Dependency) -> str:
    """Why the dependency can never be met; "": it is met, or may be yet."""
    other = cluster.jobs.get(dependency.job)
    if other is None:
        return f"it depends on {dependency.job}, which is not known any more"
    if not other.final or dependency.when is When.ANY:
        return ""
    if (other.state is JobState.SUCCEEDED) == (dependency.when is When.OK):
        return ""
    why = other.message if other.attempt_count else ""  # one that never started has a long story of its own
    end = f"{other.state.value}: {why}" if why else other.state.value
    return f"it waited for {_name(other)} {_WANTED[dependency.when]}, which is {end}"


def in_words(cluster: Cluster, job: Job) -> str:
    """What the job still waits for."""
    jobs = [(cluster.jobs.get(d.job), d.when) for d in job.terms.dependencies]
    left = [f"{_name(o)} ({o.state.value}) {_WANTED[when]}" for o, when in jobs if o is not None and not o.final]
    if not left:
        return "waits for jobs that it depends on; they have ended, and the next turn decides"
    more = [f"{len(left) - SHOWN} others"] if len(left) > SHOWN else []
    return f"waits for {', '.join([*left[:SHOWN], *more])}"


def _name(job: Job) -> str:
    return f"{job.id} {job.name}" if job.name else job.id
