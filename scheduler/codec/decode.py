"""From stored values to the core: facts become events, the leader's own records become its state again.

A value that does not parse is logged and passed over: one bad record must not stop the scheduler.
"""

from __future__ import annotations

import logging
from enum import Enum
from functools import lru_cache
from math import inf
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from gpupool.store.keys import Kind, parse
from gpupool.store.port import KeyValue
from gpupool.store.types import TYPES
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2

from ..core.state import events, facts, losses, terms
from ..core.state.amounts import Amounts
from ..core.state.cluster import Cluster
from ..core.state.hosts import Allocation, Host
from ..core.state.hugepages import HugepagesFact
from ..core.state.jobs import Attempt, Job, NumaPolicy, Outcome, Request
from ..core.state.rules import Rules
from ..core.state.tables import AllocationState, HostState, JobState
from ..mirror.interned import same
from ..mirror.records import Ids
from .decode_rules import labels_of, models_of, rules_of, vendor_named

_log = logging.getLogger(__name__)
FACTS = frozenset(  # what others than the leader write, and it minds
    {Kind.SESSION, Kind.INVENTORY, Kind.VM, Kind.UNIT, Kind.JOB_SPEC, Kind.JOB_CANCEL}
    | {Kind.HOST_INTENT, Kind.CLUSTER_INTENT, Kind.QUEUE, Kind.JOB_INTENT}
)
UNREADABLE = (DecodeError, KeyError, ValueError)
WARNING_CHARS = 300  # of one warning, kept with the attempt


_Member = TypeVar("_Member", bound=Enum)


def _members(of: type[_Member], wire: type, prefix: str) -> dict[int, _Member]:
    """Our names by the numbers on the wire, as far as we know them."""
    numbers = wire.items()  # type: ignore[attr-defined]
    known = of.__members__
    return {number: known[name.removeprefix(prefix)] for name, number in numbers if name.removeprefix(prefix) in known}


_JOB_STATE = _members(JobState, job_pb2.JobState, "JOB_STATE_")
_OUTCOME = _members(Outcome, job_pb2.Outcome, "OUTCOME_")
_EVIDENCE = _members(losses.Evidence, job_pb2.Evidence, "EVIDENCE_")
_NUMA = _members(NumaPolicy, job_pb2.NumaPolicy, "NUMA_POLICY_")
_NUMA[job_pb2.NUMA_POLICY_UNSPECIFIED] = NumaPolicy.PREFERRED
_GUARD = _members(facts.GuardKind, records_pb2.GuardKind, "GUARD_KIND_")
_UNIT_STATE = _members(facts.UnitState, records_pb2.UnitState, "UNIT_STATE_")
_ALLOCATION_STATE = _members(AllocationState, records_pb2.AllocationState, "ALLOCATION_STATE_")
_HOST_STATE = _members(HostState, records_pb2.HostState, "HOST_STATE_")


def request_of(spec: job_pb2.JobSpec) -> Request:
    """The shape of a job, as placement sees it."""
    gpus = spec.gpus
    models = models_of(gpus)
    return _request(
        spec.image,
        gpus.count,
        models[0] if len(models) == 1 else "",
        gpus.memory_mib,
        spec.cpus,
        spec.memory_mib,
        _NUMA[spec.numa],
        spec.vm.hugepage_size_kib if spec.HasField("vm") else 0,
        rules_of(spec),
    )


@lru_cache(maxsize=4096)  # as few shapes have many jobs
def _request(  # noqa: PLR0917 - by name they would be a dict, made each time
    image: str, gpus: int, gpu: str, gpu_mib: int, cpus: int, mib: int, numa: NumaPolicy,
    pages_kib: int, rules: Rules | None,
) -> Request:  # fmt: skip
    return same(Request(image, gpus, gpu, gpu_mib, cpus, mib, numa, pages_kib, rules))


def job_of(job_id: str, record: records_pb2.JobRecord, arrival: int) -> Job:
    """A fresh job from its spec; `arrival` is the revision at which it was written."""
    spec = record.spec
    job = Job(
        id=job_id,
        request=request_of(spec),
        arrival=arrival,
        submitted_s=record.submitted_s,
        priority=spec.priority,
        name=spec.name,
        terms=terms_of(spec),
        labels=same(labels_of(spec.labels)),
    )
    if spec.hold:
        job.hold, job.held_s = "it was submitted on hold", record.submitted_s
    if spec.HasField("restart"):
        restart = spec.restart
        job.restart_priority, job.after = restart.priority, tuple(restart.after)
        if restart.HasField("max_restarts"):
            job.max_restarts = restart.max_restarts
        if restart.HasField("max_start_failures"):
            job.max_start_failures = restart.max_start_failures
        if restart.HasField("max_host_deaths"):
            job.max_host_deaths = restart.max_host_deaths
    if spec.HasField("placement"):
        job.max_failures_per_host = spec.placement.max_failures_per_host
    return job


