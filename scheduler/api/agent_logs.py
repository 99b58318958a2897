"""Fetching a job's output from the agent that ran it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import grpc

from gpupool.store.keys import Kind
from gpupool.v1 import agent_pb2, agent_pb2_grpc, job_pb2, records_pb2, scheduler_pb2

from ..mirror.mirror import Mirror
from .intents import ApiError
from .jobs_api import JobsApi


class AgentDialer(Protocol):
    """Opens the log stream of one allocation on the agent at an address."""

    def __call__(
        self, address: str, request: agent_pb2.AgentLogsRequest
    ) -> AsyncGenerator[scheduler_pb2.LogChunk, None]:
        """Chunks until the allocation has ended (follow) or its lines are all sent."""
        ...


async def dial(address: str, request: agent_pb2.AgentLogsRequest) -> AsyncGenerator[scheduler_pb2.LogChunk, None]:
    """The real one, over gRPC."""
    async with grpc.aio.insecure_channel(address) as channel:
        async for chunk in agent_pb2_grpc.AgentServiceStub(channel).Logs(request):
            yield chunk


async def job_logs(
    jobs: JobsApi, mirror: Mirror, request: scheduler_pb2.JobLogsRequest, dialer: AgentDialer = dial
) -> AsyncGenerator[scheduler_pb2.LogChunk, None]:
    """The output of one attempt. ApiError when the job, the attempt or its host is not there."""
    job = await jobs.get(request.id)
    attempt = _attempt(job, request.attempt)
    session = mirror.get(Kind.SESSION, records_pb2.Session, attempt.host)
    if session is None:
        raise ApiError(
            grpc.StatusCode.UNAVAILABLE,
            f"attempt {attempt.number} of {job.id} ran on {attempt.host}, which is not reachable now; its output stays "
            "there until the host is back",
        )
    ask = agent_pb2.AgentLogsRequest(
        allocation=f"{job.id}.{attempt.number}", follow=request.follow, tail_lines=request.tail_lines
    )
    try:
        async with aclosing(dialer(session.address, ask)) as chunks:
            async for chunk in chunks:
                chunk.attempt = attempt.number
                yield chunk
    except grpc.aio.AioRpcError as exc:
        message = f"the agent of {attempt.host} at {session.address} says: {exc.details()}"
        raise ApiError(exc.code(), message) from None


def _attempt(job: job_pb2.Job, number: int) -> job_pb2.Attempt:
    attempts = job.status.attempts
    if not attempts:
        raise ApiError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"job {job.id} has not started yet; `gpupool explain {job.id}` says why",
        )
    if number == 0:
        return attempts[-1]
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    kept = ", ".join(str(a.number) for a in attempts)
    raise ApiError(grpc.StatusCode.NOT_FOUND, f"job {job.id} has no attempt {number}; it has {kept}")
