"""Sessions, their loss, and the evidence on which a host counts as fenced.

It decides when the VMs of a lost session are known to be dead. Without evidence a host stays in FENCING for ever:
waiting is safe, guessing is a job that runs twice.
"""

from __future__ import annotations

from ..state import limits
from ..state.cluster import Cluster
from ..state.facts import GuardKind, LastWord, SessionFact
from ..state.hosts import Host
from ..state.jobs import Outcome
from ..state.losses import Evidence, FenceRecord
from ..state.tables import AllocationEvent, AllocationState, HostEvent, HostState
from . import brake, breaker, devices, failovers, flap
from .power import seen_off
from .proof import lease_proves
from .retry import end_attempt, units_clean


def session_changed(cluster: Cluster, host: Host, fact: SessionFact | None, now: float) -> None:
    """The host's session key is now `fact`."""
    if fact == host.fact:
        return
    host.fact = fact
    if host.session == 0 and fact is not None:
        _adopt(cluster, host, fact, now)
        return
    over = fact is None or fact.session != host.session
    if fact is not None and not over and (host.guard, host.simulated) != (fact.declared, fact.simulated):
        host.guard, host.simulated = (
            fact.declared,
            fact.simulated,
        )  # a guard that died proves nothing at the lease's end
        cluster.dirty.hosts.add(host.name)
        cluster.touch(host)
    if fact is not None and not over and fact.machine not in ("", host.machine):  # an agent that tells it by now
        devices.machine_told(cluster, host, fact.machine)
    devices.seen_alive(cluster, host)
    if over and host.state in (HostState.JOINING, HostState.READY):
        why = "is gone" if fact is None else f"was followed by {fact.session}"
        cluster.change_host(host, HostEvent.SESSION_LOST, now, f"session {host.session} {why}")
        if not brake.planned(host):
            brake.host_lost(cluster, host, now)
            flap.host_lost(cluster, host, now)
    advance(cluster, host, now)


def intent_changed(cluster: Cluster, host: Host, now: float) -> None:
    """What an operator wants of the host has changed."""
    flap.intent_changed(cluster, host)
    advance(cluster, host, now)


def unwatched(cluster: Cluster, host: Host, word: LastWord | None) -> None:
    """The host's session ended, and no leader saw how: of its guard no more is believed than was said last, in `word`.

    The guard may have been taken back after a leader last watched. Without a word (its agent is of a version that
    leaves none, or deletes it) it surely may if fencing was or is disarmed since. A word of a later session says
    nothing of this one. Whoever saw a loss has put on record what was declared.
    """
    if word is not None and word.session == host.session and word.machine not in ("", host.machine):
        devices.machine_told(cluster, host, word.machine)
    if host.state not in (HostState.JOINING, HostState.READY):
        return
    watched = not cluster.intent.disarmed and cluster.intent.at_s == cluster.noted_s
    if not watched or (word is not None and word.session > host.session):
        host.guard = GuardKind.NONE
    elif word is not None and word.session == host.session:
        host.guard = min(host.guard, word.guard, key=_STRENGTH.index)


_STRENGTH = (GuardKind.NONE, GuardKind.SOFT, GuardKind.HARDWARE)


def lost_unseen(cluster: Cluster, host: Host, word: LastWord | None, now: float) -> None:
    """The host's session is gone, and this cluster never saw it alive."""
    unwatched(cluster, host, word)
    host.fact = SessionFact(
        host.session, host.boot_id, host.guard, host.simulated, vms_found_dead=False, machine=host.machine
    )
    session_changed(cluster, host, None, now)


def intent_noted(cluster: Cluster) -> None:
    """From here on this leader sees whatever sessions declare."""
    if cluster.noted_s != cluster.intent.at_s:
        cluster.noted_s = cluster.intent.at_s
        cluster.dirty.cluster = True


def armed_changed(cluster: Cluster, now: float) -> None:
    """Fencing was disarmed, or armed again: then what is still lost is dealt with as if it were lost now."""
    cluster.requeue_lost()
    brake.armed(cluster, now)
    for name in sorted(cluster.hosts):
        advance(cluster, cluster.hosts[name], now)