def terms_of(spec: job_pb2.JobSpec) -> terms.Terms:
    """What the job asks of the queue."""
    array = spec.array if spec.HasField("array") else None
    return _terms(
        tuple([(d.job, d.when) for d in spec.dependencies]),
        spec.time_limit_s,
        spec.start_within_s,
        spec.end_within_s,
        spec.keep_s,
        (array.id, array.index, array.parallel) if array is not None and array.id else None,
        spec.queue,
        spec.user,
        spec.preemptible,
        spec.stop_grace_s,
        member_of(spec.gang) if spec.HasField("gang") and spec.gang.id else None,
    )


@lru_cache(maxsize=4096)
def _terms(  # noqa: PLR0917 - as above
    others: tuple[tuple[str, int], ...], limit_s: int, start_s: int, end_s: int, keep_s: int,
    element: tuple[str, int, int] | None, queue: str, user: str, preemptible: bool, grace_s: int,
    member: terms.Member | None,
) -> terms.Terms:  # fmt: skip
    return terms.Terms(
        dependencies=tuple(terms.Dependency(job, terms.When(when or terms.When.OK.value)) for job, when in others),
        time_limit_s=limit_s,
        start_within_s=start_s,
        end_within_s=end_s,
        keep_s=keep_s,
        element=terms.Element(*element) if element is not None else None,
        queue=queue or terms.DEFAULT_QUEUE,
        user=user,
        preemptible=preemptible,
        stop_grace_s=grace_s or terms.Terms().stop_grace_s,
        member=member,
    )


def member_of(gang: job_pb2.Gang) -> terms.Member:
    """What a job of a gang shares with the others."""
    on_loss = terms.OnLoss(gang.on_member_loss or terms.OnLoss.RESTART_ALL.value)
    return terms.Member(gang.id, gang.index, gang.count, on_loss, gang.spread_over, gang.pack_into)


def restore_status(job: Job, status: job_pb2.JobStatus) -> None:
    """Give a job the state that the leader last recorded for it."""
    job.state = _JOB_STATE[status.state]
    job.attempts = [_attempt(a) for a in status.attempts]
    job.attempt_count = status.attempt_count
    job.restarts, job.start_failures = status.restarts, status.start_failures
    job.finished_s, job.not_before_s = status.finished_s, status.not_before_s
    job.exit_code = status.exit_code if status.HasField("exit_code") else None
    job.message = status.message
    job.cancel_reason = (status.message or "cancelled") if status.cancel_requested else None
    job.ending = status.ending
    job.hold, job.held_s, job.host_deaths = status.hold, status.held_s, status.host_deaths


def _attempt(wire: job_pb2.Attempt) -> Attempt:
    return Attempt(
        number=wire.number,
        host=same(wire.host),
        units=same(tuple(wire.units)),
        created_s=wire.created_s,
        started_s=wire.started_s,
        ended_s=wire.ended_s,
        outcome=_OUTCOME[outcome] if (outcome := wire.outcome) else None,
        exit_code=wire.exit_code if wire.HasField("exit_code") else None,
        message=wire.message,
        evidence=_evidence(wire.evidence),
        warnings=tuple(wire.warnings),
    )


def _evidence(value: int) -> losses.Evidence | None:
    return _EVIDENCE[value] if value else None


def restore_host(host: Host, record: records_pb2.HostRecord) -> None:
    """Give a host the state that the leader last recorded for it."""
    host.state = _HOST_STATE[record.state]
    host.session, host.boot_id, host.simulated = record.session, record.boot_id, record.simulated
    host.guard, host.machine = guard_of(record.guard), record.machine
    host.since_s, host.boot_s = record.since_s, record.boot_s
    host.lost_s = tuple(record.lost_s)
    host.held_out, host.held_out_s = record.held_out, record.held_out_s
    host.devices = tuple(map(device_of, record.fence_devices))
    if record.HasField("last_fence"):
        host.last_fence = _fence(record.last_fence)
    if record.HasField("power"):
        power = record.power
        host.power = losses.PowerFencing(
            power.device, power.session, power.tries, power.last_s, power.next_s, power.error, machine=power.machine
        )


