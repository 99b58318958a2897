"""The gRPC face of the two APIs: it maps errors to statuses and streams to streams, and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from gpupool.errors import ANSWERED
from gpupool.store.port import Refused, StoreError
from gpupool.v1 import job_pb2, scheduler_pb2, scheduler_pb2_grpc

from ..mirror.mirror import Mirror
from ..submitting.submission import SUBMIT_BATCH
from .agent_doctor import doctor
from .agent_logs import job_logs
from .intents import ApiError
from .jobs_api import JobsApi
from .operations_api import OperationsApi

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


async def _unary(context: Context, answer: Awaitable[Answer]) -> Answer:
    try:
        return await answer
    except (ApiError, StoreError) as exc:
        await context.abort(*_status(exc), (ANSWERED,))
        raise AssertionError from exc  # abort raises


async def _stream(context: Context, answers: AsyncGenerator[Answer, None]) -> AsyncGenerator[Answer, None]:
    try:
        async with aclosing(answers):  # a reader that has gone must not be told news for ever
            async for answer in answers:
                yield answer
    except (ApiError, StoreError) as exc:
        await context.abort(*_status(exc), (ANSWERED,))


def _status(exc: ApiError | StoreError) -> tuple[grpc.StatusCode, str]:
    if isinstance(exc, ApiError):
        return exc.code, exc.message
    if isinstance(exc, Refused):
        return grpc.StatusCode.INVALID_ARGUMENT, f"the store refused it: {exc}"
    return (
        grpc.StatusCode.UNAVAILABLE,
        f"the store did not answer ({exc}); a change may have been made or not: look before you repeat it",
    )


async def _call(answer: Callable[..., Answer], *arguments: object) -> Answer:
    """Call within `_unary`, so that what a plain function raises is mapped as well."""
    return answer(*arguments)


class JobService(scheduler_pb2_grpc.JobServiceServicer):
    """See proto/gpupool/v1/scheduler.proto."""

    def __init__(self, api: JobsApi, mirror: Mirror) -> None:
        self._api = api
        self._mirror = mirror

    async def Submit(self, request: scheduler_pb2.SubmitRequest, context: Context) -> scheduler_pb2.SubmitResponse:
        return await _unary(context, self._api.submit(request))

    async def SubmitMany(
        self, request_iterator: AsyncIterator[scheduler_pb2.SubmitRequest], context: Context
    ) -> AsyncIterator[scheduler_pb2.SubmitResult]:
        async for results in _stream(context, self._batches(request_iterator)):
            for result in results:
                yield result

    async def SubmitBatch(
        self, request: scheduler_pb2.SubmitBatchRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.SubmitResults]:
        async for results in _stream(context, self._api.submit_all(request.requests)):
            yield scheduler_pb2.SubmitResults(results=results)

    async def _batches(
        self, requests: AsyncIterator[scheduler_pb2.SubmitRequest]
    ) -> AsyncGenerator[list[scheduler_pb2.SubmitResult], None]:
        """Answers in batches of whatever has arrived: large under load, of one for a client that waits for each."""
        arrived: asyncio.Queue[scheduler_pb2.SubmitRequest | None] = asyncio.Queue(maxsize=10 * SUBMIT_BATCH)

        async def read() -> None:
            try:
                async for request in requests:
                    await arrived.put(request)
            except Exception:
                await arrived.put(None)
                raise
            await arrived.put(None)

        reader = asyncio.create_task(read())
        try:
            more = True
            while more:
                batch = [await arrived.get()]
                while len(batch) < SUBMIT_BATCH and not arrived.empty():
                    batch.append(arrived.get_nowait())
                more = None not in batch
                wanted = [request for request in batch if request is not None]
                if wanted:
                    yield await self._api.submit_batch(wanted)
            await reader  # what broke the stream, if something did
        finally:
            reader.cancel()

    async def GetJob(self, request: scheduler_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        return await _unary(context, self._api.get(request.id))

    async def ListJobs(
        self, request: scheduler_pb2.ListJobsRequest, context: Context
    ) -> scheduler_pb2.ListJobsResponse:
        return await _unary(context, _call(self._api.list, request))

    async def WatchJobs(self, request: scheduler_pb2.WatchJobsRequest, context: Context) -> AsyncIterator[job_pb2.Job]:
        async for answer in _stream(context, self._api.watch(request)):
            yield answer

    async def CancelJob(self, request: scheduler_pb2.CancelJobRequest, context: Context) -> job_pb2.Job:
        return await _unary(context, self._api.cancel(request))

    async def ReleaseJob(self, request: scheduler_pb2.ReleaseJobRequest, context: Context) -> job_pb2.Job:
        return await _unary(context, self._api.release(request))

    async def HoldJob(self, request: scheduler_pb2.HoldJobRequest, context: Context) -> job_pb2.Job:
        return await _unary(context, self._api.wishes.hold(request))

    async def RequeueJob(self, request: scheduler_pb2.RequeueJobRequest, context: Context) -> job_pb2.Job:
        return await _unary(context, self._api.wishes.requeue(request))

    async def ExplainJob(self, request: scheduler_pb2.ExplainJobRequest, context: Context) -> scheduler_pb2.Explanation:
        return await _unary(context, self._api.explain(request.id))

    async def ExplainSpec(
        self, request: scheduler_pb2.ExplainSpecRequest, context: Context
    ) -> scheduler_pb2.Explanation:
        return await _unary(context, self._api.explain_spec(request.spec))

    async def JobLogs(
        self, request: scheduler_pb2.JobLogsRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.LogChunk]:
        async for answer in _stream(context, job_logs(self._api, self._mirror, request)):
            yield answer


class OperationsService(scheduler_pb2_grpc.OperationsServiceServicer):
    """See proto/gpupool/v1/scheduler.proto."""

    def __init__(self, api: OperationsApi, mirror: Mirror) -> None:
        self._api = api
        self._mirror = mirror

    async def GetCluster(self, request: scheduler_pb2.GetClusterRequest, context: Context) -> scheduler_pb2.Cluster:
        del request
        return await _unary(context, _call(self._api.cluster))

    async def ListHosts(
        self, request: scheduler_pb2.ListHostsRequest, context: Context
    ) -> scheduler_pb2.ListHostsResponse:
        del request
        return scheduler_pb2.ListHostsResponse(hosts=await _unary(context, _call(self._api.hosts)))

    async def ListUnits(
        self, request: scheduler_pb2.ListUnitsRequest, context: Context
    ) -> scheduler_pb2.ListUnitsResponse:
        if request.host:
            await _unary(context, _call(self._api.host, request.host))
        return scheduler_pb2.ListUnitsResponse(units=await _unary(context, _call(self._api.units, request.host)))

    async def CordonHost(self, request: scheduler_pb2.CordonHostRequest, context: Context) -> scheduler_pb2.Host:
        return await _unary(context, self._api.host_intents.cordon(request.host, request.reason, request.by))

    async def UncordonHost(self, request: scheduler_pb2.UncordonHostRequest, context: Context) -> scheduler_pb2.Host:
        return await _unary(context, self._api.host_intents.uncordon(request.host, request.by))

    async def ConfirmHostDead(
        self, request: scheduler_pb2.ConfirmHostDeadRequest, context: Context
    ) -> scheduler_pb2.Host:
        return await _unary(context, self._api.host_intents.confirm_dead(request.host, request.reason, request.by))

    async def DrainHost(self, request: scheduler_pb2.DrainHostRequest, context: Context) -> scheduler_pb2.Host:
        return await _unary(context, self._api.host_intents.drain(request.host, request.drain))

    async def UndrainHost(self, request: scheduler_pb2.UndrainHostRequest, context: Context) -> scheduler_pb2.Host:
        return await _unary(context, self._api.host_intents.undrain(request.host, request.by))

    async def SetMaintenance(
        self, request: scheduler_pb2.SetMaintenanceRequest, context: Context
    ) -> scheduler_pb2.Host:
        return await _unary(context, self._api.host_intents.maintenance(request))

    async def ReleaseBrake(self, request: scheduler_pb2.ReleaseBrakeRequest, context: Context) -> scheduler_pb2.Cluster:
        await _unary(context, self._api.cluster_intents.release_brake(request))
        return await _unary(context, _call(self._api.cluster))

    async def SetArmed(self, request: scheduler_pb2.SetArmedRequest, context: Context) -> scheduler_pb2.Cluster:
        await _unary(context, self._api.cluster_intents.set_armed(request))
        return await _unary(context, _call(self._api.cluster))

    async def ListQueues(
        self, request: scheduler_pb2.ListQueuesRequest, context: Context
    ) -> scheduler_pb2.ListQueuesResponse:
        del request
        return scheduler_pb2.ListQueuesResponse(queues=await _unary(context, self._api.queues.all()))

    async def SetQueue(self, request: scheduler_pb2.SetQueueRequest, context: Context) -> scheduler_pb2.Queue:
        return await _unary(context, self._api.queues.set(request))

    async def DeleteQueue(
        self, request: scheduler_pb2.DeleteQueueRequest, context: Context
    ) -> scheduler_pb2.DeleteQueueResponse:
        await _unary(context, self._api.queues.delete(request))
        return scheduler_pb2.DeleteQueueResponse()

    async def PlanFailover(
        self, request: scheduler_pb2.PlanFailoverRequest, context: Context
    ) -> scheduler_pb2.FailoverPlan:
        return await _unary(context, self._api.plans.plan(request))

    async def DumpCluster(
        self, request: scheduler_pb2.DumpClusterRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.DumpPart]:
        del request
        async for part in _stream(context, self._api.dump.parts()):
            yield part

    async def ListFailovers(
        self, request: scheduler_pb2.ListFailoversRequest, context: Context
    ) -> scheduler_pb2.ListFailoversResponse:
        return await _unary(context, _call(self._api.failovers, request))

    async def RetryUnit(self, request: scheduler_pb2.RetryUnitRequest, context: Context) -> scheduler_pb2.UnitView:
        return await _unary(context, self._api.retry_unit(request))

    async def Doctor(self, request: scheduler_pb2.DoctorRequest, context: Context) -> scheduler_pb2.DoctorReport:
        return await _unary(context, doctor(self._api, self._mirror, request.host))

    async def WatchEvents(
        self, request: scheduler_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.Event]:
        async for answer in _stream(context, self._api.events(request)):
            yield answer
