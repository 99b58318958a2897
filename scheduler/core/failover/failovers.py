"""The history of lost sessions: what was lost, on what evidence, and where each job lives on. For people; it decides
nothing.

It is derived from the jobs at each turn, so that no event can be missed, and stands once it is settled.
"""

from __future__ import annotations

from ..state.cluster import Cluster
from ..state.jobs import Job, Outcome
from ..state.losses import Failover, FenceRecord, LostVm
from ..state.tables import JobState

KEPT = 200  # the newest
_HELD = "held: "


def begin(cluster: Cluster, host: str, fence: FenceRecord) -> None:
    """A session was lost with VMs. To be called while the lost attempts still count as running."""
    jobs = [cluster.jobs.get(cluster.allocations[a].job) for a in fence.allocations]
    vms = [LostVm(a, job.id) for a, job in zip(fence.allocations, jobs, strict=True) if job and job.allocation_id == a]
    if not vms:
        return
    cluster.failovers[host, fence.session] = Failover(host, fence, vms)
    cluster.dirty.failovers.add((host, fence.session))
    oldest = sorted(cluster.failovers, key=lambda key: (cluster.failovers[key].fence.fenced_s, key))
    for key in oldest[:-KEPT]:
        del cluster.failovers[key]
        cluster.dirty.failovers.add(key)


def look(cluster: Cluster, now: float) -> None:
    """Bring what is not settled up to date."""
    for key in sorted(cluster.failovers):
        failover = cluster.failovers[key]
        if failover.done_s:
            continue
        changed = [_follow(cluster, vm) for vm in failover.vms]
        if not failover.brake and (why := _held_up(cluster, failover)):
            failover.brake, changed = why, [True]
        if all(map(_settled, failover.vms)):
            failover.done_s, changed = now, [True]
        if any(changed):
            cluster.dirty.failovers.add(key)


def _held_up(cluster: Cluster, failover: Failover) -> str:
    """What keeps its jobs from being restarted now."""
    if all(vm.placed_s or _settled(vm) for vm in failover.vms):
        return ""
    if cluster.intent.disarmed:
        return f"fencing was disarmed: {cluster.intent.reason}"
    return cluster.brake.reason if cluster.brake is not None else ""


def _settled(vm: LostVm) -> bool:
    return bool(vm.outcome) and not vm.outcome.startswith(_HELD)


def _follow(cluster: Cluster, vm: LostVm) -> bool:
    """Whether something new is to be told of a VM's job."""
    if _settled(vm):
        return False
    before = (vm.host, vm.placed_s, vm.started_s, vm.outcome)
    job = cluster.jobs.get(vm.job)
    if job is None:
        vm.outcome = "its record is gone"
    else:
        _tell(vm, job)
    return before != (vm.host, vm.placed_s, vm.started_s, vm.outcome)


def _tell(vm: LostVm, job: Job) -> None:
    lost = int(vm.allocation.rpartition(".")[2])
    since = [a for a in job.attempts if a.number > lost]
    ran = next((a for a in since if a.started_s), None)
    next_life = ran or next((a for a in reversed(since) if a.outcome is None or job.final), None)
    vm.host, vm.placed_s = (next_life.host, next_life.created_s) if next_life else ("", 0.0)
    gone = next((a for a in since if a.outcome is Outcome.HOST_LOST), None)
    vm.outcome = ""
    if ran is not None:
        vm.started_s, vm.outcome = ran.started_s, f"runs on {ran.host}"
    elif gone is not None:
        vm.outcome = f"lost again, with {gone.host}"
    elif job.final:
        vm.outcome = job.message if job.state is not JobState.CANCELLED else f"cancelled: {job.message}"
    elif job.hold:
        vm.outcome = f"{_HELD}{job.hold}"
