"""From a stored job to the core's: its shape, its terms, its labels, and what became of it.

A job is read in brief (brief.proto): the parts of its spec that many jobs have alike come as bytes, by which what they
mean is found again, so that of a hundred thousand jobs each such part is read once. It must drop nothing that placement
or the queue minds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gpupool.v1 import brief_pb2, job_pb2, records_pb2

from ..core.state import terms
from ..core.state.jobs import Attempt, Job, Request
from ..core.state.rules import Labels
from ..mirror.interned import same
from .decode_rules import labels_of, models_of, rules_of
from .numbers import EVIDENCE, JOB_STATE, NUMA, OUTCOME

KEPT = 8192  # answers for each part; there are few different ones


def job_of(job_id: str, record: records_pb2.JobRecord, arrival: int) -> Job:
    """As `read_job`, of a record that somebody has made."""
    return read_job(job_id, record.SerializeToString(), arrival)


def read_job(job_id: str, value: bytes, arrival: int) -> Job:
    """A fresh job from its stored record; `arrival` is the revision at which it was written. Raises DecodeError."""
    record = brief_pb2.JobRecordBrief.FromString(value)
    spec, submitted_s = record.spec, record.submitted_s
    labels = labels_in(spec.labels)
    job = Job(job_id, _shape(spec, labels), arrival, submitted_s, spec.priority)
    job.name, job.labels, job.terms = spec.name, labels, _terms_of(spec)
    if spec.hold:
        job.hold, job.held_s = "it was submitted on hold", submitted_s
    if restart := spec.restart:
        _restarts(job, _restart_of(restart))
    if placement := spec.placement:
        job.max_failures_per_host = _placement_of(placement).max_failures_per_host
    return job


def _restarts(job: Job, wire: job_pb2.RestartPolicy) -> None:
    job.restart_priority, job.after = wire.priority, tuple(wire.after)
    if wire.HasField("max_restarts"):
        job.max_restarts = wire.max_restarts
    if wire.HasField("max_start_failures"):
        job.max_start_failures = wire.max_start_failures
    if wire.HasField("max_host_deaths"):
        job.max_host_deaths = wire.max_host_deaths


@lru_cache(KEPT)
def _restart_of(value: bytes) -> job_pb2.RestartPolicy:
    return job_pb2.RestartPolicy.FromString(value)


@lru_cache(KEPT)
def _placement_of(value: bytes) -> job_pb2.Placement:
    return job_pb2.Placement.FromString(value)


def labels_in(entries: Sequence[bytes]) -> Labels:
    """The labels that these entries of a map are, by name."""
    return _labels(tuple(entries)) if entries else ()


@lru_cache(KEPT)
def _labels(entries: tuple[bytes, ...]) -> Labels:
    found = map(job_pb2.JobSpec.LabelsEntry.FromString, entries)
    return same(labels_of({entry.key: entry.value for entry in found}))


# What a job asks of a host


def request_of(spec: job_pb2.JobSpec) -> Request:
    """The shape of a job, as placement sees it."""
    brief = brief_pb2.JobSpecBrief.FromString(spec.SerializeToString())
    return _shape(brief, labels_in(brief.labels))


def _shape(spec: brief_pb2.JobSpecBrief, labels: Labels) -> Request:
    placement = spec.placement
    return _request(
        spec.image,
        spec.gpus,
        spec.cpus,
        spec.memory_mib,
        spec.numa,
        spec.vm,
        placement,
        labels if placement else (),  # nothing else minds them
    )


@lru_cache(KEPT)
def _request(  # noqa: PLR0917 - by name they would be a dict, made each time
    image: str, gpus: bytes, cpus: int, mib: int, numa: int, vm: bytes, placement: bytes, labels: Labels
) -> Request:  # fmt: skip
    spec = job_pb2.JobSpec(labels=dict(labels))
    spec.gpus.MergeFromString(gpus)
    if placement:
        spec.placement.MergeFromString(placement)
    models = models_of(spec.gpus)
    return same(
        Request(
            image=image,
            gpus=spec.gpus.count,
            model=models[0] if len(models) == 1 else "",
            gpu_memory_mib=spec.gpus.memory_mib,
            cpus=cpus,
            memory_mib=mib,
            numa=NUMA[numa],
            hugepage_size_kib=job_pb2.VmOptions.FromString(vm).hugepage_size_kib,
            rules=rules_of(spec),
        )
    )


# What it asks of the queue


def terms_of(spec: job_pb2.JobSpec) -> terms.Terms:
    """What the job asks of the queue."""
    return _terms_of(brief_pb2.JobSpecBrief.FromString(spec.SerializeToString()))


def _terms_of(spec: brief_pb2.JobSpecBrief) -> terms.Terms:
    others = spec.dependencies
    return _terms(
        tuple(others) if others else (),
        spec.time_limit_s,
        spec.start_within_s,
        spec.end_within_s,
        spec.keep_s,
        spec.array,
        spec.queue,
        spec.user,
        spec.preemptible,
        spec.stop_grace_s,
        spec.gang,
    )


@lru_cache(KEPT)
def _terms(  # noqa: PLR0917 - as above
    others: tuple[bytes, ...], limit_s: int, start_s: int, end_s: int, keep_s: int, array: bytes, queue: str,
    user: str, preemptible: bool, grace_s: int, gang: bytes,
) -> terms.Terms:  # fmt: skip
    dependencies = map(job_pb2.Dependency.FromString, others)
    element, member = job_pb2.Array.FromString(array), job_pb2.Gang.FromString(gang)
    return terms.Terms(
        dependencies=tuple(terms.Dependency(d.job, terms.When(d.when or terms.When.OK.value)) for d in dependencies),
        time_limit_s=limit_s,
        start_within_s=start_s,
        end_within_s=end_s,
        keep_s=keep_s,
        element=terms.Element(element.id, element.index, element.parallel) if element.id else None,
        queue=queue or terms.DEFAULT_QUEUE,
        user=user,
        preemptible=preemptible,
        stop_grace_s=grace_s or terms.Terms().stop_grace_s,
        member=member_of(member) if member.id else None,
    )


def member_of(gang: job_pb2.Gang) -> terms.Member:
    """What a job of a gang shares with the others."""
    on_loss = terms.OnLoss(gang.on_member_loss or terms.OnLoss.RESTART_ALL.value)
    return terms.Member(gang.id, gang.index, gang.count, on_loss, gang.spread_over, gang.pack_into)


# What became of it


def restore_status(job: Job, status: job_pb2.JobStatus) -> None:
    """Give a job the state that the leader last recorded for it."""
    job.state = JOB_STATE[status.state]
    job.attempts = [_attempt(a) for a in status.attempts]
    job.attempt_count = status.attempt_count
    job.restarts, job.start_failures = status.restarts, status.start_failures
    job.finished_s, job.not_before_s = status.finished_s, status.not_before_s
    job.exit_code = status.exit_code if status.HasField("exit_code") else None
    job.message = message = status.message
    job.cancel_reason = (message or "cancelled") if status.cancel_requested else None
    job.ending = status.ending
    job.hold, job.held_s, job.host_deaths = status.hold, status.held_s, status.host_deaths


def _attempt(wire: job_pb2.Attempt) -> Attempt:
    outcome, evidence, warnings = wire.outcome, wire.evidence, wire.warnings
    return Attempt(
        wire.number,
        same(wire.host),
        same(tuple(wire.units)),
        wire.created_s,
        wire.started_s,
        wire.ended_s,
        OUTCOME[outcome] if outcome else None,
        wire.exit_code if wire.HasField("exit_code") else None,
        wire.message,
        EVIDENCE[evidence] if evidence else None,
        tuple(warnings) if warnings else (),
    )
