"""What users ask about jobs, answered from committed state by any replica: submit, read, cancel, explain.

It writes specs and cancel requests, never a decision. Errors are ApiError: a gRPC code and a sentence that names the
value and the way out.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Created, Put, Store
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2

from .core.explain import explain
from .core.model import Policy
from .core.reasons import Refusal
from .mirror import Mirror
from .subscribe import Subscription
from .validate import faults

PAGE_DEFAULT, PAGE_MAX = 100, 1000
VERDICTS_MAX = 1000
SUBMIT_BATCH = 100  # specs written in one transaction


class ApiError(Exception):
    """A request that was not carried out. `message` is for people."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class _Submission:
    job_id: str
    record: records_pb2.JobRecord
    warnings: list[str] = field(default_factory=list)

    @property
    def guard(self) -> Created:
        return Created(keys.job_spec(self.job_id), 0)

    @property
    def put(self) -> Put:
        return Put(keys.job_spec(self.job_id), self.record.SerializeToString(deterministic=True))


class JobsApi:
    """See the module docstring. `wall` gives Unix time, `token` fresh random bytes for ids."""

    def __init__(
        self, store: Store, mirror: Mirror, *, policy: Policy, wall: Callable[[], float], token: Callable[[], bytes]
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._policy = policy
        self._wall = wall
        self._token = token

    # Submitting

    async def submit(self, request: scheduler_pb2.SubmitRequest) -> scheduler_pb2.SubmitResponse:
        """Submit one job; safe to repeat with the same idempotency key."""
        submission = self._check(request)
        if request.validate_only:
            return scheduler_pb2.SubmitResponse(warnings=submission.warnings)
        done = await self._store.commit([submission.guard], [submission.put])
        response = await self._answer(submission, created=done.succeeded)
        await self._mirror.reached(done.revision)
        return response

    async def submit_batch(self, requests: Sequence[scheduler_pb2.SubmitRequest]) -> list[scheduler_pb2.SubmitResult]:
        """Submit many in few transactions; one result each, in order."""
        results: list[scheduler_pb2.SubmitResult] = []
        good: list[tuple[int, _Submission]] = []
        for request in requests:
            result = scheduler_pb2.SubmitResult()
            results.append(result)
            try:
                submission = self._check(request)
            except ApiError as exc:
                result.refused.CopyFrom(scheduler_pb2.Refusal(code=exc.code.value[0], message=exc.message))
                continue
            if request.validate_only:
                result.ok.warnings.extend(submission.warnings)
            else:
                good.append((len(results) - 1, submission))
        await self._write_all(good, results)
        return results

    async def _write_all(self, good: list[tuple[int, _Submission]], results: list[scheduler_pb2.SubmitResult]) -> None:
        distinct = len({s.job_id for _, s in good}) == len(good)
        all_new = (
            distinct
            and bool(good)
            and (await self._store.commit([s.guard for _, s in good], [s.put for _, s in good])).succeeded
        )
        for index, submission in good:
            created = all_new or (await self._store.commit([submission.guard], [submission.put])).succeeded
            try:
                results[index].ok.CopyFrom(await self._answer(submission, created=created))
            except ApiError as exc:
                results[index].refused.CopyFrom(scheduler_pb2.Refusal(code=exc.code.value[0], message=exc.message))

    def _check(self, request: scheduler_pb2.SubmitRequest) -> _Submission:
        wrong = faults(request.spec)
        missing = self._unavailable(request.spec)
        if not request.allow_unavailable:
            wrong += [f"{m}; to queue it all the same, allow what is unavailable" for m in missing]
        if wrong:
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(wrong))
        record = records_pb2.JobRecord(
            spec=request.spec, submitted_s=self._wall(), idempotency_key=request.idempotency_key
        )
        seed = request.idempotency_key.encode() if request.idempotency_key else self._token()
        return _Submission(_job_id(seed), record, missing)

    def _unavailable(self, spec: job_pb2.JobSpec) -> list[str]:
        """What the spec names that no known host has. With no host known, nothing can be said."""
        inventories = self._mirror.all(Kind.INVENTORY, inventory_pb2.Inventory).values()
        if not inventories:
            return []
        models = {u.model for i in inventories for u in i.units}
        images = {name for i in inventories for name in i.images}
        missing = []
        if spec.gpus.model and spec.gpus.model not in models:
            have = ", ".join(sorted(models)) or "none"
            missing.append(f"gpus.model {spec.gpus.model!r}: no host has it; GPU models at hand: {have}")
        if spec.image and spec.image not in images:
            have = ", ".join(sorted(images)) or "none"
            missing.append(f"image {spec.image!r}: no host has it; images at hand: {have}")
        return missing

    async def _answer(self, submission: _Submission, *, created: bool) -> scheduler_pb2.SubmitResponse:
        if not created:
            await self._same_as_stored(submission)
        return scheduler_pb2.SubmitResponse(id=submission.job_id, created=created, warnings=submission.warnings)

    async def _same_as_stored(self, submission: _Submission) -> None:
        kv = await self._store.get(keys.job_spec(submission.job_id))
        stored = records_pb2.JobRecord.FromString(kv.value) if kv is not None else records_pb2.JobRecord()
        if stored.spec == submission.record.spec:
            return
        names = [f.name for f in job_pb2.JobSpec.DESCRIPTOR.fields]
        differ = [n for n in names if getattr(stored.spec, n) != getattr(submission.record.spec, n)]
        raise ApiError(
            grpc.StatusCode.ALREADY_EXISTS,
            f"key {submission.record.idempotency_key!r} belongs to job {submission.job_id}, whose spec differs in "
            f"{', '.join(differ)}; use another key for another job",
        )

    # Reading

    def get(self, job_id: str) -> job_pb2.Job:
        """One job. ApiError NOT_FOUND."""
        job = self._mirror.job(job_id)
        if job is None:
            raise ApiError(grpc.StatusCode.NOT_FOUND, f"no job {job_id!r}; `gpupool jobs` lists them")
        return job

    def list(self, request: scheduler_pb2.ListJobsRequest) -> scheduler_pb2.ListJobsResponse:
        """A page of jobs, by order of arrival."""
        start = _page_start(request.page_token)
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        response = scheduler_pb2.ListJobsResponse()
        ids = self._mirror.jobs()
        for index in range(start, len(ids)):
            job = self._mirror.job(ids[index])
            if job is None or not matches(job, request.filter):
                continue
            if len(response.jobs) == size:
                response.next_page_token = str(index)
                break
            response.jobs.append(job)
        return response

    async def watch(self, request: scheduler_pb2.WatchJobsRequest) -> AsyncIterator[job_pb2.Job]:
        """The selection as it is, then each job again when it changes."""
        with Subscription[str]() as changed:
            kinds = (Kind.JOB_SPEC, Kind.JOB_STATUS, Kind.JOB_CANCEL)
            changed.on_close(self._mirror.listen(lambda kind, ids: changed.put(ids[0]) if kind in kinds else None))
            for job_id in self._mirror.jobs():
                changed.put(job_id)
            async for job_id in changed:
                job = self._mirror.job(job_id)
                if job is not None and matches(job, request.filter):
                    yield job

    def explain(self, job_id: str) -> scheduler_pb2.Explanation:
        """Why the job is where it is. ApiError NOT_FOUND."""
        shown = self.get(job_id)
        cluster = self._mirror.cluster(self._policy)
        found = explain(cluster, cluster.jobs[job_id], self._wall())
        return scheduler_pb2.Explanation(
            id=job_id,
            state=shown.status.state,
            summary=found.summary,
            queue_position=found.position,
            reasons=[
                scheduler_pb2.ReasonCount(reason=scheduler_pb2.Reason.Value(f"REASON_{reason.name}"), hosts=count)
                for reason, count in found.counts
            ],
            hosts=[_verdict(host, refusal) for host, refusal in found.verdicts[:VERDICTS_MAX]],
        )

    # Cancelling

    async def cancel(self, request: scheduler_pb2.CancelJobRequest) -> job_pb2.Job:
        """Ask for the end of a job; asking twice, or too late, changes nothing."""
        job = self.get(request.id)
        final = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
        if job.status.state not in final:
            key = keys.job_cancel(request.id)
            record = records_pb2.CancelRecord(at_s=self._wall(), reason=request.reason or "cancelled by request")
            done = await self._store.commit([Created(key, 0)], [Put(key, record.SerializeToString())])
            await self._mirror.reached(done.revision)
        return self.get(request.id)


