"""The killer-VM breaker: a job whose last hosts died with it, one after the other, is held for an operator.

A host that dies soon after it got the job counts; one that ran the job for long does not speak against it, and neither
does a host that was lost while the mass failure brake is on. Any other end of an attempt clears the count. It must
never hold a job for what it had no part in: an allocation of which the agent had not said a word yet.
"""

from __future__ import annotations

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Job, Outcome
from ..state.skew import no_earlier

LONG_RUN_S = 3600.0  # whoever ran for so long did not bring its host down by starting


def host_died(cluster: Cluster, job: Job, host: Host) -> None:
    """The job's host was lost with its VM on it, at `host.lost_s`."""
    if cluster.brake is not None:
        return
    started_s = job.attempts[-1].started_s
    lost_s = host.lost_s[-1] if host.lost_s else started_s
    if started_s and lost_s - started_s >= LONG_RUN_S:
        job.host_deaths = 0
    else:
        job.host_deaths += 1


def judge(job: Job, now: float) -> None:
    """Hold the job if it was one host too many."""
    if not 0 < job.max_host_deaths <= job.host_deaths or job.hold:
        return
    hosts = [a.host for a in job.attempts if a.outcome is Outcome.HOST_LOST][-job.host_deaths :]
    many = f"{job.host_deaths} hosts in a row died with it" if job.host_deaths > 1 else "its host died with it"
    job.hold = f"{many}: {', '.join(hosts)}"
    job.held_s = no_earlier(now, job.intent.released_s)