def device_of(wire: records_pb2.FenceDevice) -> losses.DeviceOf:
    """Which machine a fence device is of."""
    return losses.DeviceOf(wire.mark, wire.machine)


def _fence(wire: records_pb2.FenceRecord) -> losses.FenceRecord:
    return losses.FenceRecord(
        session=wire.session,
        evidence=_evidence(wire.evidence) or losses.Evidence.NOTHING_RAN,
        detail=wire.detail,
        lost_s=wire.lost_s,
        fenced_s=wire.fenced_s,
        allocations=tuple(wire.allocations),
    )


def failover_of(wire: records_pb2.FailoverRecord) -> losses.Failover:
    """The history of one lost session."""
    vms = [losses.LostVm(v.allocation, v.job, v.host, v.placed_s, v.started_s, v.outcome) for v in wire.vms]
    return losses.Failover(wire.host, _fence(wire.fence), vms, wire.brake, wire.done_s)


def restore_cluster(cluster: Cluster, record: records_pb2.ClusterRecord) -> None:
    """Give the cluster what the leader last recorded for all hosts together."""
    cluster.settled_s, cluster.noted_s = record.settled_s, record.noted_s
    if record.HasField("brake"):
        brake = record.brake
        cluster.brake = losses.Brake(brake.since_s, brake.until_s, brake.reason, tuple(brake.hosts))


def guard_of(value: int) -> facts.GuardKind:
    """As the core calls it."""
    return _GUARD[value] if value else facts.GuardKind.NONE


def allocation_of(wire: records_pb2.Allocation, job: Job | None = None) -> Allocation:
    """An allocation as decided; its state starts at BOUND until a report says more. `job`: its own, where it is known,
    which has the same labels as the spec that is repeated here.
    """
    spec = wire.spec
    made = Allocation(
        id=wire.id,
        job=wire.job,
        attempt=wire.attempt,
        host=same(wire.host),
        session=wire.session,
        units=same(tuple(wire.units)),
        nodes=same(tuple(wire.numa_nodes)),
        cores=same(tuple([_core_of(core.SerializeToString()) for core in wire.cores])),
        memory_mib=same(tuple(wire.memory_mib_per_node)),
        created_s=wire.created_s,
        unit_identities=tuple(wire.unit_identities),
        stop_reason=(wire.stop_reason or "stop") if wire.desired == records_pb2.DESIRED_STOP else "",
        stop_requested_s=wire.stop_requested_s,
        session_nonce=same(wire.session_nonce),
        stop_grace_s=wire.stop_grace_s,
        labels=job.labels if job is not None else same(labels_of(spec.labels)),
        preempted_for=wire.preempted_for,
    )
    if spec.HasField("vm"):
        made.hugepage_size_kib = spec.vm.hugepage_size_kib
    if spec.HasField("placement"):
        made.apart, made.whole_host = labels_of(spec.placement.apart), spec.placement.whole_host
    return made


@lru_cache(maxsize=8192)
def _core_of(value: bytes) -> tuple[int, ...]:
    """A physical core; there are few different ones."""
    return same(tuple(inventory_pb2.CpuCore.FromString(value).threads))


def session_of(wire: records_pb2.Session, create_revision: int) -> facts.SessionFact:
    """A session fact; its id is the key's create revision."""
    return facts.SessionFact(
        session=create_revision,
        boot_id=wire.boot_id,
        guard=guard_of(wire.guard),
        simulated=wire.simulated,
        vms_found_dead=wire.vms_found_dead,
        nonce=wire.nonce,
        unguarded=wire.unguarded,
        ttl_s=wire.ttl_s,
        machine=wire.machine,
    )


def last_word(kv: KeyValue) -> facts.LastWord:
    """What a session said last of its guard; of one that cannot be read, that nothing is known."""
    try:
        wire = records_pb2.GuardRecord.FromString(kv.value)
        guard = facts.GuardKind.NONE if wire.unguarded else guard_of(wire.guard)
    except UNREADABLE as exc:
        _log.error("%s is unreadable, so it counts as no guard (%r)", kv.key, exc)
        return facts.LastWord(kv.mod_revision, facts.GuardKind.NONE)
    return facts.LastWord(wire.session or kv.mod_revision, guard, wire.machine)