def _job_id(seed: bytes) -> str:
    """A name of 65 bits: the same seed gives the same job."""
    return "j" + base64.b32encode(hashlib.sha256(seed).digest())[:13].decode().lower()


def _verdict(host: str, refusal: Refusal | None) -> scheduler_pb2.HostVerdict:
    if refusal is None:
        return scheduler_pb2.HostVerdict(host=host, detail="it would fit")
    reason = scheduler_pb2.Reason.Value(f"REASON_{refusal.reason.name}")
    return scheduler_pb2.HostVerdict(host=host, reason=reason, detail=refusal.detail)


def _page_start(token: str) -> int:
    if not token:
        return 0
    if not token.isdecimal():
        raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, f"page_token {token!r} is not one that ListJobs gave")
    return int(token)


def matches(job: job_pb2.Job, wanted: scheduler_pb2.JobFilter) -> bool:
    """Whether a job is in the selection."""
    attempts = job.status.attempts
    return (
        (not wanted.states or job.status.state in wanted.states)
        and (not wanted.ids or job.id in wanted.ids)
        and (not wanted.name or fnmatch.fnmatchcase(job.spec.name, wanted.name))
        and (not wanted.host or (bool(attempts) and attempts[-1].host == wanted.host))
        and all(job.spec.labels.get(key) == value for key, value in wanted.labels.items())
    )
