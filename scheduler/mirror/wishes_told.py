"""Events beside those of states: what operators want now, what the leader holds back, and that a drain is done.

Pure: from two versions of a record to what is told of them. It never tells a state's change, that is the mirror's.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2


def told(ids: tuple[str, ...], before: Message | None, after: Message | None) -> Iterator[scheduler_pb2.Event]:
    """What happened between two versions of a record, in words of its own; nothing where only a state changed."""
    match before, after:
        case records_pb2.HostIntent() | None, records_pb2.HostIntent():
            yield from _changed("host", ids[-1], _wishes(before), _wishes(after), _wisher(before, after))
        case records_pb2.HostRecord(), records_pb2.HostRecord():
            yield from _changed("host", ids[-1], _held_out(before), _held_out(after), after.held_out or "let in again")
        case records_pb2.ClusterIntent() | None, records_pb2.ClusterIntent():
            yield from _changed("cluster", "fencing", _armed(before), _armed(after), _who(after.by, after.reason))
        case records_pb2.ClusterRecord() | None, records_pb2.ClusterRecord():
            yield from _changed("cluster", "restarts", _braked(before), _braked(after), after.brake.reason)
        case job_pb2.JobStatus(), job_pb2.JobStatus():
            yield from _changed("job", ids[-1], _held(before), _held(after), after.hold or "released")


def drained(host: str) -> scheduler_pb2.Event:
    """The last VM of a draining host has gone, with all that it held."""
    return _event("host", host, "DRAINING", "DRAINED", "no VM is left")


def _changed(kind: str, subject: str, before: str, after: str, reason: str) -> Iterator[scheduler_pb2.Event]:
    if before != after:
        yield _event(kind, subject, before, after, reason)


def _event(kind: str, subject: str, before: str, after: str, reason: str) -> scheduler_pb2.Event:
    event = scheduler_pb2.Event(kind=kind, subject=subject, to=after, reason=reason)
    setattr(event, "from", before)
    return event


def _wishes(intent: records_pb2.HostIntent | None) -> str:
    if intent is None:
        return "OPEN"
    wanted = []
    if intent.cordoned:
        wanted.append("CORDONED")
    if intent.HasField("drain"):
        wanted.append("TO BE DRAINED" if intent.drain.paused else "DRAINING")
    if intent.maintenance:
        wanted.append("MAINTENANCE")
    return ",".join(wanted) or "OPEN"


def _wisher(before: records_pb2.HostIntent | None, after: records_pb2.HostIntent) -> str:
    """Whose wish it is that is new, and why."""
    if after.maintenance != (before is not None and before.maintenance):
        return _who(after.maintenance_by, after.maintenance_reason)
    if after.HasField("drain") and (before is None or before.drain != after.drain):
        return _who(after.drain.by, after.drain.reason)
    return _who(after.by, after.reason)


def _who(by: str, reason: str) -> str:
    return f"{by}: {reason}" if reason else by


def _held_out(record: records_pb2.HostRecord) -> str:
    return "HELD OUT" if record.held_out else "IN"


def _armed(intent: records_pb2.ClusterIntent | None) -> str:
    return "DISARMED" if intent is not None and intent.disarmed else "ARMED"


def _braked(record: records_pb2.ClusterRecord | None) -> str:
    return "BRAKED" if record is not None and record.HasField("brake") else "FREE"


def _held(status: job_pb2.JobStatus) -> str:
    return "HELD" if status.hold else "FREE"
