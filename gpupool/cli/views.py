"""What tables show of a message: headers and rows. Pure; `now_s` is Unix time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from gpupool.client.requests import state_name
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2

from . import demands

View = tuple[Sequence[str], list[list[str]]]

JOBS = ("ID", "NAME", "STATE", "GPUS", "HOST", "ATTEMPT", "AGE")
JOBS_WIDE = (*JOBS, "MODEL", "UNITS", "CPUS", "MEMORY", "PRIORITY", "EXIT")
SHARED = ("NAME", "GPUS", "AGE", "MODEL", "CPUS", "MEMORY", "PRIORITY")  # by all elements of an array
UNITS = ("HOST", "UNIT", "MODEL", "NUMA", "STATE", "ALLOCATION")
UNITS_WIDE = (*UNITS, "MEMORY", "FUNCTIONS", "LINK", "RESETS", "RECLAIMS", "IDENTITY", "PROOF", "REASON")
ATTEMPTS = ("ATTEMPT", "HOST", "UNITS", "STARTED", "RAN", "OUTCOME", "EXIT", "EVIDENCE", "MESSAGE")


def enum_name(enum: Any, value: int) -> str:
    """A value's name without the enum's own, "" for the unspecified one; a newer scheduler's by number."""
    names = enum.DESCRIPTOR.values_by_number
    if value == 0 or value not in names:
        return str(value) if value else ""
    return str(names[value].name).removeprefix(names[0].name.removesuffix("UNSPECIFIED"))


def duration(seconds: float) -> str:
    """Two units at most: "12s", "3m12s", "5h3m", "2d4h"."""
    whole = max(0, int(seconds))
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def age(since_s: float, now_s: float) -> str:
    """How long ago; "" when it has not been."""
    return duration(now_s - since_s) if since_s else ""


def moment(at_s: float) -> str:
    """Local time to the second; "" when it has not been."""
    return datetime.fromtimestamp(at_s, UTC).astimezone().isoformat(" ", "seconds")[:19] if at_s else ""


def size(mib: int) -> str:
    """Such as "512MiB" or "8GiB"; "" for 0."""
    if not mib:
        return ""
    return f"{mib // 1024}GiB" if mib % 1024 == 0 else f"{mib}MiB"


