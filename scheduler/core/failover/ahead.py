"""What an earlier leader dated later than our now: its clock was ahead of ours.

What has happened is brought back to now, in its order, and what is waited for lies no further off than it can by its
own rule. It must touch no date that names something: the brake's beginning, a hold's, a hold-out's.
"""

from __future__ import annotations

from dataclasses import replace

from ..state.cluster import Cluster
from .retry import BACKOFF_MAX_S


def bring_back(cluster: Cluster, now: float) -> None:
    """Everything that leaders decided was just read, and nothing was judged by it yet."""
    _losses(cluster, now)
    _brake(cluster, now)
    for job in cluster.jobs.values():
        if job.not_before_s > now + BACKOFF_MAX_S:
            job.not_before_s = now + BACKOFF_MAX_S
            cluster.dirty.jobs.add(job.id)
            cluster.enqueue(job)


def _losses(cluster: Cluster, now: float) -> None:
    """Losses, and the end of the last brake, which settled those before it: all by as much."""
    hosts = [host for host in cluster.hosts.values() if host.lost_s]
    ahead_s = max((cluster.settled_s, *(host.lost_s[-1] for host in hosts))) - now
    if ahead_s <= 0:
        return
    for host in hosts:
        host.lost_s = tuple(at_s - ahead_s for at_s in host.lost_s)
        cluster.dirty.hosts.add(host.name)
    cluster.settled_s = max(0.0, cluster.settled_s - ahead_s)
    cluster.dirty.cluster = True


def _brake(cluster: Cluster, now: float) -> None:
    brake, latest_s = cluster.brake, now + cluster.policy.brake.cooldown_s
    if brake is not None and brake.until_s > latest_s > now:
        cluster.brake = replace(brake, until_s=latest_s)
        cluster.dirty.cluster = True
