"""What tables show of what a job asks of the queue. Pure."""

from __future__ import annotations

from gpupool.v1 import job_pb2


def job_facts(job: job_pb2.Job) -> list[tuple[str, str]]:
    """Lines of `show`."""
    spec = job.spec
    times = (
        ("time limit", spec.time_limit_s),
        ("start within", spec.start_within_s),
        ("end within", spec.end_within_s),
    )
    return [
        ("depends on", ", ".join(f"{d.job} ({_when(d)})" for d in spec.dependencies)),
        *((what, f"{seconds} s" if seconds else "") for what, seconds in times),
        ("ending", job.status.ending if not job.status.finished_s else ""),
    ]


def _when(dependency: job_pb2.Dependency) -> str:
    names = {job_pb2.Dependency.ANY: "any end", job_pb2.Dependency.NOT_OK: "not ok"}
    return names.get(dependency.when, "ok")
