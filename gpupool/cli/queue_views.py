"""What tables show of what a job asks of the queue. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from gpupool.client.requests import state_name
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from . import views


def jobs(found: Iterable[job_pb2.Job], now_s: float, *, wide: bool = False) -> views.View:
    """As `views.jobs`, with all elements of an array, or members of a gang, in one row, where its first one is."""
    listed = list(found)
    header, rows = views.jobs(listed, now_s, wide=wide)
    shown: dict[str, tuple[list[str], list[job_pb2.Job]]] = {}
    for job, row in zip(listed, rows, strict=True):
        shown.setdefault(of_many(job.spec) or job.id, (row, []))[1].append(job)
    return header, [_array(header, row, jobs) if of_many(jobs[0].spec) else row for row, jobs in shown.values()]


def of_many(spec: job_pb2.JobSpec) -> str:
    """The array or the gang that it is of; "": none."""
    return spec.array.id or spec.gang.id


def _array(header: Sequence[str], row: list[str], jobs: list[job_pb2.Job]) -> list[str]:
    """The row of the first of an array or a gang, made into that of all that were found."""
    array, gang = jobs[0].spec.array, jobs[0].spec.gang
    states = Counter(job.status.state for job in jobs)
    told = ", ".join(f"{count} {state_name(state)}" for state, count in sorted(states.items()))
    at_once = f", {array.parallel} at once" if array.parallel else ""
    blank = [text if column in views.SHARED else "" for column, text in zip(header, row, strict=True)]
    what = f"array of {array.count}{at_once}" if array.id else f"gang of {gang.count}"
    blank[0], blank[2], blank[-1] = of_many(jobs[0].spec), told, what
    return blank


def job_facts(job: job_pb2.Job) -> list[tuple[str, str]]:
    """Lines of `show`."""
    spec = job.spec
    times = (
        ("time limit", spec.time_limit_s),
        ("start within", spec.start_within_s),
        ("end within", spec.end_within_s),
    )
    array, gang = spec.array, spec.gang
    return [
        ("gang", f"{gang.id}, member {gang.index} of {gang.count}{_gang(gang)}" if gang.id else ""),
        ("array", f"{array.id}, element {array.index} of {array.count}" if array.id else ""),
        ("queue", f"{spec.queue or 'default'}, for {spec.user}" if spec.user else spec.queue),
        ("preemptible", "yes" if spec.preemptible else ""),
        ("depends on", ", ".join(f"{d.job} ({_when(d)})" for d in spec.dependencies)),
        *((what, f"{seconds} s" if seconds else "") for what, seconds in times),
        ("ending", job.status.ending if not job.status.finished_s else ""),
    ]


def _gang(gang: job_pb2.Gang) -> str:
    said = (
        f"spread over {gang.spread_over}" if gang.spread_over else "",
        f"on one {gang.pack_into}" if gang.pack_into else "",
        "a lost member starts again alone" if gang.on_member_loss == job_pb2.Gang.RESTART_MEMBER else "",
    )
    return "".join(f"; {text}" for text in said if text)


def _when(dependency: job_pb2.Dependency) -> str:
    names = {job_pb2.Dependency.ANY: "any end", job_pb2.Dependency.NOT_OK: "not ok"}
    return names.get(dependency.when, "ok")


QUEUES = ("QUEUE", "TENANT", "STATE", "GPUS", "GUARANTEED", "LIMIT", "RUNNING", "PENDING", "SHARE")
QUEUES_WIDE = (*QUEUES, "WEIGHT", "USER GPUS", "USER JOBS", "PRIORITY", "CPUS", "MEMORY")


def queues(found: Iterable[scheduler_pb2.Queue], *, wide: bool = False) -> views.View:
    """One row for each queue; GUARANTEED and LIMIT are GPUs."""
    return QUEUES_WIDE if wide else QUEUES, [[*_queue(q), *(_queue_wide(q) if wide else ())] for q in found]


def _queue(queue: scheduler_pb2.Queue) -> list[str]:
    settings = queue.settings
    return [
        queue.name,
        settings.tenant or queue.name,
        "suspended" if settings.suspended else "open",
        str(queue.used.gpus),
        str(settings.guaranteed.gpus or ""),
        _limit(settings.limit, "gpus"),
        str(queue.running),
        str(queue.pending),
        f"{queue.share:.3f}",
    ]


def _queue_wide(queue: scheduler_pb2.Queue) -> list[str]:
    settings = queue.settings
    return [
        str(settings.weight or 1),
        _limit(settings.user_limit, "gpus"),
        str(settings.user_jobs) if settings.HasField("user_jobs") else "",
        _priorities(settings),
        _of(str(queue.used.cpus), _limit(settings.limit, "cpus")),
        _of(views.size(queue.used.memory_mib) or "0", _limit(settings.limit, "memory_mib")),
    ]


def queue_facts(queue: scheduler_pb2.Queue) -> list[tuple[str, str]]:
    """What `queue show` says."""
    settings = queue.settings
    why = f": {settings.suspended_reason}" if settings.suspended_reason else ""
    return [
        ("queue", queue.name),
        ("tenant", f"{settings.tenant or queue.name}, weight {settings.weight or 1}"),
        ("suspended", f"by {settings.suspended_by}{why}" if settings.suspended else ""),
        ("jobs", f"{queue.running} running, {queue.pending} pending"),
        ("uses", _amounts(queue.used)),
        ("guaranteed", _amounts(settings.guaranteed)),
        ("at most", _amounts(settings.limit)),
        ("each user", ", ".join(filter(None, (_amounts(settings.user_limit), _user_jobs(settings))))),
        ("priorities", _priorities(settings)),
        ("share", f"{queue.share:.3f}"),
        ("changed", f"{views.moment(settings.at_s)} by {settings.by}" if settings.at_s else ""),
    ]


def _amounts(amounts: records_pb2.Amounts) -> str:
    parts = (
        f"{amounts.gpus} GPUs" if amounts.HasField("gpus") else "",
        f"{amounts.cpus} CPUs" if amounts.HasField("cpus") else "",
        (views.size(amounts.memory_mib) or "0MiB") if amounts.HasField("memory_mib") else "",
    )
    return ", ".join(filter(None, parts))


def _user_jobs(settings: records_pb2.QueueIntent) -> str:
    return f"{settings.user_jobs} jobs" if settings.HasField("user_jobs") else ""


def _limit(amounts: records_pb2.Amounts, name: Literal["gpus", "cpus", "memory_mib"]) -> str:
    if not amounts.HasField(name):
        return ""
    return str(getattr(amounts, name)) if name != "memory_mib" else views.size(amounts.memory_mib) or "0"


def _of(used: str, limit: str) -> str:
    return f"{used}/{limit}" if limit else used


def _priorities(settings: records_pb2.QueueIntent) -> str:
    low = str(settings.priority_min) if settings.HasField("priority_min") else ""
    high = str(settings.priority_max) if settings.HasField("priority_max") else ""
    return f"{low}..{high}" if low or high else ""
