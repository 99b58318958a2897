"""What keeps a job itself from being placed, whatever hosts there are."""

from __future__ import annotations

from enum import Enum

from ..failover.brake import in_words
from ..state.cluster import Cluster
from ..state.jobs import Job
from ..state.tables import JobState
from . import depend
from .order import awaited, passed_over

SHOWN = 3  # names of others, in a sentence


class JobWait(Enum):
    """Mirrors gpupool.v1.JobWait by name."""

    BACKOFF = 1
    HELD = 2
    BRAKE = 3
    DISARMED = 4
    AFTER = 5
    DEPENDENCY = 6
    ARRAY = 7
    QUEUE = 8
    QUOTA = 9
    USER_LIMIT = 10
    GANG = 11


def wait(cluster: Cluster, job: Job, now: float) -> tuple[JobWait, str] | None:
    """The first thing that keeps it, and the wording; None: it may start as soon as a host takes it."""
    if job.state is not JobState.PENDING:
        return None
    if job.hold:
        return JobWait.HELD, f"is held until an operator releases it: {job.hold}"
    if job.depends:
        return JobWait.DEPENDENCY, depend.in_words(cluster, job)
    if why := cluster.books.arrays.in_words(job):
        return JobWait.ARRAY, why
    if job.lost and cluster.intent.disarmed:
        why = f"{cluster.intent.by}: {cluster.intent.reason}"
        return JobWait.DISARMED, f"lost its host, and is not restarted while fencing is disarmed ({why})"
    if job.lost and cluster.brake is not None:
        return JobWait.BRAKE, f"lost its host, and {in_words(cluster.brake, now)}"
    if others := awaited(cluster, job):
        return JobWait.AFTER, f"restarts after {_names(others)}, which must run first"
    if why := _gang(cluster, job):
        return JobWait.GANG, why
    not_before_s = cluster.books.gangs.not_before_s(job)
    if not_before_s > now:
        return JobWait.BACKOFF, f"waits {not_before_s - now:.0f} s before its next attempt"
    refused = cluster.books.queues.refusal(job, len(cluster.books.gangs.party(job)))
    return (JobWait[refused[0].name], refused[1]) if refused else None


def _gang(cluster: Cluster, job: Job) -> str:
    """Why its gang keeps it; "": it does not."""
    gangs = cluster.books.gangs
    if job.terms.member is None or gangs.lead(job):
        return ""
    live, held, unknown = gangs.kept(job)
    gang = f"its gang {job.terms.member.gang}, which starts together"
    if unknown:
        return f"waits for {gang}: of {job.terms.member.count} members {unknown} are not known; submit it again"
    if live:
        stops = _listed(cluster, live)
        return f"waits for {gang}: its VMs must be gone before it starts again ({stops})"
    return (
        f"waits for {gang}: something keeps {_listed(cluster, held)}; see `gpupool explain {held[0]}`" if held else ""
    )


def _listed(cluster: Cluster, jobs: list[str]) -> str:
    shown = [f"{job_id} {cluster.jobs[job_id].state.value}" for job_id in jobs[:SHOWN]]
    return ", ".join(shown + ([f"{len(jobs) - SHOWN} others"] if len(jobs) > SHOWN else []))


def ignored(cluster: Cluster, job: Job) -> str:
    """What is said of jobs that it shall wait for, but that wait for it; "": there are none."""
    others = passed_over(cluster, job)
    return f"; it does not wait for {_names(others)}, which would wait for it" if others else ""


def _names(jobs: list[Job]) -> str:
    shown = [f"{job.name} ({job.id}, {job.state.value})" for job in jobs[:SHOWN]]
    more = [f"{len(jobs) - SHOWN} others"] if len(jobs) > SHOWN else []
    return ", ".join(shown + more)
