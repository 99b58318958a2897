"""Sessions, their loss, and the evidence on which a host counts as fenced.

It decides when the VMs of a lost session are known to be dead. Without evidence a host stays in FENCING for ever:
waiting is safe, guessing is a job that runs twice.
"""

from __future__ import annotations

from .model import Cluster, Evidence, FenceRecord, GuardKind, Host, Outcome, SessionFact
from .power import seen_off
from .retry import end_attempt
from .tables import AllocationEvent, AllocationState, HostEvent, HostState


def session_changed(cluster: Cluster, host: Host, fact: SessionFact | None, now: float) -> None:
    """The host's session key is now `fact`."""
    if fact == host.fact:
        return
    host.fact = fact
    if host.session == 0 and fact is not None:
        _adopt(cluster, host, fact, now)
        return
    over = fact is None or fact.session != host.session
    if fact is not None and not over and (host.guard, host.simulated) != (fact.guard, fact.simulated):
        host.guard, host.simulated = fact.guard, fact.simulated  # a guard that died proves nothing at the lease's end
        cluster.dirty.hosts.add(host.name)
        cluster.touch(host)
    if over and host.state in (HostState.JOINING, HostState.READY):
        why = "is gone" if fact is None else f"was followed by {fact.session}"
        cluster.change_host(host, HostEvent.SESSION_LOST, now, f"session {host.session} {why}")
    advance(cluster, host, now)


def advance(cluster: Cluster, host: Host, now: float) -> None:
    """Take a lost host as far as the evidence allows: SUSPECT -> FENCING -> FENCED -> JOINING."""
    if host.state is HostState.SUSPECT:
        cluster.change_host(host, HostEvent.FENCE, now, f"seeking evidence that session {host.session} is dead")
    if host.state is HostState.FENCING:
        found = evidence(cluster, host)
        if found is not None:
            _fenced(cluster, host, *found, now)
    if host.state is HostState.FENCED and host.fact is not None and host.fact.session != host.session:
        _adopt(cluster, host, host.fact, now)


def evidence(cluster: Cluster, host: Host) -> tuple[Evidence, str] | None:
    """The best evidence at hand that no VM of `host.session` is alive, and its wording; None if there is none."""
    back = host.fact if host.fact is not None and host.fact.session != host.session else None
    if not host.allocations:
        return Evidence.NOTHING_RAN, "no VM was allocated there"
    if back is not None and back.boot_id != host.boot_id:
        return Evidence.OTHER_BOOT, f"it is back with boot id {back.boot_id}"
    if back is not None and back.vms_found_dead:
        return Evidence.AGENT_REPORTED_DEAD, f"session {back.session} of the same boot found no VM alive"
    if off := seen_off(host):
        return Evidence.POWER_OFF, off
    if 0 < host.intent.confirmed_dead_session == host.session:
        return Evidence.OPERATOR, f"{host.intent.confirmed_by}: {host.intent.confirmed_reason}"
    trusted = host.simulated or cluster.policy.soft_guard_is_enough
    if host.fact is None and host.guard is GuardKind.SOFT and trusted:
        return Evidence.LEASE_EXPIRED_GUARDED, "the lease ran out; a soft guard was armed to kill its VMs before that"
    return None


def _fenced(cluster: Cluster, host: Host, kind: Evidence, detail: str, now: float) -> None:
    lost_s = host.since_s
    lost = tuple(sorted(host.allocations))
    cluster.change_host(host, HostEvent.EVIDENCE, now, f"{kind.value}: {detail}")
    for allocation_id in lost:
        _lose(cluster, host, allocation_id, kind, now)
    host.last_fence = FenceRecord(host.session, kind, detail, lost_s, now, lost)


def _lose(cluster: Cluster, host: Host, allocation_id: str, kind: Evidence, now: float) -> None:
    allocation = cluster.allocations[allocation_id]
    if allocation.state is not AllocationState.ENDED:
        cluster.change_allocation(allocation, AllocationEvent.HOST_FENCED, f"{host.name} is fenced")
    job = cluster.jobs.get(allocation.job)
    if job is not None and job.allocation_id == allocation.id:
        message = f"{host.name} lost its session {host.session}"
        end_attempt(cluster, job, Outcome.HOST_LOST, now, message=message, evidence=kind)
    cluster.release(allocation)
    cluster.dirty.deleted[allocation.id] = allocation


def _adopt(cluster: Cluster, host: Host, fact: SessionFact, now: float) -> None:
    """A new session begins on a host that is new, or fenced."""
    if host.state is HostState.FENCED:
        cluster.change_host(host, HostEvent.SESSION_BEGAN, now, f"session {fact.session}")
    if host.boot_id != fact.boot_id:
        host.boot_s = now
    host.session, host.boot_id = fact.session, fact.boot_id
    host.guard, host.simulated = fact.guard, fact.simulated
    host.since_s = now
    cluster.dirty.hosts.add(host.name)
