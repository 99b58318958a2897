"""From the core to stored values: what the leader writes."""

from __future__ import annotations

from functools import lru_cache

from gpupool.v1 import inventory_pb2, job_pb2, records_pb2

from ..core.state.cluster import Cluster
from ..core.state.hosts import Allocation, Host
from ..core.state.jobs import Attempt, Job
from ..core.state.losses import Evidence, Failover, FenceRecord
from ..core.state.tables import JobState

_JOB_STATES = {state: job_pb2.JobState.Value(f"JOB_STATE_{state.value}") for state in JobState}


def _evidence(value: Evidence) -> job_pb2.Evidence.ValueType:
    return job_pb2.Evidence.Value(f"EVIDENCE_{value.value}")


def status(job: Job) -> job_pb2.JobStatus:
    """The record of what became of a job."""
    wire = job_pb2.JobStatus(
        state=_JOB_STATES[job.state],
        attempt_count=job.attempt_count,
        submitted_s=job.submitted_s,
        message=job.message,
    )
    for attempt in job.attempts:
        _attempt(attempt, wire.attempts.add())  # filled in place: to copy a message takes as long as to make it
    for name in _SELDOM:  # a field is not written while it is zero or empty, as most are
        if value := getattr(job, name):
            setattr(wire, name, value)
    if job.cancel_reason is not None:
        wire.cancel_requested = True
    if job.exit_code is not None:
        wire.exit_code = job.exit_code
    return wire


_SELDOM = ("restarts", "start_failures", "finished_s", "not_before_s", "hold", "held_s", "host_deaths", "ending")
_SELDOM_OF_ATTEMPT = ("started_s", "ended_s", "message")


def _attempt(attempt: Attempt, wire: job_pb2.Attempt) -> None:
    wire.number, wire.host, wire.created_s = attempt.number, attempt.host, attempt.created_s
    wire.units.extend(attempt.units)
    for name in _SELDOM_OF_ATTEMPT:
        if value := getattr(attempt, name):
            setattr(wire, name, value)
    wire.warnings.extend(attempt.warnings)
    if attempt.outcome is not None:
        wire.outcome = job_pb2.Outcome.Value(f"OUTCOME_{attempt.outcome.value}")
    if attempt.exit_code is not None:
        wire.exit_code = attempt.exit_code
    if attempt.evidence is not None:
        wire.evidence = _evidence(attempt.evidence)


def host_record(host: Host) -> records_pb2.HostRecord:
    """The record of a host's state and last fence."""
    wire = records_pb2.HostRecord(
        state=records_pb2.HostState.Value(f"HOST_STATE_{host.state.value}"),
        session=host.session,
        boot_id=host.boot_id,
        simulated=host.simulated,
        since_s=host.since_s,
        boot_s=host.boot_s,
        machine=host.machine,
    )
    if host.guard.value != "NONE":
        wire.guard = records_pb2.GuardKind.Value(f"GUARD_KIND_{host.guard.value}")
    wire.lost_s.extend(host.lost_s)
    wire.held_out, wire.held_out_s = host.held_out, host.held_out_s
    if host.last_fence is not None:
        wire.last_fence.CopyFrom(_fence(host.last_fence))
    if (power := host.power) is not None:
        wire.power.CopyFrom(
            records_pb2.PowerFencing(
                device=power.device,
                tries=power.tries,
                session=power.session,
                last_s=power.last_s,
                next_s=power.next_s,
                error=power.error,
                machine=power.machine,
            )
        )
    for device in host.devices:
        wire.fence_devices.add(mark=device.mark, machine=device.machine)
    return wire


def _fence(fence: FenceRecord) -> records_pb2.FenceRecord:
    return records_pb2.FenceRecord(
        session=fence.session,
        evidence=_evidence(fence.evidence),
        detail=fence.detail,
        lost_s=fence.lost_s,
        fenced_s=fence.fenced_s,
        allocations=fence.allocations,
    )


