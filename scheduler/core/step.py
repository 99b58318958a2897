"""What facts mean: `step` applies one event, and what follows from it, to the cluster.

It decides when an attempt has ended and what becomes of its job, and when a lost host counts as fenced. It must never
let a job run again before there is evidence that its last VM is dead.
"""

from __future__ import annotations

from dataclasses import replace

from .failover import quarantine
from .failover.fence import advance, armed_changed, intent_changed, intent_noted, session_changed
from .failover.power import power_fenced
from .failover.retry import end_attempt, units_clean
from .queueing import hold
from .queueing.ends import cancel
from .queueing.shares import capacity_of
from .state import limits
from .state.cluster import Cluster
from .state.events import (
    ClusterIntentChanged,
    Event,
    HostIntentChanged,
    InventoryChanged,
    JobCancelRequested,
    JobIntentChanged,
    JobSubmitted,
    PowerFenced,
    QueueChanged,
    SessionChanged,
    UnitReported,
    VmReported,
)
from .state.facts import InventoryFact, UnitFact, UnitState
from .state.hosts import Allocation, Host, Node
from .state.hugepages import MAY_HAVE_PAGES, pool_of
from .state.jobs import Job, Outcome
from .state.tables import (
    ALLOCATION,
    AllocationEvent,
    AllocationState,
    HostEvent,
    HostState,
    JobEvent,
    JobState,
    Transition,
)

WARNINGS_KEPT = 16  # of one attempt, the newest
_REPORTED = {
    state: AllocationEvent[state.value]
    for state in (AllocationState.PREPARING, AllocationState.RUNNING, AllocationState.STOPPING, AllocationState.ENDED)
}


def step(cluster: Cluster, event: Event, now: float) -> None:
    """Apply `event`, seen at `now` (Unix time, seconds). Telling the same fact twice changes nothing."""
    match event:
        case SessionChanged():
            session_changed(cluster, cluster.host(event.host), event.fact, now)
            _inventory_ready(cluster, cluster.host(event.host), now)
        case InventoryChanged():
            _inventory_changed(cluster, cluster.host(event.host), event.fact, now)
            quarantine.look(cluster, cluster.host(event.host))
        case UnitReported():
            _unit_reported(cluster, event)
            quarantine.look(cluster, cluster.host(event.host))
        case VmReported():
            _vm_reported(cluster, event, now)
        case JobSubmitted():
            _job_submitted(cluster, event, now)
        case JobCancelRequested():
            _cancel_requested(cluster, event, now)
        case ClusterIntentChanged():
            _cluster_intent_changed(cluster, event, now)
        case JobIntentChanged():
            hold.intended(cluster, event.job, event.intent, now)
        case QueueChanged():
            cluster.books.queues.changed(event.queue, event.intent)
            cluster.capacity_epoch += 1  # who was refused for it is to be asked again
        case PowerFenced():
            host = cluster.host(event.host)
            power_fenced(cluster, host, event)
            advance(cluster, host, now)
            _inventory_ready(cluster, host, now)
        case HostIntentChanged():
            host = cluster.host(event.host)
            host.intent = event.intent
            quarantine.look(cluster, host)
            cluster.touch(host)
            intent_changed(cluster, host, now)
            _inventory_ready(cluster, host, now)


def _cluster_intent_changed(cluster: Cluster, event: ClusterIntentChanged, now: float) -> None:
    before, cluster.intent = cluster.intent, event.intent
    intent_noted(cluster)
    if before.disarmed == event.intent.disarmed:
        return
    words = ("disarmed", "armed") if before.disarmed else ("armed", "disarmed")
    cluster.log.append(Transition("cluster", "fencing", *words, f"{event.intent.by}: {event.intent.reason}"))
    armed_changed(cluster, now)
    for name in sorted(cluster.hosts):
        _inventory_ready(cluster, cluster.hosts[name], now)


def _inventory_changed(cluster: Cluster, host: Host, fact: InventoryFact | None, now: float) -> None:
    if fact == host.inventory:
        return
    host.inventory = fact
    only = fact.nodes[0][0] if fact is not None and len(fact.nodes) == 1 else None
    units = fact.units if fact is not None else ()
    host.units = {u.id: u for u in units} if only is None else {u.id: _placed_unit(u, only) for u in units}
    host.nodes = {}
    cluster.books.shares.host_has(host.name, capacity_of(fact))
    for node_id, cores, memory_mib in fact.nodes if fact is not None else ():
        host.nodes[node_id] = Node(node_id, cores, memory_mib, set(cores), memory_mib)
    for pages in fact.hugepages if fact is not None else ():
        if pages.node in host.nodes:
            host.nodes[pages.node].hugepages[pages.size_kib] = pool_of(pages)
    there = [cluster.allocations[allocation_id] for allocation_id in sorted(host.allocations)]
    for allocation in there:
        allocation.pages_seen = bool(allocation.hugepage_size_kib) and allocation.state in MAY_HAVE_PAGES
        cluster.account(host, allocation, taken=True)  # all else about it stands
    for allocation in there:
        _release_if_clean(cluster, host, allocation)
    cluster.touch(host)
    _inventory_ready(cluster, host, now)