def page_size(kib: int) -> str:
    """Such as "2MiB" or "1GiB"; "" for 0."""
    return f"{kib}KiB" if kib % 1024 else size(kib // 1024)


def link(function: inventory_pb2.PciFunction) -> str:
    """Such as "x16 32 GT/s", and what it could be where that is more: "x8 16 GT/s of x16 32 GT/s"; "" if unknown."""
    now = _link(function.link_width, function.link_speed_mts)
    best = _link(function.link_width_max, function.link_speed_max_mts)
    return f"{now} of {best}" if now and best and now != best else now


def _link(width: int, speed_mts: int) -> str:
    return f"x{width} {speed_mts / 1000:g} GT/s" if width and speed_mts else ""


def exit_of(message: job_pb2.JobStatus | job_pb2.Attempt) -> str:
    """The exit code, "" while there is none."""
    return str(message.exit_code) if message.HasField("exit_code") else ""


def jobs(found: Iterable[job_pb2.Job], now_s: float, *, wide: bool = False) -> View:
    """One row for each job."""
    header = (*(JOBS_WIDE if wide else JOBS), "MESSAGE")
    return header, [[*_job(job, now_s), *(_job_wide(job) if wide else ()), job.status.message] for job in found]


def _job(job: job_pb2.Job, now_s: float) -> list[str]:
    status = job.status
    host = status.attempts[-1].host if status.attempts else ""
    return [
        job.id,
        job.spec.name,
        state_name(status.state),
        str(job.spec.gpus.count),
        host,
        str(status.attempt_count or ""),
        age(status.submitted_s, now_s),
    ]


def _job_wide(job: job_pb2.Job) -> list[str]:
    spec, attempts = job.spec, job.status.attempts
    return [
        " or ".join(sorted({*spec.gpus.models, spec.gpus.model} - {""})),
        ",".join(attempts[-1].units) if attempts else "",
        str(spec.cpus),
        size(spec.memory_mib),
        str(spec.priority),
        exit_of(job.status),
    ]


def job_facts(job: job_pb2.Job, now_s: float) -> list[tuple[str, str]]:
    """What `show` says above the attempts."""
    spec, status = job.spec, job.status
    return [
        ("id", job.id),
        ("name", spec.name),
        ("state", state_name(status.state) + (", to be cancelled" if _ending(job) else "")),
        ("message", status.message),
        ("held", f"{status.hold} (since {moment(status.held_s)}); `gpupool release {job.id}`" if status.hold else ""),
        ("exit code", exit_of(status)),
        ("submitted", f"{moment(status.submitted_s)} ({age(status.submitted_s, now_s)} ago)"),
        ("finished", moment(status.finished_s)),
        ("not before", moment(status.not_before_s) if status.not_before_s > now_s else ""),
        ("image", spec.image),
        ("command", " ".join(spec.command)),
        ("gpus", demands.gpus(spec.gpus)),
        ("cpus", str(spec.cpus)),
        ("memory", size(spec.memory_mib)),
        ("numa", enum_name(job_pb2.NumaPolicy, spec.numa).lower()),
        *demands.placement(spec.placement),
        *_vm_facts(spec.vm),
        ("priority", str(spec.priority or "")),
        ("volumes", ", ".join(f"{volume.name} {size(volume.size_mib)} at {volume.path}" for volume in spec.volumes)),
        ("labels", labels(spec.labels)),
        ("restarts", str(status.restarts or "")),
        *(("warning", text) for text in (status.attempts[-1].warnings if status.attempts else ())),
    ]


def _vm_facts(vm: job_pb2.VmOptions) -> list[tuple[str, str]]:
    kind = vm.network.Kind.Name(vm.network.kind).lower() if vm.network.kind in vm.network.Kind.values() else "unknown"
    hypervisor = [*(["hidden"] if vm.hide_hypervisor else []), vm.hypervisor_vendor_id]
    return [
        ("hugepages", page_size(vm.hugepage_size_kib) if vm.hugepage_size_kib else ""),
        ("network", f"{kind} {vm.network.source}".rstrip() if vm.network.kind else ""),
        ("user data", f"{len(vm.user_data.encode())} bytes" if vm.user_data else ""),
        ("guest IOMMU", "yes" if vm.guest_iommu else ""),
        ("hypervisor", ", ".join(word for word in hypervisor if word)),
    ]


def _ending(job: job_pb2.Job) -> bool:
    return job.status.cancel_requested and not job.status.finished_s


def attempts(job: job_pb2.Job, now_s: float) -> View:
    """One row for each attempt that is kept."""
    return ATTEMPTS, [
        [
            str(attempt.number),
            attempt.host,
            ",".join(attempt.units),
            moment(attempt.started_s),
            duration((attempt.ended_s or now_s) - attempt.started_s) if attempt.started_s else "",
            enum_name(job_pb2.Outcome, attempt.outcome),
            exit_of(attempt),
            enum_name(job_pb2.Evidence, attempt.evidence),
            attempt.message,
        ]
        for attempt in job.status.attempts
    ]


def labels(found: Any) -> str:
    """Such as "a=1,b=2", by name."""
    return ",".join(f"{key}={found[key]}" for key in sorted(found))


def units(found: Iterable[scheduler_pb2.UnitView], *, wide: bool = False) -> View:
    """One row for each device unit."""
    rows = [[*_unit(view), *(_unit_wide(view) if wide else ())] for view in found]
    return UNITS_WIDE if wide else UNITS, rows


def _unit(view: scheduler_pb2.UnitView) -> list[str]:
    node = view.unit.numa_node
    return [view.host, view.unit.id, view.unit.model, str(node) if node >= 0 else "", unit_state(view), view.allocation]


def unit_state(view: scheduler_pb2.UnitView) -> str:
    """Its state, with what keeps it from the next job: "FREE", "UNFIT", "SICK", "HELD,SICK"."""
    state = enum_name(records_pb2.UnitState, view.state)
    bad = "UNFIT" if view.unit.unfit else "SICK" if view.report.sick else ""
    if not bad or view.state == records_pb2.UNIT_STATE_QUARANTINED:
        return state
    on_its_way = view.state in (records_pb2.UNIT_STATE_HELD, records_pb2.UNIT_STATE_RESETTING)
    return f"{state},{bad}" if on_its_way else bad


def reclaims(history: records_pb2.UnitHistory) -> str:
    """Such as "12, 1 failed, last 2.3 s"; "" before the first."""
    failed = f", {history.failures} failed" if history.failures else ""
    return f"{history.reclaims}{failed}, last {history.last_duration_s:.1f} s" if history.reclaims else ""


def _unit_wide(view: scheduler_pb2.UnitView) -> list[str]:
    functions = ",".join(function.address for function in view.unit.functions)
    first = view.unit.functions[0] if view.unit.functions else inventory_pb2.PciFunction()
    sick = f"sick: {view.report.sick}" if view.report.sick else ""
    return [
        size(view.unit.gpu_memory_mib),
        functions,
        link(first),
        ",".join(first.reset_methods),
        reclaims(view.report.history),
        view.unit.identity,
        view.report.proof,
        view.unit.unfit or sick or view.report.reason,
    ]


def event(found: scheduler_pb2.Event) -> str:
    """One line, such as "2026-01-02 03:04:05 host n1: READY -> SUSPECT (session lost)"."""
    before = getattr(found, "from") or "new"
    reason = f" ({found.reason})" if found.reason else ""
    return f"{moment(found.at_s)} {found.kind} {found.subject}: {before} -> {found.to}{reason}"
