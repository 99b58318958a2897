"""What its owner or an operator wants of one job: to hold it, or to stop it and start it again.

It writes `intents/jobs/<id>`, which the leader turns into decisions; it never changes a state itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Store
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from ..core.state.skew import no_earlier
from ..mirror.mirror import FINAL, Mirror
from .intents import ApiError, change_intent

_LIVE = (job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_RUNNING)


class JobWishes:
    """See the module docstring. `show` gives a job as the API shows it, or raises ApiError NOT_FOUND."""

    def __init__(
        self, store: Store, mirror: Mirror, show: Callable[[str], Awaitable[job_pb2.Job]], wall: Callable[[], float]
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._show = show
        self._wall = wall

    async def hold(self, request: scheduler_pb2.HoldJobRequest) -> job_pb2.Job:
        """Keep a pending job from starting. ApiError FAILED_PRECONDITION for any other."""
        job = await self._show(request.id)
        if job.status.state in (*FINAL, *_LIVE):
            hint = "" if job.status.state in FINAL else f"; to stop it and hold it: gpupool requeue --hold {job.id}"
            raise _refused(f"job {job.id} is {_state(job)}, and only a pending job can be held{hint}")

        def change(intent: records_pb2.JobIntent) -> None:
            self._hold(intent, request.by, request.reason)

        return await self._wish(job.id, change)

    async def requeue(self, request: scheduler_pb2.RequeueJobRequest) -> job_pb2.Job:
        """Stop the present attempt, and start the job again. ApiError FAILED_PRECONDITION where there is none."""
        job = await self._show(request.id)
        if job.status.state not in _LIVE or job.status.cancel_requested:
            state = "to be cancelled" if job.status.state in _LIVE else _state(job)
            hint = "; submit it again" if job.status.state in FINAL else ""
            raise _refused(f"job {job.id} is {state}, and only one that starts or runs can be requeued{hint}")

        def change(intent: records_pb2.JobIntent) -> None:
            intent.requeue_attempt = max(intent.requeue_attempt, job.status.attempt_count)
            intent.requeue_by, intent.requeue_reason = request.by or "operator", request.reason
            if request.hold:
                self._hold(intent, request.by, request.reason)

        return await self._wish(job.id, change)

    def _hold(self, intent: records_pb2.JobIntent, by: str, reason: str) -> None:
        if intent.held_s <= intent.released_s:  # or it is wanted already
            intent.held_s = no_earlier(self._wall(), intent.released_s)
            intent.held_by, intent.held_reason = by or "operator", reason

    async def _wish(self, job_id: str, change: Callable[[records_pb2.JobIntent], None]) -> job_pb2.Job:
        await change_intent(self._store, self._mirror, keys.job_intent(job_id), records_pb2.JobIntent, change)
        return await self._show(job_id)


def held(mirror: Mirror, job_id: str) -> bool:
    """Whether somebody wants the job held, though it may not be yet."""
    intent = mirror.get(Kind.JOB_INTENT, records_pb2.JobIntent, job_id)
    return intent is not None and intent.held_s > intent.released_s


def _state(job: job_pb2.Job) -> str:
    return job_pb2.JobState.Name(job.status.state).removeprefix("JOB_STATE_")


def _refused(message: str) -> ApiError:
    return ApiError(grpc.StatusCode.FAILED_PRECONDITION, message)
