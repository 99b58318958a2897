"""What the queue owes its jobs at each turn, before anything is placed: who is let go, and who is at an end."""

from __future__ import annotations

from ..gangs import together
from ..state.cluster import Cluster
from . import deadlines, depend, shares


def look(cluster: Cluster, now: float) -> None:
    """Bring all jobs up to date at `now`."""
    shares.look(cluster, now)
    deadlines.enforce(cluster, now)
    together.look(cluster, now)
    depend.release(cluster, now)
    for job_id in cluster.books.arrays.let_in():
        cluster.enqueue(cluster.jobs[job_id])
