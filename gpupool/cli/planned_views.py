"""What is shown of planned work and of what holds failures up. Pure; `now_s` is Unix time."""

from __future__ import annotations

from gpupool.v1 import records_pb2, scheduler_pb2

from .failover_views import power
from .views import age, duration, enum_name, moment

Pairs = list[tuple[str, str]]


def safety(cluster: scheduler_pb2.Cluster, now_s: float) -> Pairs:
    """Whether failures are acted on."""
    return [
        ("fencing", fencing(cluster, now_s)),
        ("brake", brake(cluster, now_s)),
        ("room for restarts", room(cluster)),
        ("no proof of loss", unproven(cluster)),
        ("fence devices", strangers(cluster)),
    ]


def room(cluster: scheduler_pb2.Cluster) -> str:
    """Whether any one loss leaves room for restarts; "" where the site keeps none."""
    if not cluster.HasField("reservation"):
        return ""
    what = cluster.reservation.domain_label or "host"
    uncovered = cluster.reservation.uncovered
    if not uncovered:
        return f"kept for the loss of any one {what}"
    shown = ", ".join(each.domain for each in uncovered[:3]) + (", ..." if len(uncovered) > 3 else "")
    jobs = sum(len(each.jobs) for each in uncovered)
    return f"NOT for the loss of {shown}: {len(uncovered)} in all, {jobs} jobs would find no place"


def unproven(cluster: scheduler_pb2.Cluster) -> str:
    """Hosts whose loss nobody could prove, and what to do about it; "" where each could be."""
    found = cluster.unprovable
    if not found or cluster.intent.disarmed:  # disarmed, no host has a guard, and that is meant
        return ""
    shown = ", ".join(f"{each.host} ({each.why})" for each in found[:5]) + (", ..." if len(found) > 5 else "")
    many = f"{len(found)} hosts whose" if len(found) > 1 else "1 host whose"
    return (
        f"{many} loss would wait for its return or an operator: {shown}; give them a hardware watchdog "
        "(gpupool-agent --watchdog) or a fence device (gpupool-scheduler --power)"
    )


def strangers(cluster: scheduler_pb2.Cluster) -> str:
    """Fence devices of hosts that are not known; "" where there are none."""
    names = cluster.powered_unknown
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} in the --power file for hosts that are not known: {shown}; a slip in a name?"


def fencing(cluster: scheduler_pb2.Cluster, now_s: float) -> str:
    """Armed or not, by whom and why."""
    intent = cluster.intent
    if not intent.disarmed:
        return "armed"
    who = f"{intent.by}: {intent.reason}" if intent.by else intent.reason
    return f"DISARMED for {age(intent.at_s, now_s) or 'a while'} ({who}); `gpupool arm` ends it"


def brake(cluster: scheduler_pb2.Cluster, now_s: float) -> str:
    """Whether the mass failure brake is on, why, and until when."""
    found = cluster.record.brake
    if not cluster.record.HasField("brake"):
        return (
            f"not on, last ended {age(cluster.record.settled_s, now_s)} ago" if cluster.record.settled_s else "not on"
        )
    if cluster.intent.brake_released_s >= found.since_s > 0:
        return f"ON, and about to end: {cluster.intent.brake_by} released it ({cluster.intent.brake_reason})"
    ends = f"ends by itself in {duration(found.until_s - now_s)} if nothing else is lost, or by"
    until = ends if found.until_s else "ends by"
    why = f"{found.reason} ({', '.join(found.hosts)})"
    return f"ON for {age(found.since_s, now_s)}: {why}; {until} `gpupool brake release`"


def planned(host: scheduler_pb2.Host, now_s: float) -> Pairs:
    """What an operator, or the leader, wants of the host."""
    record, intent = host.record, host.intent
    return [
        ("cordoned", _why(intent.reason, intent.by) if intent.cordoned else ""),
        ("held out", _held_out(host, now_s) if record.held_out else ""),
        ("drain", drain(host, now_s)),
        ("maintenance", _why(intent.maintenance_reason, intent.maintenance_by) if intent.maintenance else ""),
        ("power", power(host, now_s)),
    ]


def _held_out(host: scheduler_pb2.Host, now_s: float) -> str:
    since = f" (for {age(host.record.held_out_s, now_s)})" if host.record.held_out_s else ""
    return f"{host.record.held_out}{since}; `gpupool uncordon {host.name}` lets it in"


def _why(reason: str, by: str) -> str:
    return f"{reason or 'no reason given'} ({by or 'unknown'})"


def drain(host: scheduler_pb2.Host, now_s: float) -> str:
    """How far its drain has come; "" without one."""
    wanted = host.intent.drain
    if not host.intent.HasField("drain"):
        return f"{progress(host)}: {host.ordered_drain}" if host.ordered_drain else ""
    return f"{progress(host)}; for {age(wanted.at_s, now_s)}: {_why(wanted.reason, wanted.by)}"


def progress(host: scheduler_pb2.Host) -> str:
    """How far a drain has come, in a few words."""
    wanted, state = host.intent.drain, enum_name(records_pb2.HostState, host.record.state)
    if not host.vms:
        return "drained"
    left = f"{host.vms} VM{'' if host.vms == 1 else 's'} left"
    if wanted.paused:
        return f"{left}, waits for its turn"
    if host.record.state != records_pb2.HOST_STATE_READY:
        return f"{left}, but it is {state}"
    patient = wanted.wait or not host.intent.HasField("drain")
    waits = ", the others once there is a place" if patient and host.vms_stopping < host.vms else ""
    return f"{left}, {host.vms_stopping} stopping{waits}"


def guard(host: scheduler_pb2.Host) -> str:
    """What kills its VMs when its session ends, or why nothing is declared to."""
    kind = enum_name(records_pb2.GuardKind, host.record.guard).lower()
    session = host.session
    weak = f"; it was refused {session.guard_refused}" if session.guard_refused else ""
    if kind == "hardware" and session.watchdog_s:
        return f"{kind}, watchdog of {session.watchdog_s} s{weak}"
    return f"{kind}{weak}" if kind else (f"none: {session.unguarded}" if session.unguarded else "none")


def machine(host: scheduler_pb2.Host) -> str:
    """Of which machine the host's session was, and, if it is another, which holds its name by now."""
    record, session = host.record, host.session
    if session.machine == record.machine or not host.HasField("session") or not record.session:
        return record.machine
    return f"{record.machine or 'unknown'}; its name is held by {session.machine or 'unknown'} at {session.address}"


def last_fence(record: records_pb2.HostRecord, evidence: str) -> str:
    """The evidence on which it last counted as dead, and when."""
    fence = record.last_fence
    if not fence.session:
        return ""
    lost = f", {len(fence.allocations)} VMs lost" if fence.allocations else ""
    return f"{evidence} at {moment(fence.fenced_s)}, session {fence.session}{lost}: {fence.detail}"
