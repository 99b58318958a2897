"""Builds requests and reads answers: everything about a call that does not depend on how it is sent. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from gpupool.errors import InvalidSpec
from gpupool.v1 import job_pb2, scheduler_pb2

PAGE = 1000  # jobs in one answer; the most that the API gives
DUMP_S = 600.0  # for all of a large cluster
DOCTOR_S = 40.0  # the scheduler gives an agent 30
BATCH = 500  # jobs in one SubmitBatch: few enough to be answered within one call's timeout
BATCH_BYTES = 2 * 2**20  # of one SubmitBatch, unless one job alone is larger: gRPC takes 4 MiB

KeyedSpec = job_pb2.JobSpec | tuple[job_pb2.JobSpec, str]
T = TypeVar("T")

FINISHED = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})


def new_key() -> str:
    """An idempotency key that nobody else has. Keep it beside what you submit to be able to submit it again."""
    return secrets.token_hex(16)


def finished(job: job_pb2.Job) -> bool:
    """Whether the job has reached a state that it never leaves."""
    return job.status.state in FINISHED


def submission(
    spec: job_pb2.JobSpec, key: str | None, *, validate_only: bool = False, allow_unavailable: bool = False
) -> scheduler_pb2.SubmitRequest:
    """A submission that is safe to repeat: without a key it gets one, for this call."""
    return scheduler_pb2.SubmitRequest(
        spec=spec,
        idempotency_key=new_key() if key is None else key,
        validate_only=validate_only,
        allow_unavailable=allow_unavailable,
    )


def keyed(item: KeyedSpec) -> scheduler_pb2.SubmitRequest:
    """The submission of a spec, or of a spec and its key."""
    return submission(*item) if isinstance(item, tuple) else submission(item, None)


def batches(items: Iterable[T], size: int = BATCH) -> Iterable[list[T]]:
    """`items` in lists of at most `size`, none empty."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def as_batch(unanswered: Sequence[scheduler_pb2.SubmitRequest]) -> scheduler_pb2.SubmitBatchRequest:
    """As many of them, from the first on, as one message takes."""
    size, count = 0, 0
    for request in unanswered:
        size += request.ByteSize()
        if count and size > BATCH_BYTES:
            break
        count += 1
    return scheduler_pb2.SubmitBatchRequest(requests=unanswered[:count])


def state_value(state: str | int) -> job_pb2.JobState.ValueType:
    """The JobState for "running", "JOB_STATE_RUNNING" or its number. Raises InvalidSpec for what is no state."""
    name = job_pb2.JobState.Name(job_pb2.JobState.ValueType(state)) if isinstance(state, int) else state.upper()
    try:
        return job_pb2.JobState.Value(name if name.startswith("JOB_STATE_") else f"JOB_STATE_{name}")
    except ValueError:
        known = ", ".join(short for short in map(state_name, job_pb2.JobState.values()) if short != "UNSPECIFIED")
        raise InvalidSpec([f"{state!r} is no job state; the states are {known.lower()}"]) from None


def state_name(state: job_pb2.JobState.ValueType) -> str:
    """The state as people write it, e.g. "RUNNING"; states of a newer scheduler by number."""
    try:
        return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")
    except ValueError:
        return str(state)


def select(
    *,
    states: Iterable[str | int] = (),
    name: str = "",
    host: str = "",
    labels: Mapping[str, str] | None = None,
    ids: Iterable[str] = (),
    array: str = "",
) -> scheduler_pb2.JobFilter:
    """A selection of jobs; what is left out does not restrict it, several restrictions must all hold.

    Args:
        states: such as "running"; any of them.
        name: a glob, e.g. "train-*".
        host: of the current or last attempt.
        labels: all must be equal.
        ids: any of them.
        array: an array's or a gang's id.

    """
    return scheduler_pb2.JobFilter(
        states=[state_value(state) for state in states], name=name, host=host, labels=labels or {}, ids=ids, array=array
    )


def unfinished(job: job_pb2.Job, timeout_s: float | None) -> str:
    """What to say when a wait for `job` is over before the job is."""
    return f"job {job.id} is still {state_name(job.status.state)} after {timeout_s or 0:g} s"