def inventory_of(wire: inventory_pb2.Inventory) -> facts.InventoryFact:
    """An inventory fact; nodes and units come sorted."""
    nodes = sorted(wire.numa_nodes, key=lambda n: n.id)
    return facts.InventoryFact(
        session=wire.session,
        units=tuple([_unit_of(u) for u in sorted(wire.units, key=lambda u: u.id)]),
        nodes=tuple([_node_of(n.SerializeToString(deterministic=True)) for n in nodes]),
        images=same(frozenset(wire.images)),
        hugepages=tuple(
            HugepagesFact(n.id, pages.size_kib, pages.total, pages.free)
            for n in nodes
            for pages in sorted(n.hugepages, key=lambda pages: pages.size_kib)
        ),
        labels=tuple(sorted(wire.labels.items())),
    )


@lru_cache(maxsize=256)
def _node_of(value: bytes) -> tuple[int, tuple[tuple[int, ...], ...], int]:
    """A NUMA node without its hugepages; hosts of one make have the same ones."""
    node = inventory_pb2.NumaNode.FromString(value)
    cores = tuple(sorted(same(tuple(sorted(core.threads))) for core in node.cores))
    return node.id, same(cores), node.memory_mib


def _unit_of(unit: inventory_pb2.Unit) -> facts.UnitFact:
    name, vendor_id, root, addresses = unit.id, 0, "", []
    for function in reversed(unit.functions):
        address = function.address
        addresses.append(address)
        if address == name:  # the GPU itself; the first, if there are two
            vendor_id, root = function.vendor_id, function.root_bus
    return facts.UnitFact(
        id=same(name),
        model=same(unit.model),
        memory_mib=unit.gpu_memory_mib,
        node=unit.numa_node,
        functions=same(tuple(sorted(addresses))),
        unfit=unit.unfit,
        identity=unit.identity,
        vendor=vendor_named(vendor_id),
        root=same(root),
        nic=unit.nic_locality,
    )


@lru_cache(maxsize=4096)
def _unit_reported(value: bytes) -> facts.UnitReport:
    """As many units of a host say the same, so the answer is the same object."""
    return unit_report_of(records_pb2.UnitReport.FromString(value))


def unit_report_of(wire: records_pb2.UnitReport) -> facts.UnitReport:
    """The agent's word on a unit."""
    state = _UNIT_STATE[wire.state]
    return facts.UnitReport(state, wire.session, wire.allocation, wire.reason, wire.sick)


def vm_reported(host: str, allocation: str, wire: records_pb2.VmReport) -> events.VmReported:
    """The agent's word on an allocation. ValueError for a state that is not the agent's to report."""
    if wire.state in (records_pb2.ALLOCATION_STATE_BOUND, records_pb2.ALLOCATION_STATE_LOST):
        raise ValueError(f"an agent cannot report {_ALLOCATION_STATE[wire.state].value}")
    return events.VmReported(
        host=host,
        allocation=allocation,
        session=wire.session,
        state=_ALLOCATION_STATE[wire.state],
        outcome=_OUTCOME[outcome] if (outcome := wire.outcome) else None,
        exit_code=wire.exit_code if wire.HasField("exit_code") else None,
        message=wire.message,
        started_s=wire.started_s,
        ended_s=wire.ended_s,
        warnings=tuple([warning[:WARNING_CHARS] for warning in wire.warnings]),
    )


def intent_of(wire: records_pb2.HostIntent) -> facts.HostIntent:
    """What an operator wants of a host."""
    drain = wire.drain
    return facts.HostIntent(
        cordoned=wire.cordoned,
        reason=wire.reason,
        confirmed_dead_session=wire.confirmed_dead_session,
        confirmed_by=wire.confirmed_by,
        confirmed_reason=wire.confirmed_reason,
        drain=facts.Drain(drain.at_s, drain.by, drain.reason, drain.grace_s, drain.at_once, drain.wait, drain.paused)
        if wire.HasField("drain")
        else None,
        maintenance=wire.maintenance,
        maintenance_reason=wire.maintenance_reason,
        uncordoned_s=wire.uncordoned_s,
    )


def queue_intent_of(name: str, wire: records_pb2.QueueIntent) -> facts.QueueIntent:
    """What operators want of a queue."""
    why = f"by {wire.suspended_by}: {wire.suspended_reason}" if wire.suspended_reason else f"by {wire.suspended_by}"
    return facts.QueueIntent(
        tenant=wire.tenant or name,
        weight=wire.weight or 1,
        guaranteed=amounts_of(wire.guaranteed, 0),
        limit=amounts_of(wire.limit, inf),
        user_limit=amounts_of(wire.user_limit, inf),
        user_jobs=wire.user_jobs if wire.HasField("user_jobs") else inf,
        suspended=why if wire.suspended else "",
    )


