"""From stored values to the core: facts become events, the leader's own records become its state again.

A value that does not parse is logged and passed over: one bad record must not stop the scheduler.
"""

from __future__ import annotations

import logging
from math import inf

from google.protobuf.message import DecodeError, Message

from gpupool.store.keys import Kind, parse
from gpupool.store.port import KeyValue
from gpupool.store.types import TYPES
from gpupool.v1 import records_pb2

from ..core.state import events, facts, losses
from ..core.state.amounts import Amounts
from ..core.state.cluster import Cluster
from ..core.state.hosts import Host
from ..mirror.records import Ids
from .decode_hosts import read_inventory, read_unit_report, vm_reported
from .decode_jobs import read_job
from .numbers import EVIDENCE, GUARD, HOST_STATE

_log = logging.getLogger(__name__)
FACTS = frozenset(  # what others than the leader write, and it minds
    {Kind.SESSION, Kind.INVENTORY, Kind.VM, Kind.UNIT, Kind.JOB_SPEC, Kind.JOB_CANCEL}
    | {Kind.HOST_INTENT, Kind.CLUSTER_INTENT, Kind.QUEUE, Kind.JOB_INTENT}
)
UNREADABLE = (DecodeError, KeyError, ValueError)


def restore_host(host: Host, record: records_pb2.HostRecord) -> None:
    """Give a host the state that the leader last recorded for it."""
    host.state = HOST_STATE[record.state]
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
        evidence=EVIDENCE[wire.evidence] if wire.evidence else losses.Evidence.NOTHING_RAN,
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
    return GUARD[value] if value else facts.GuardKind.NONE


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
        return events.UnitReported(ids[0], ids[1], read_unit_report(kv.value))
    if kind is Kind.INVENTORY:
        return events.InventoryChanged(ids[0], read_inventory(kv.value))
    if kind is Kind.JOB_SPEC:
        if record is None:
            records_pb2.JobRecord.FromString(kv.value)  # its agent will read all of it
        return events.JobSubmitted(read_job(ids[0], kv.value, kv.create_revision))
    if kind not in FACTS:
        return None
    match record if record is not None else TYPES[kind].FromString(kv.value):
        case records_pb2.VmReport() as wire:
            return vm_reported(ids[0], ids[1], wire)
        case records_pb2.Session() as wire:
            return events.SessionChanged(ids[0], session_of(wire, kv.create_revision))
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