def _placed_unit(unit: UnitFact, only_node: int) -> UnitFact:
    """On a host with one NUMA node a unit can only be there, whatever its firmware fails to say."""
    return unit if unit.node >= 0 else replace(unit, node=only_node)


def _inventory_ready(cluster: Cluster, host: Host, now: float) -> None:
    current = host.inventory is not None and host.inventory.session == host.session
    if host.state is HostState.JOINING and current and host.session:
        cluster.change_host(host, HostEvent.INVENTORY, now, f"inventory of session {host.session}")


def _unit_reported(cluster: Cluster, event: UnitReported) -> None:
    host = cluster.host(event.host)
    if event.report == host.reports.get(event.unit):
        return
    cluster.touch(host)
    host.sick.discard(event.unit)
    if event.report is None:
        del host.reports[event.unit]
    else:
        host.reports[event.unit] = event.report
        if event.report.sick and event.report.state is not UnitState.QUARANTINED:
            host.sick.add(event.unit)
    allocation = cluster.allocations.get(host.held.get(event.unit, ""))
    if allocation is not None:
        _release_if_clean(cluster, host, allocation)


def _vm_reported(cluster: Cluster, event: VmReported, now: float) -> None:
    allocation = cluster.allocations.get(event.allocation)
    if allocation is None or allocation.host != event.host or allocation.session != event.session:
        return  # of an allocation that is over, or from a session that has no say in it
    _warned(cluster, allocation, event)
    reported = _REPORTED.get(event.state)
    if reported is None or (allocation.state, reported) not in ALLOCATION:
        return  # told again, or taken back: the first word on an end stands, and no agent's slip may stop us
    cluster.change_allocation(allocation, reported, event.message or f"agent of {event.host}")
    if event.state is AllocationState.ENDED:
        cluster.pages_returned(allocation)
    job = cluster.jobs.get(allocation.job)
    if job is not None and job.allocation_id == allocation.id:
        if job.terms.member is not None and job.ending:  # that it is heard may be what ends its gang
            cluster.books.gangs.touched.add(job.terms.member.gang)
        _attempt_reported(cluster, job, event, now, moved=allocation.stop_reason)
    _release_if_clean(cluster, cluster.host(event.host), allocation)


def _warned(cluster: Cluster, allocation: Allocation, event: VmReported) -> None:
    """Keep with the attempt what befell its devices: the agent forgets it with the allocation."""
    warnings = event.warnings[-WARNINGS_KEPT:]
    if not warnings:
        return  # as of most
    job = cluster.jobs.get(allocation.job)
    attempt = job.attempts[-1] if job is not None and job.attempts else None
    if job is None or attempt is None or attempt.number != allocation.attempt or warnings == attempt.warnings:
        return
    attempt.warnings = warnings
    cluster.dirty.jobs.add(job.id)


def _attempt_reported(cluster: Cluster, job: Job, event: VmReported, now: float, *, moved: str) -> None:
    attempt = job.attempts[-1]
    if event.started_s and not attempt.started_s:  # dated by the agent's clock: between the decision and now, by ours
        attempt.started_s = min(max(event.started_s, attempt.created_s), now)
        cluster.leaving.add(event.host)
    if event.state is AllocationState.RUNNING and job.state is JobState.STARTING:
        cluster.change_job(job, JobEvent.STARTED, now, f"runs on {event.host}")
    if event.state is AllocationState.ENDED:
        outcome = event.outcome or Outcome.CRASHED
        if outcome is Outcome.CRASHED and limits.fell_short(job, event.started_s, event.ended_s, now):
            job.ending = ""
        end_attempt(cluster, job, outcome, now, exit_code=event.exit_code, message=event.message, moved=moved)


def _release_if_clean(cluster: Cluster, host: Host, allocation: Allocation) -> None:
    """An ended allocation goes once each of its units is proven clean after it, or is out of use.

    A unit is out of use if it is quarantined, or if the agent says nothing of it and does not offer it: it is gone, or
    another uses it. Should it come back, the agent proves it anew before it counts as free.
    """
    if allocation.state is not AllocationState.ENDED:
        return
    current = host.inventory is not None and host.inventory.session == allocation.session
    for unit in allocation.units:
        report = host.reports.get(unit)
        if report is None and current and (unit not in host.units or host.units[unit].unfit):
            continue
        if report is None or report.session != allocation.session or report.allocation != allocation.id:
            return
        if report.state not in (UnitState.FREE, UnitState.QUARANTINED):
            return
    cluster.release(allocation)
    cluster.dirty.deleted[allocation.id] = allocation
    units_clean(cluster, allocation)


def _job_submitted(cluster: Cluster, event: JobSubmitted, now: float) -> None:
    job = event.job
    if job.id in cluster.jobs:
        return
    cluster.jobs[job.id] = job
    cluster.books.on_record(job)
    cluster.enqueue(job)
    cluster.dirty.jobs.add(job.id)
    if job.cancel_reason is not None:
        cluster.change_job(job, JobEvent.CANCELLED, now, job.cancel_reason)


def _cancel_requested(cluster: Cluster, event: JobCancelRequested, now: float) -> None:
    job = cluster.jobs.get(event.job)
    if job is not None:
        cancel(cluster, job, event.reason or "cancelled", now)
