"""One submission on its way into the store: its id, its write, and how many go into one transaction. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from gpupool.store import keys
from gpupool.store.port import Created, Put
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

SUBMIT_BATCH = 125  # specs written in one transaction
SUBMIT_BYTES = 1024 * 1024  # of specs in one transaction: etcd takes 1.5 MiB by default


@dataclass
class Submission:
    """What was asked, checked. Its record stands once `put` was asked for."""

    job_id: str
    record: records_pb2.JobRecord
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def guard(self) -> Created:
        """No job has this id yet."""
        return Created(keys.job_spec(self.job_id), 0)

    @cached_property
    def put(self) -> Put:
        """The write of its spec."""
        return Put(self.guard.key, self.record.SerializeToString(deterministic=True))


def many(spec: job_pb2.JobSpec) -> int:
    """How many jobs it makes, if it is of an array or a gang; 0: it is of one job."""
    return spec.array.count or spec.gang.count


def elements_of(submission: Submission) -> list[Submission]:
    """The elements of an array, or the members of a gang, by index: the same for the same submission."""
    made = []
    for index in range(many(submission.record.spec)):
        record = records_pb2.JobRecord()
        record.CopyFrom(submission.record)
        kind, part = ("ARRAY", record.spec.array) if record.spec.array.count else ("GANG", record.spec.gang)
        part.id, part.index = submission.job_id, index
        record.spec.env[f"GPUPOOL_{kind}_ID"] = submission.job_id
        record.spec.env[f"GPUPOOL_{kind}_INDEX"] = str(index)
        record.spec.env[f"GPUPOOL_{kind}_COUNT"] = str(part.count)
        made.append(Submission(element_id(submission.job_id, index), record, submission.warnings))
    return made


def element_id(array: str, index: int) -> str:
    """The id of an array's element, or a gang's member."""
    return f"{array}-{index}"


def packed(good: list[tuple[int, Submission]], max_ops: int) -> Iterator[list[tuple[int, Submission]]]:
    """`good`, cut into what one transaction takes."""
    batch: list[tuple[int, Submission]] = []
    size = 0
    for index, submission in good:
        more = len(submission.put.value)
        if batch and (len(batch) == min(SUBMIT_BATCH, max_ops) or size + more > SUBMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((index, submission))
        size += more
    if batch:
        yield batch


def accepted(submission: Submission, *, created: bool) -> scheduler_pb2.SubmitResponse:
    """The answer to a submission that is in the store now."""
    return scheduler_pb2.SubmitResponse(id=submission.job_id, created=created, warnings=submission.warnings)


def job_id_of(seed: bytes) -> str:
    """A name of 65 bits, in lower-case base32: the same seed gives the same job."""
    bits = int.from_bytes(hashlib.sha256(seed).digest()[:9], "big") >> 7
    first = "".join([_TWO[bits >> shift & 0x3FF] for shift in (55, 45, 35, 25, 15, 5)])
    return f"j{first}{_DIGITS[bits & 0x1F]}"


_DIGITS = "abcdefghijklmnopqrstuvwxyz234567"  # RFC 4648
_TWO = [a + b for a in _DIGITS for b in _DIGITS]
