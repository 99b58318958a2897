"""How an explanation is printed: of a job that waits, or of one that is not submitted yet."""

from __future__ import annotations

import click

from gpupool.client.requests import state_name
from gpupool.v1 import scheduler_pb2

from . import views
from .output import pairs, table

_WAITS = {
    scheduler_pb2.JOB_WAIT_BACKOFF: "its next attempt's time",
    scheduler_pb2.JOB_WAIT_HELD: "an operator: `gpupool release` lets it start again",
    scheduler_pb2.JOB_WAIT_BRAKE: "the mass failure brake: see `gpupool brake`",
    scheduler_pb2.JOB_WAIT_DISARMED: "`gpupool arm`: fencing is disarmed, and its host was lost",
    scheduler_pb2.JOB_WAIT_AFTER: "a job that must run before it",
    scheduler_pb2.JOB_WAIT_QUEUE: "its queue: see `gpupool queue list`",
    scheduler_pb2.JOB_WAIT_QUOTA: "jobs of its queue to end: it uses as much as it may",
    scheduler_pb2.JOB_WAIT_USER_LIMIT: "jobs of its user to end: they use as much as they may",
    scheduler_pb2.JOB_WAIT_ARRAY: "others of its array",
    scheduler_pb2.JOB_WAIT_GANG: "others of its gang",
    scheduler_pb2.JOB_WAIT_DEPENDENCY: "the end of a job that it depends on",
}


def show(found: scheduler_pb2.Explanation, *, wide: bool) -> None:
    """Print it for people; host by host if `wide`."""
    facts = [("id", found.id), ("state", state_name(found.state)), ("summary", found.summary)]
    facts += [("impossible", why) for why in found.impossible]
    near = "" if found.wait or found.impossible else found.nearest.summary  # what keeps the job itself comes first
    facts += [("nearest miss", near), ("waits for", _WAITS.get(found.wait, ""))]
    facts += [("queue position", str(found.queue_position or "")), ("room by", views.moment(found.estimated_start_s))]
    pairs(facts)
    if found.reasons:
        click.echo()
        table(("HOSTS", "REASON"), [[str(count.hosts), _reason(count.reason)] for count in found.reasons])
    if wide and found.hosts:
        click.echo()
        table(("HOST", "REASON", "DETAIL"), [[v.host, _reason(v.reason) or "fits", v.detail] for v in found.hosts])


def _reason(reason: int) -> str:
    return views.enum_name(scheduler_pb2.Reason, reason).lower().replace("_", " ")