def failover(found: Failover) -> records_pb2.FailoverRecord:
    """The record of one lost session."""
    vms = [
        records_pb2.LostVm(
            allocation=vm.allocation,
            job=vm.job,
            host=vm.host,
            placed_s=vm.placed_s,
            started_s=vm.started_s,
            outcome=vm.outcome,
        )
        for vm in found.vms
    ]
    return records_pb2.FailoverRecord(
        host=found.host, fence=_fence(found.fence), vms=vms, brake=found.brake, done_s=found.done_s
    )


def cluster_record(cluster: Cluster) -> records_pb2.ClusterRecord:
    """The record of what is decided for all hosts together."""
    wire = records_pb2.ClusterRecord(settled_s=cluster.settled_s, noted_s=cluster.noted_s)
    if (brake := cluster.brake) is not None:
        wire.brake.CopyFrom(
            records_pb2.Brake(since_s=brake.since_s, until_s=brake.until_s, reason=brake.reason, hosts=brake.hosts)
        )
    return wire


def shares(cluster: Cluster) -> records_pb2.Shares:
    """The record of what tenants have used."""
    return records_pb2.Shares(at_s=cluster.books.shares.at_s, decayed=cluster.books.shares.decayed)


def allocation(decided: Allocation, host: Host, record: bytes) -> bytes:
    """The reservation and the desired state, as the agent will read it. `record`: the job's, as it is stored.

    The spec in it is passed on as it stands there: a field of one message is, but for its tag, a field of another.
    """
    wire = _allocation(decided, host).SerializeToString() + _cores(decided.cores)
    tag, end = record[:1], _end_of_field(record)
    if tag == _SPEC_IN_RECORD and end <= len(record):
        return wire + _SPEC_IN_ALLOCATION + record[1:end]
    spec = records_pb2.JobRecord.FromString(record).spec
    return wire + records_pb2.Allocation(spec=spec).SerializeToString()


@lru_cache(maxsize=8192)
def _cores(cores: tuple[tuple[int, ...], ...]) -> bytes:
    """The field of an allocation's cores; there are few different ones. Fields may come in any order."""
    wire = records_pb2.Allocation(cores=[inventory_pb2.CpuCore(threads=core) for core in cores])
    return wire.SerializeToString()


_SPEC_IN_RECORD, _SPEC_IN_ALLOCATION = b"\x0a", b"\x5a"  # tags of fields 1 and 11, of bytes with their length
_VARINT_BITS, _VARINT_MORE = 7, 0x80


def _end_of_field(record: bytes) -> int:
    """Where the first field ends: behind its tag, its length, and so many bytes."""
    length = shift = 0
    for n, byte in enumerate(record[1:11], 2):
        length |= (byte & ~_VARINT_MORE) << shift
        if not byte & _VARINT_MORE:
            return n + length
        shift += _VARINT_BITS
    return len(record) + 1


def _allocation(decided: Allocation, host: Host) -> records_pb2.Allocation:
    addresses = [a for unit in decided.units if unit in host.units for a in host.units[unit].functions]
    addresses.sort()
    wire = records_pb2.Allocation(
        id=decided.id,
        job=decided.job,
        attempt=decided.attempt,
        host=decided.host,
        session=decided.session,
        units=decided.units,
        unit_identities=decided.unit_identities,
        session_nonce=decided.session_nonce,
        pci_addresses=addresses,
        numa_nodes=decided.nodes,
        memory_mib=sum(decided.memory_mib),
        memory_mib_per_node=decided.memory_mib,
        desired=records_pb2.DESIRED_STOP if decided.stop_reason else records_pb2.DESIRED_RUN,
        created_s=decided.created_s,
    )
    for name in _SELDOM_OF_ALLOCATION:
        if value := getattr(decided, name):
            setattr(wire, name, value)
    return wire


_SELDOM_OF_ALLOCATION = ("stop_grace_s", "preempted_for", "stop_reason", "stop_requested_s")
