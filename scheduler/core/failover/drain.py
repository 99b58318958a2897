"""Planned work on a host: which of its VMs are asked to stop now, so that their jobs start elsewhere.

It only asks. What was asked stands in the allocation's own record, and all else is derived from the operator's intent
and what is committed, so that a drain goes on under another leader, can be changed and can be called off. A job whose
VM has stopped for a drain goes back to the queue for nothing: no restart is counted, none is waited for (`retry.py`).

It must never stop a VM of a host that is lost (that is fencing's), nor anything while the mass failure brake is on:
what it stops must be able to start again.
"""

from __future__ import annotations

from ..fitting.own import barred, case
from ..place import Placer
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job, Outcome
from ..state.tables import AllocationState, HostState

_OVER = (AllocationState.ENDED, AllocationState.LOST)


def drain(cluster: Cluster, placer: Placer, now: float) -> int:
    """Ask VMs of draining hosts to stop, as far as each drain allows; returns how many. Call it after `place`."""
    if cluster.brake is not None:
        return 0
    asked = 0
    claimed: set[str] | None = None  # hosts whose room is spoken for by a VM that has been asked to stop
    for name in sorted(cluster.draining):
        host = cluster.hosts[name]
        wanted = host.drain
        if wanted is None or wanted.paused or host.state is not HostState.READY:
            continue
        room = wanted.at_once - stopping(cluster, host) if wanted.at_once else len(host.allocations)
        for allocation, job in _running(cluster, host):
            if room <= 0:
                break
            if wanted.wait:
                claimed = _claims(cluster, placer) if claimed is None else claimed
                if not _claim(cluster, placer, job, claimed):
                    continue
            allocation.stop_reason = f"drain: {wanted.reason}" if wanted.reason else f"drain of {host.name}"
            allocation.stop_requested_s, allocation.stop_grace_s = now, wanted.grace_s
            cluster.note_stop(allocation)
            asked += 1
            room -= 1
    return asked


def stopping(cluster: Cluster, host: Host) -> int:
    """VMs of the host that were asked to stop, for whatever reason, and have not ended."""
    mine = (cluster.allocations[a] for a in host.allocations)
    return sum(bool(a.stop_reason) and a.state not in _OVER for a in mine)


def _running(cluster: Cluster, host: Host) -> list[tuple[Allocation, Job]]:
    """What is still to be asked, in the order in which their jobs would be placed: the first get the best places."""
    mine = (cluster.allocations[a] for a in host.allocations)
    left = [a for a in mine if not a.stop_reason and a.state not in _OVER and a.job in cluster.jobs]
    jobs = [(a, cluster.jobs[a.job]) for a in left]
    return sorted(jobs, key=lambda pair: (-pair[1].priority, pair[1].arrival, pair[0].id))


def _claims(cluster: Cluster, placer: Placer) -> set[str]:
    """Where jobs that were asked to move, and have no new place yet, will go: a host for each, as far as there are."""
    claimed: set[str] = set()
    for job_id in sorted(_on_the_move(cluster)):
        _claim(cluster, placer, cluster.jobs[job_id], claimed)
    return claimed


def _on_the_move(cluster: Cluster) -> list[str]:
    asked = [(a, cluster.jobs[a.job]) for a in cluster.allocations.values() if a.stop_reason and a.job in cluster.jobs]
    moving = [job.id for a, job in asked if job.cancel_reason is None and job.allocation_id == a.id]
    return [*moving, *(job_id for job_id in cluster.pending if _moved(cluster.jobs[job_id]))]


def _moved(job: Job) -> bool:
    return not job.hold and bool(job.attempts) and job.attempts[-1].outcome is Outcome.STOPPED


def _claim(cluster: Cluster, placer: Placer, job: Job, claimed: set[str]) -> bool:
    """Take the best host that has room for the job now and is nobody's claim; False if there is none.

    One claim a host: it may have room for more, but then the next is found as soon as this one is placed.
    """
    mine = case(cluster, job)
    for host in placer.takers(cluster, mine[0] if mine else job.request):
        if host not in claimed and not (mine and barred(cluster.hosts[host], mine)):
            claimed.add(host)
            return True
    return False
