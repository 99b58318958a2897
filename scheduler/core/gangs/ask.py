"""What members of a gang ask of hosts: their shape, and where they may be beside those of them that run."""

from __future__ import annotations

from collections.abc import Sequence

from ..fitting import own
from ..state.cluster import Cluster
from ..state.jobs import Job
from .arrange import Ask, cell_of


def ask_of(cluster: Cluster, members: Sequence[Job]) -> Ask:
    """What the members ask of hosts, beside others of their gang that have a place."""
    first, member = members[0], members[0].terms.member
    shunned = tuple(s for s in first.labels if own.shunned(cluster, s))
    request = own.asked(cluster, first)
    if member is None:
        return Ask(request, first.labels, shunned)
    there = [cluster.jobs[job_id] for job_id in cluster.books.gangs.unfinished(member.gang)]
    live = [a for job in there if (a := cluster.allocations.get(job.allocation_id or "")) is not None]
    at = [(cluster.hosts[a.host], a.units) for a in live]
    used = frozenset(cell_of(host, member.spread, units) for host, units in at if member.spread) - {""}
    homes = sorted({cell_of(host, member.pack, units) for host, units in at if member.pack} - {""})
    return Ask(request, first.labels, shunned, member.spread, member.pack, used, homes[0] if homes else "")