def amounts_of(wire: records_pb2.Amounts, absent: float) -> Amounts:
    """Amounts, `absent` where none is given."""
    return Amounts(
        wire.gpus if wire.HasField("gpus") else absent,
        wire.cpus if wire.HasField("cpus") else absent,
        wire.memory_mib if wire.HasField("memory_mib") else absent,
    )


def restore_shares(cluster: Cluster, record: records_pb2.Shares) -> None:
    """Give the cluster what the leader last recorded of its tenants."""
    cluster.books.shares.at_s = record.at_s
    cluster.books.shares.decayed = dict(sorted(record.decayed.items()))


def job_intent_of(wire: records_pb2.JobIntent) -> facts.JobIntent:
    """What an operator, or its owner, wants of a job."""
    return facts.JobIntent(
        released_s=wire.released_s,
        by=wire.by,
        reason=wire.reason,
        held_s=wire.held_s,
        held_by=wire.held_by,
        held_reason=wire.held_reason,
        requeue_attempt=wire.requeue_attempt,
        requeue_by=wire.requeue_by,
        requeue_reason=wire.requeue_reason,
    )


def cluster_intent_of(wire: records_pb2.ClusterIntent) -> facts.ClusterIntent:
    """What an operator wants of all hosts together."""
    return facts.ClusterIntent(
        wire.disarmed, wire.reason, wire.by, wire.at_s, wire.brake_released_s, wire.brake_by, wire.brake_reason
    )


def fact(key: str, kv: KeyValue | None) -> events.Event | None:
    """The event that a change of `key` means to the core, or None: not a fact, or not readable."""
    parsed = parse(key)
    return fact_of(*parsed, kv) if parsed is not None else None


def fact_of(kind: Kind, ids: Ids, kv: KeyValue | None, record: Message | None = None) -> events.Event | None:
    """As `fact`. `record`: what `kv` says, if somebody has read it."""
    try:
        if kv is not None:
            return _told(kind, ids, kv, record)
        return _gone(kind, ids)
    except UNREADABLE as exc:
        _log.error("ignoring %s: unreadable value (%r)", kv.key if kv is not None else ids, exc)
        return None


def _gone(kind: Kind, ids: Ids) -> events.Event | None:
    """What it means that nothing is there any more."""
    match kind:
        case Kind.SESSION:
            return events.SessionChanged(ids[0], None)
        case Kind.INVENTORY:
            return events.InventoryChanged(ids[0], None)
        case Kind.UNIT:
            return events.UnitReported(ids[0], ids[1], None)
        case Kind.HOST_INTENT:
            return events.HostIntentChanged(ids[0], facts.HostIntent())
        case Kind.CLUSTER_INTENT:
            return events.ClusterIntentChanged(facts.ClusterIntent())
        case Kind.QUEUE:
            return events.QueueChanged(ids[0], None)
        case Kind.JOB_INTENT:
            return events.JobIntentChanged(ids[0], facts.JobIntent())
    return None


def _told(kind: Kind, ids: Ids, kv: KeyValue, record: Message | None) -> events.Event | None:
    if kind is Kind.UNIT:
        return events.UnitReported(ids[0], ids[1], _unit_reported(kv.value))
    if kind not in FACTS:
        return None
    match record if record is not None else TYPES[kind].FromString(kv.value):
        case records_pb2.Session() as wire:
            return events.SessionChanged(ids[0], session_of(wire, kv.create_revision))
        case inventory_pb2.Inventory() as wire:
            return events.InventoryChanged(ids[0], inventory_of(wire))
        case records_pb2.VmReport() as wire:
            return vm_reported(ids[0], ids[1], wire)
        case records_pb2.JobRecord() as wire:
            return events.JobSubmitted(job_of(ids[0], wire, kv.create_revision))
        case records_pb2.CancelRecord() as wire:
            return events.JobCancelRequested(ids[0], wire.reason)
        case records_pb2.HostIntent() as wire:
            return events.HostIntentChanged(ids[0], intent_of(wire))
        case records_pb2.ClusterIntent() as wire:
            return events.ClusterIntentChanged(cluster_intent_of(wire))
        case records_pb2.QueueIntent() as wire:
            return events.QueueChanged(ids[0], queue_intent_of(ids[0], wire))
        case records_pb2.JobIntent() as wire:
            return events.JobIntentChanged(ids[0], job_intent_of(wire))
    return None