def advance(cluster: Cluster, host: Host, now: float) -> None:
    """Take a lost host as far as the evidence allows: SUSPECT -> FENCING -> FENCED -> JOINING.

    While fencing is disarmed, evidence at hand still counts, but none is sought: without it a host stays SUSPECT.
    """
    found = evidence(cluster, host) if host.state in (HostState.SUSPECT, HostState.FENCING) else None
    if host.state is HostState.SUSPECT and (found is not None or not cluster.intent.disarmed):
        lost_s = host.since_s
        cluster.change_host(host, HostEvent.FENCE, now, f"seeking evidence that session {host.session} is dead")
        host.since_s = lost_s
    if host.state is HostState.FENCING and found is not None:
        _fenced(cluster, host, *found, now)
    if host.state is HostState.FENCED and host.fact is not None and host.fact.session != host.session:
        _adopt(cluster, host, host.fact, now)


def evidence(cluster: Cluster, host: Host) -> tuple[Evidence, str] | None:
    """The best evidence at hand that no VM of `host.session` is alive, and its wording; None if there is none."""
    back = host.fact if host.fact is not None and host.fact.session != host.session else None
    if not host.allocations:
        return Evidence.NOTHING_RAN, "no VM was allocated there"
    if back is not None and back.boot_id != host.boot_id and host.taken_by() is None:
        return Evidence.OTHER_BOOT, f"it is back with boot id {back.boot_id}"
    if back is not None and back.boot_id == host.boot_id and back.vms_found_dead:
        return Evidence.AGENT_REPORTED_DEAD, f"session {back.session} of the same boot found no VM alive"
    if off := seen_off(host):
        return Evidence.POWER_OFF, off
    if 0 < host.intent.confirmed_dead_session == host.session:
        return Evidence.OPERATOR, f"{host.intent.confirmed_by}: {host.intent.confirmed_reason}"
    if host.fact is not None:
        return None
    powered = host.name in cluster.policy.powered
    return lease_proves(host.guard, simulated=host.simulated, powered=powered, policy=cluster.policy)


def _fenced(cluster: Cluster, host: Host, kind: Evidence, detail: str, now: float) -> None:
    lost = tuple(sorted(host.allocations))
    host.last_fence = FenceRecord(host.session, kind, detail, host.since_s, now, lost)
    failovers.begin(cluster, host.name, host.last_fence)
    cluster.change_host(host, HostEvent.EVIDENCE, now, f"{kind.value}: {detail}")
    for allocation_id in lost:
        _lose(cluster, host, allocation_id, kind, now)


def _lose(cluster: Cluster, host: Host, allocation_id: str, kind: Evidence, now: float) -> None:
    allocation = cluster.allocations[allocation_id]
    ran = allocation.state is not AllocationState.BOUND
    job = cluster.jobs.get(allocation.job)
    short = job is not None and limits.unheard(job, allocation, now)
    if allocation.state is not AllocationState.ENDED:
        cluster.change_allocation(allocation, AllocationEvent.HOST_FENCED, f"{host.name} is fenced")
    if job is not None and job.allocation_id == allocation.id:
        message = f"{host.name} lost its session {host.session}"
        if short and job.ending:  # its limit passed between the death of its host and the notice of it
            job.ending, message = "", f"{message}; nobody saw it run for all of its time limit"
        if ran:
            breaker.host_died(cluster, job, host)
        end_attempt(cluster, job, Outcome.HOST_LOST, now, message=message, evidence=kind)
    cluster.release(allocation)
    cluster.dirty.deleted[allocation.id] = allocation
    units_clean(cluster, allocation)  # whoever waited for them need wait no longer


def _adopt(cluster: Cluster, host: Host, fact: SessionFact, now: float) -> None:
    """A new session begins on a host that is new, or fenced."""
    if host.state is HostState.FENCED:
        cluster.change_host(host, HostEvent.SESSION_BEGAN, now, f"session {fact.session}")
    if host.boot_id != fact.boot_id:
        host.boot_s = now
    devices.replaced_by(cluster, host, fact.machine)
    host.session, host.boot_id, host.machine = fact.session, fact.boot_id, fact.machine
    host.guard, host.simulated = fact.declared, fact.simulated
    host.since_s = now
    cluster.note_alive(host)
    devices.seen_alive(cluster, host)
    cluster.dirty.hosts.add(host.name)
