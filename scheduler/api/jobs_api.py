"""What users ask about jobs, answered from committed state by any replica: submit, read, cancel, explain.

It writes specs and cancel requests, never a decision. Errors are ApiError: a gRPC code and a sentence that names the
value and the way out.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import AsyncGenerator, Callable, Sequence

import grpc

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Created, Put, Store
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from ..codec.decode_jobs import job_of
from ..core.explain import explaining
from ..core.state.events import JobSubmitted
from ..core.state.policy import Policy
from ..core.state.skew import answers
from ..core.step import step
from ..mirror.mirror import FINAL, Arrival, Mirror
from ..mirror.subscribe import Subscription
from ..submitting import queue_rules
from ..submitting.dependencies import drop_ended, unknown
from ..submitting.judged import Judged
from ..submitting.known_hosts import KnownHosts
from ..submitting.named_jobs import NamedJobs
from ..submitting.submission import SUBMIT_BATCH, Submission, accepted, element_id, elements_of, job_id_of, many, packed
from ..submitting.validate import faults, faults_of_texts
from ..submitting.validate_gang import gang_faults
from ..turns import in_pauses
from .explained import explained
from .intents import ApiError, change_intent
from .job_wishes import JobWishes, held

PAGE_DEFAULT, PAGE_MAX = 100, 1000
SUBMIT_MAX = 1000  # requests in one message
UNSUBMITTED = "~"  # the id of a job that there is not; behind all others of its arrival
_JOB_ID = re.compile(r"j[a-z2-7]{13}(-[0-9]+)?")  # as `submission` makes them
_TOKEN = re.compile(r"([0-9]{1,19})\.([a-z0-9._-]*)")


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
        self._known = KnownHosts(mirror)
        self._named = NamedJobs(mirror)
        self._judged = Judged(mirror)
        self.wishes = JobWishes(store, mirror, self.get, wall)

    # Submitting

    async def submit(self, request: scheduler_pb2.SubmitRequest) -> scheduler_pb2.SubmitResponse:
        """Submit one job; safe to repeat with the same idempotency key."""
        await self._known.refresh()
        await self._named.refresh(request.spec)
        submission = self._check(request, await unknown(self._store, self._mirror, request))
        if request.validate_only:
            return scheduler_pb2.SubmitResponse(warnings=submission.warnings)
        return await self._write_any(submission)

    async def submit_batch(self, requests: Sequence[scheduler_pb2.SubmitRequest]) -> list[scheduler_pb2.SubmitResult]:
        """Submit many in few transactions; one result each, in order."""
        return [result async for results in self.submit_all(requests) for result in results]

    async def submit_all(
        self, requests: Sequence[scheduler_pb2.SubmitRequest]
    ) -> AsyncGenerator[list[scheduler_pb2.SubmitResult], None]:
        """As `submit_batch`, some results at a time. While some are written, the next are checked."""
        if len(requests) > SUBMIT_MAX:
            raise ApiError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(requests)} requests in one message: at most {SUBMIT_MAX} are taken; send several",
            )
        await self._known.refresh()
        specs = [request.spec for request in requests]
        writing: asyncio.Task[list[scheduler_pb2.SubmitResult]] | None = None
        try:
            for first in range(0, len(requests), SUBMIT_BATCH):
                results, good = await self._check_some(requests[first : first + SUBMIT_BATCH], specs)
                if writing is not None:
                    yield await writing  # one after the other, as their order is that of arrival
                writing = asyncio.create_task(self._write_some(results, good))
            if writing is not None:
                yield await writing
        finally:
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _check_some(
        self, requests: Sequence[scheduler_pb2.SubmitRequest], beside: Sequence[job_pb2.JobSpec]
    ) -> tuple[list[scheduler_pb2.SubmitResult], list[tuple[int, Submission]]]:
        """Results, those of refusals filled in, and what is to be written, with the place of its result."""
        results = [scheduler_pb2.SubmitResult() for _ in requests]
        good: list[tuple[int, Submission]] = []
        for index, (request, result) in enumerate(zip(requests, results, strict=True)):
            if request.spec.HasField("restart"):
                await self._named.refresh(request.spec)
            try:
                lost = await unknown(self._store, self._mirror, request) if request.spec.dependencies else ()
                submission = self._check(request, lost, beside)
            except ApiError as exc:
                result.refused.CopyFrom(scheduler_pb2.Refusal(code=exc.code.value[0], message=exc.message))
                continue
            if request.validate_only:
                result.ok.warnings.extend(submission.warnings)
            else:
                good.append((index, submission))
        return results, good

    async def _write_some(
        self, results: list[scheduler_pb2.SubmitResult], good: list[tuple[int, Submission]]
    ) -> list[scheduler_pb2.SubmitResult]:
        for index, submission in good:
            if many(submission.record.spec):
                results[index].CopyFrom(await self._result(submission))
        plain = [(index, submission) for index, submission in good if not many(submission.record.spec)]
        for batch in packed(plain, self._store.max_ops):
            await self._write_all(batch, results)
        return results

    async def _write_all(self, good: list[tuple[int, Submission]], results: list[scheduler_pb2.SubmitResult]) -> None:
        if len({s.job_id for _, s in good}) == len(good):
            done = await self._store.commit([s.guard for _, s in good], [s.put for _, s in good])
            if done.succeeded:
                for index, submission in good:
                    answer = results[index].ok
                    answer.id, answer.created = submission.job_id, True
                    answer.warnings.extend(submission.warnings)
                await self._mirror.reached(done.revision)
                return
        for index, submission in good:  # some are known already, or twice among these: one by one
            results[index].CopyFrom(await self._result(submission))

    async def _result(self, submission: Submission) -> scheduler_pb2.SubmitResult:
        result = scheduler_pb2.SubmitResult()
        try:
            result.ok.CopyFrom(await self._write_any(submission))
        except ApiError as exc:
            result.refused.CopyFrom(scheduler_pb2.Refusal(code=exc.code.value[0], message=exc.message))
        return result

    async def _write_any(self, submission: Submission) -> scheduler_pb2.SubmitResponse:
        """Write one job, or all elements of an array or a gang, the first one last: where that is, the others are."""
        if not many(submission.record.spec):
            return await self._write(submission)
        elements = elements_of(submission)
        if not self._mirror.has(Kind.JOB_SPEC, elements[0].job_id):
            for batch in packed(list(enumerate(elements))[1:], self._store.max_ops):
                done = await self._store.commit([s.guard for _, s in batch], [s.put for _, s in batch])
                for _, element in () if done.succeeded else batch:  # begun before, and not finished
                    await self._write(element)
        answer = await self._write(elements[0])
        answer.id = submission.job_id
        return answer

    async def _write(self, submission: Submission) -> scheduler_pb2.SubmitResponse:
        """Write one spec, or find that it is there; it can be read here afterwards."""
        done = await self._store.commit([submission.guard], [submission.put])
        revision = done.revision if done.succeeded else await self._same_as_stored(submission)
        await self._mirror.reached(revision)
        return accepted(submission, created=done.succeeded)

    def _check(
        self, request: scheduler_pb2.SubmitRequest, unknown: Sequence[str], beside: Sequence[job_pb2.JobSpec] = ()
    ) -> Submission:
        """Raises ApiError. `beside`: specs of the same batch, which may name each other."""
        seed = request.idempotency_key.encode() if request.idempotency_key else self._token()
        job_id = job_id_of(seed)
        spec, version = request.spec, self._known.version
        shape = self._judged.shape(spec)
        if shape is not None and self._judged.good(shape, version) and not faults_of_texts(spec):
            warnings: list[str] = []
        else:
            warnings = self._judge(request, job_id, unknown, beside)
            if shape is not None and not warnings:
                self._judged.add(shape, version)
        record = records_pb2.JobRecord(spec=spec, submitted_s=self._wall(), idempotency_key=request.idempotency_key)
        return Submission(job_id, record, warnings)

    def _judge(
        self,
        request: scheduler_pb2.SubmitRequest,
        job_id: str,
        unknown: Sequence[str],
        beside: Sequence[job_pb2.JobSpec],
    ) -> list[str]:
        """Warnings. Raises ApiError with all that is wrong."""
        wrong = self._faults(request.spec, unknown, beside)
        missing = self._known.impossible(request.spec) if not wrong else self._known.missing(request.spec)
        missing += self._named.unknown(request.spec, beside)
        # What was accepted once, when other hosts were known, stays so.
        again = any(self._mirror.has(Kind.JOB_SPEC, known) for known in (job_id, element_id(job_id, 0)))
        if not (request.allow_unavailable or again):
            wrong += [f"{m}; to queue it all the same: --allow-unavailable" for m in missing]
        if wrong:
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(wrong))
        return missing + queue_rules.warnings(self._mirror, request.spec)

    def _faults(
        self, spec: job_pb2.JobSpec, unknown: Sequence[str], beside: Sequence[job_pb2.JobSpec] = ()
    ) -> list[str]:
        """All that can never be right about the spec, whatever hosts there are."""
        return [
            *faults(spec),
            *unknown,
            *queue_rules.faults(self._mirror, spec),
            *gang_faults(spec, self._store.max_ops),
            *self._named.faults(spec, beside),
        ]

    async def _same_as_stored(self, submission: Submission) -> int:
        """The revision of the spec that is stored under the same key. ApiError ALREADY_EXISTS if it is another."""
        kv = await self._store.get(keys.job_spec(submission.job_id))
        stored = records_pb2.JobRecord.FromString(kv.value) if kv is not None else records_pb2.JobRecord()
        if kv is not None and stored.spec == submission.record.spec:
            return kv.mod_revision
        names = [f.name for f in job_pb2.JobSpec.DESCRIPTOR.fields]
        differ = [n for n in names if getattr(stored.spec, n) != getattr(submission.record.spec, n)]
        raise ApiError(
            grpc.StatusCode.ALREADY_EXISTS,
            f"key {submission.record.idempotency_key!r} belongs to job {submission.job_id}, whose spec differs in "
            f"{', '.join(differ)}; use another key for another job",
        )

    # Reading

    async def get(self, job_id: str) -> job_pb2.Job:
        """One job, though it be so new that this replica has to wait for it. ApiError NOT_FOUND."""
        job = self._mirror.job(job_id)
        if job is None and _JOB_ID.fullmatch(job_id):
            kv = await self._store.get(keys.job_spec(job_id))
            if kv is not None:
                await self._mirror.reached(kv.create_revision)
                job = self._mirror.job(job_id)
        if job is None:
            raise ApiError(grpc.StatusCode.NOT_FOUND, f"no job {job_id!r}; `gpupool jobs` lists them")
        return job

    def list(self, request: scheduler_pb2.ListJobsRequest) -> scheduler_pb2.ListJobsResponse:
        """A page of jobs, by order of arrival. A token names the last job given: what comes or goes shifts nothing."""
        after = _behind(request.page_token)
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        response = scheduler_pb2.ListJobsResponse()
        for job_id in self._mirror.jobs(after):
            job = self._mirror.job(job_id)
            if job is None or not matches(job, request.filter):
                continue
            if len(response.jobs) == size:
                response.next_page_token = "{}.{}".format(*self._mirror.arrival(response.jobs[-1].id))
                break
            response.jobs.append(job)
        return response

    async def watch(self, request: scheduler_pb2.WatchJobsRequest) -> AsyncGenerator[job_pb2.Job, None]:
        """The selection as it is, then each job again when it changes."""
        with Subscription[str]() as changed:
            kinds = (Kind.JOB_SPEC, Kind.JOB_STATUS, Kind.JOB_CANCEL)
            changed.on_close(self._mirror.listen(lambda _, ids: changed.put(ids[0]), *kinds))
            for job_id in request.filter.ids or self._mirror.jobs():
                changed.put(job_id)
            async for job_id in changed:
                job = self._mirror.job(job_id)
                if job is not None and matches(job, request.filter):
                    yield job

    async def explain(self, job_id: str) -> scheduler_pb2.Explanation:
        """Why the job is where it is. ApiError NOT_FOUND."""
        shown = await self.get(job_id)
        view = await self._mirror.view_in_turns(self._policy)
        job = view.cluster.jobs.get(job_id)
        if job is None:  # finished
            return scheduler_pb2.Explanation(id=job_id, state=shown.status.state, summary=_in_words(shown.status))
        found = await in_pauses(explaining(view.cluster, job, self._wall(), lambda: view.reserve))
        shape = explained(found)
        shape.id, shape.state = job_id, shown.status.state
        if shown.status.state == job_pb2.JOB_STATE_PENDING:
            await self._known.refresh()
            shape.impossible.extend(self._known.impossible(shown.spec))
        return shape

    async def explain_spec(self, spec: job_pb2.JobSpec) -> scheduler_pb2.Explanation:
        """How a job of this spec would fare if it were submitted now. ApiError INVALID_ARGUMENT for its faults."""
        request = scheduler_pb2.SubmitRequest(spec=spec)
        await self._named.refresh(spec)
        if wrong := self._faults(request.spec, await unknown(self._store, self._mirror, request)):
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(wrong))
        await self._known.refresh()
        spec, never = request.spec, drop_ended(self._mirror, request.spec)
        cluster, now = await self._mirror.cluster_in_turns(self._policy), self._wall()
        whole = Submission(UNSUBMITTED, records_pb2.JobRecord(spec=spec, submitted_s=now))
        for one in reversed(elements_of(whole) if spec.gang.count else [whole]):
            job = job_of(one.job_id, one.record, self._mirror.revision + 1)
            step(cluster, JobSubmitted(job), now)
        shape = explained(await in_pauses(explaining(cluster, job, now)))
        shape.state = job_pb2.JOB_STATE_PENDING
        shape.summary = never or shape.summary.replace(f"{UNSUBMITTED}-", "member ")
        shape.impossible.extend([*self._known.impossible(spec), *self._named.unknown(spec)])
        return shape

    # Cancelling and releasing

    async def cancel(self, request: scheduler_pb2.CancelJobRequest) -> job_pb2.Job:
        """Ask for the end of a job; asking twice, or too late, changes nothing."""
        job = await self.get(request.id)
        if job.status.state in FINAL or job.status.cancel_requested:
            return job
        key = keys.job_cancel(request.id)
        record = records_pb2.CancelRecord(at_s=self._wall(), reason=request.reason or "cancelled by request")
        done = await self._store.commit([Created(key, 0)], [Put(key, record.SerializeToString())])
        if done.succeeded:
            await self._mirror.reached(done.revision)
        return await self.get(request.id)

    async def release(self, request: scheduler_pb2.ReleaseJobRequest) -> job_pb2.Job:
        """Let a held job start again. ApiError FAILED_PRECONDITION where nothing holds it."""
        job = await self.get(request.id)
        if not job.status.hold and not held(self._mirror, request.id):
            state = _state_name(job.status.state)
            message = f"job {request.id} is not held, it is {state}; only a held job is released"
            raise ApiError(grpc.StatusCode.FAILED_PRECONDITION, message)

        def change(intent: records_pb2.JobIntent) -> None:
            intent.released_s = answers(job.status.held_s, intent.held_s, intent.released_s)
            intent.by, intent.reason = request.by or "operator", request.reason

        await change_intent(self._store, self._mirror, keys.job_intent(request.id), records_pb2.JobIntent, change)
        return await self.get(request.id)


def _in_words(status: job_pb2.JobStatus) -> str:
    return f"{_state_name(status.state)}: {status.message or 'nothing to add'}"


def _state_name(state: job_pb2.JobState.ValueType) -> str:
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")


def _behind(token: str) -> Arrival:
    """The place in the order of arrival that a page token names."""
    found = _TOKEN.fullmatch(token or "0.")
    if found is None:
        raise ApiError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"page_token {token!r} is not one that ListJobs gave; leave it out to begin with the first page",
        )
    return int(found[1]), found[2]


def matches(job: job_pb2.Job, wanted: scheduler_pb2.JobFilter) -> bool:
    """Whether a job is in the selection."""
    attempts = job.status.attempts
    return (
        (not wanted.states or job.status.state in wanted.states)
        and (not wanted.ids or job.id in wanted.ids)
        and (not wanted.array or wanted.array in (job.spec.array.id, job.spec.gang.id))
        and (not wanted.name or fnmatch.fnmatchcase(job.spec.name, wanted.name))
        and (not wanted.host or (bool(attempts) and attempts[-1].host == wanted.host))
        and all(job.spec.labels.get(key) == value for key, value in wanted.labels.items())
    )
