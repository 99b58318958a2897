"""What is shown of a lost host and of its VMs' next lives. Pure; `now_s` is Unix time."""

from __future__ import annotations

from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from .views import View, duration, enum_name, moment

LOST_VMS = ("VM", "JOB", "PLACED", "ON", "STARTED", "OUTCOME")
EXACT_S = 600  # up to here, tenths of a second are told

Pairs = list[tuple[str, str]]


def seconds(value: float) -> str:
    """A duration that somebody measures: "7.0s", "1h2m"."""
    return f"{max(0.0, value):.1f}s" if value < EXACT_S else duration(value)


def facts(record: records_pb2.FailoverRecord, now_s: float) -> Pairs:
    """What stands above the VMs of one loss."""
    fence = record.fence
    evidence = enum_name(job_pb2.Evidence, fence.evidence)
    return [
        ("host", f"{record.host}, session {fence.session}"),
        ("lost", moment(fence.lost_s)),
        ("fenced", f"{moment(fence.fenced_s)}, {seconds(fence.fenced_s - fence.lost_s)} after the loss"),
        ("evidence", f"{evidence}: {fence.detail}" if fence.detail else evidence),
        ("held up", record.brake),
        ("vms", f"{len(record.vms)} lost{_how_many_settled(record)}" if record.vms else "none was there"),
        ("settled", _settled(record, now_s)),
    ]


def _how_many_settled(record: records_pb2.FailoverRecord) -> str:
    left = sum(not vm.outcome for vm in record.vms)
    return f", {left} not settled yet" if left else ""


def _settled(record: records_pb2.FailoverRecord, now_s: float) -> str:
    if not record.vms:
        return ""
    if record.done_s:
        return f"{moment(record.done_s)}, {seconds(record.done_s - record.fence.lost_s)} after the loss"
    return f"not yet, {seconds(now_s - record.fence.lost_s)} after the loss"


def vms(record: records_pb2.FailoverRecord) -> View:
    """One row for each VM that was lost."""
    lost_s = record.fence.lost_s
    return LOST_VMS, [
        [vm.allocation, vm.job, _after(vm.placed_s, lost_s), vm.host, _after(vm.started_s, lost_s), vm.outcome]
        for vm in record.vms
    ]


def _after(at_s: float, lost_s: float) -> str:
    return f"+{seconds(at_s - lost_s)}" if at_s else ""


def unproven(host: scheduler_pb2.Host, now_s: float) -> Pairs:
    """A host that is lost now, and of whose VMs nobody knows that they are dead."""
    record = host.record
    return [
        ("host", f"{host.name}, session {record.session}"),
        ("lost", f"{moment(record.since_s)}, {seconds(now_s - record.since_s)} ago"),
        ("evidence", f"none yet: {host.vms} VMs may be alive, and their jobs wait"),
        ("power", power(host, now_s)),
    ]


def power(host: scheduler_pb2.Host, now_s: float) -> str:
    """How far switching the host off has come, or why its device is of no use; "" where nothing tried."""
    if host.power_not_its_own:
        return f"not used, as {host.power_not_its_own}"
    record, tried = host.record, host.record.power
    if not tried.device or tried.session != record.session:
        return ""
    tries = f"{tried.tries} {'try' if tried.tries == 1 else 'tries'}"
    if not tried.error:
        return f"{tried.device} switched it off at {moment(tried.last_s)} ({tries})"
    again = f", again in {duration(tried.next_s - now_s)}" if tried.next_s > now_s else ""
    return f"{tried.device} failed: {tried.error} ({tries}, last {moment(tried.last_s)}{again})"
