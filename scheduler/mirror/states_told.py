"""Events of states: what a record that changed says has happened to a host, a unit, a VM or a job.

Pure: from two versions of a record to what is told of them, the same whichever replica tells it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from google.protobuf.message import Message

from gpupool.store.keys import Kind
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

# Whose `state` field makes events, and how the subject is called.
_TOLD = {Kind.HOST: "host", Kind.UNIT: "unit", Kind.VM: "allocation", Kind.JOB_STATUS: "job"}


def _state_name(record: Message | None) -> str:
    return _plain_state(record) + (",SICK" if _sick(record) else "")


def _plain_state(record: Message | None) -> str:
    if record is None:
        return ""
    field = record.DESCRIPTOR.fields_by_name["state"]
    assert field.enum_type is not None
    number = getattr(record, "state")  # noqa: B009 - messages are untyped here
    known = field.enum_type.values_by_number.get(number)
    if known is None:
        return f"state {number}"  # of a later version
    prefix = {"HostState": "HOST", "UnitState": "UNIT", "AllocationState": "ALLOCATION", "JobState": "JOB"}
    return str(known.name).removeprefix(prefix[field.enum_type.name] + "_STATE_")


def told(
    kind: Kind, ids: tuple[str, ...], before: Message | None, after: Message | None
) -> Iterator[scheduler_pb2.Event]:
    """What happened between two versions of a record, with the state in between that one commit may have passed by."""
    if kind in _TOLD:
        yield from _events(_TOLD[kind], ids, before, after)


def _events(
    kind: str, ids: tuple[str, ...], before: Message | None, after: Message | None
) -> Iterator[scheduler_pb2.Event]:
    if after is None and kind == "allocation":
        return
    subject = "/".join(ids) if kind == "unit" else ids[-1]  # an allocation's id names it without its host
    states = [(_state_name(before), ""), *_passed(before, after), (_state_name(after) or "GONE", _why(after))]
    for (old, _), (new, why) in pairwise(states):
        if old != new or _sick(before) != _sick(after):
            event = scheduler_pb2.Event(kind=kind, subject=subject, to=new, reason=why)
            setattr(event, "from", old)
            yield event


def _passed(before: Message | None, after: Message | None) -> Iterator[tuple[str, str]]:
    """A fence and a lost attempt are told even where the host is back, or the job placed anew, in the same commit."""
    match before, after:
        case records_pb2.HostRecord(), records_pb2.HostRecord() if (
            after.last_fence.session != before.last_fence.session
        ):
            yield "FENCED", _fenced(after.last_fence)
        case job_pb2.JobStatus(), job_pb2.JobStatus() if 0 < before.attempt_count < after.attempt_count:
            ended = [attempt for attempt in after.attempts if attempt.number == before.attempt_count]
            yield "PENDING", ended[0].message if ended else ""


def _sick(record: Message | None) -> str:
    """What is wrong with a unit that is not quarantined for it yet."""
    if not isinstance(record, records_pb2.UnitReport) or record.state == records_pb2.UNIT_STATE_QUARANTINED:
        return ""
    return record.sick


def _held(report: records_pb2.UnitReport) -> bool:
    return report.state == records_pb2.UNIT_STATE_HELD and bool(report.allocation)


def _why(record: Message | None) -> str:
    match record:
        case job_pb2.JobStatus() | records_pb2.VmReport():
            return record.message
        case records_pb2.UnitReport() if _sick(record):
            return f"{record.sick}; held by {record.allocation}" if _held(record) else record.sick
        case records_pb2.UnitReport():
            return record.reason or record.proof
        case records_pb2.HostRecord() if record.state == records_pb2.HOST_STATE_FENCED:
            return _fenced(record.last_fence)
        case records_pb2.HostRecord() if record.state == records_pb2.HOST_STATE_FENCING:
            return f"no evidence yet that session {record.session} is dead"
        case records_pb2.HostRecord():
            return f"session {record.session}"
    return ""


def _fenced(fence: records_pb2.FenceRecord) -> str:
    return f"{job_pb2.Evidence.Name(fence.evidence).removeprefix('EVIDENCE_')}: {fence.detail}"
