"""What tables show of what a job asks of the queue. Pure."""

from __future__ import annotations

from gpupool.v1 import job_pb2


def job_facts(job: job_pb2.Job) -> list[tuple[str, str]]:
    """Lines of `show`."""
    spec = job.spec
    return [("depends on", ", ".join(f"{d.job} ({_when(d)})" for d in spec.dependencies))]


def _when(dependency: job_pb2.Dependency) -> str:
    names = {job_pb2.Dependency.ANY: "any end", job_pb2.Dependency.NOT_OK: "not ok"}
    return names.get(dependency.when, "ok")
