"""A scheduler that answers from a script: real gRPC on 127.0.0.1, no decisions, failures on demand."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2, scheduler_pb2_grpc

Status = grpc.StatusCode
PAGE = 2  # jobs in a page, whatever is asked for, so that three jobs are two pages
BREAK = object()  # in a script of a stream: the connection dies here
ENDED = job_pb2.JOB_STATE_SUCCEEDED


def job(name: str = "j1", state: Any = job_pb2.JOB_STATE_PENDING, **status: Any) -> job_pb2.Job:
    spec = job_pb2.JobSpec(name=f"{name}-name", image="debian-numpy", cpus=1, memory_mib=256)
    spec.gpus.count = 1
    return job_pb2.Job(id=name, spec=spec, status=job_pb2.JobStatus(state=state, submitted_s=1.0, **status))


class FakeScheduler:
    """What it knows, what it was asked, and what it does wrong. `with` starts it, on a thread of its own."""

    def __init__(self) -> None:
        self.jobs: dict[str, job_pb2.Job] = {}
        self.hosts: list[scheduler_pb2.Host] = []
        self.units: list[scheduler_pb2.UnitView] = []
        self.keys: dict[str, str] = {}
        self.failures: dict[str, list[tuple[grpc.StatusCode, str]]] = defaultdict(list)
        # For each opening of a stream, by method: what it says before it ends; BREAK ends it with UNAVAILABLE.
        self.scripts: dict[str, list[list[Any]]] = defaultdict(list)
        self.asked: list[Any] = []
        self.calls: Counter[str] = Counter()
        self.looks: list[Callable[[], object]] = []  # what happens at each look at the hosts, one after the other
        self.doctor_s = 0.0
        self.record = records_pb2.ClusterRecord()
        self.intent = records_pb2.ClusterIntent()
        self.policy_differs: list[str] = []
        self.failovers: list[records_pb2.FailoverRecord] = []
        self.queues: list[scheduler_pb2.Queue] = []
        self.plan = scheduler_pb2.FailoverPlan()
        self.explained = scheduler_pb2.Explanation(
            state=job_pb2.JOB_STATE_PENDING, summary="fits on h1", queue_position=1
        )
        self.address = ""

    def fail(self, method: str, *codes: grpc.StatusCode, details: str = "injected") -> None:
        """The next calls of `method` fail with these codes."""
        self.failures[method] += [(code, details) for code in codes]

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        scheduler_pb2_grpc.add_JobServiceServicer_to_server(_Jobs(self), self._server)
        scheduler_pb2_grpc.add_OperationsServiceServicer_to_server(_Operations(self), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def answer(self, method: str, request: Any, context: Any) -> None:
        """Note the call, and let it fail if that is its turn."""
        self.calls[method] += 1
        self.asked.append(request)
        if self.failures[method]:
            await context.abort(*self.failures[method].pop(0))

    async def play(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        """The next script of a streaming method; after the last one the stream stays silent."""
        await self.answer(method, request, context)
        for item in self.scripts[method].pop(0) if self.scripts[method] else [asyncio.Event()]:
            if item is BREAK:
                await context.abort(Status.UNAVAILABLE, "the replica died")
            elif isinstance(item, asyncio.Event):
                await item.wait()
            else:
                yield item

    async def job(self, name: str, context: Any) -> job_pb2.Job:
        if name not in self.jobs:
            await context.abort(Status.NOT_FOUND, f"no job {name!r}")
        return self.jobs[name]

    async def host(self, name: str, context: Any) -> scheduler_pb2.Host:
        known = {host.name: host for host in self.hosts}
        if name not in known:
            await context.abort(Status.NOT_FOUND, f"no host {name!r}")
        return known[name]

    def accept(self, request: scheduler_pb2.SubmitRequest) -> scheduler_pb2.SubmitResponse:
        known = request.idempotency_key in self.keys
        name = self.keys.setdefault(request.idempotency_key, f"job-{len(self.keys)}")
        if not known:
            self.jobs[name] = job(name)
        return scheduler_pb2.SubmitResponse(id=name, created=not known)


def faults(spec: job_pb2.JobSpec) -> str:
    return "" if spec.image else "image: must not be empty\ncpus: must be at least 1"


class _Jobs(scheduler_pb2_grpc.JobServiceServicer):
    def __init__(self, fake: FakeScheduler) -> None:
        self.fake = fake

    async def Submit(self, request: Any, context: Any) -> Any:
        await self.fake.answer("Submit", request, context)
        if faults(request.spec):
            await context.abort(Status.INVALID_ARGUMENT, faults(request.spec))
        if request.validate_only:
            return scheduler_pb2.SubmitResponse(warnings=["no host has this GPU model now"])
        return self.fake.accept(request)

    def SubmitMany(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError  # clients ask for SubmitBatch

    async def SubmitBatch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.fake.answer("SubmitBatch", request, context)
        breaks = self.fake.scripts["SubmitBatch"].pop(0) if self.fake.scripts["SubmitBatch"] else []
        for one in request.requests:
            if faults(one.spec):
                refusal = scheduler_pb2.Refusal(code=Status.INVALID_ARGUMENT.value[0], message=faults(one.spec))
                result = scheduler_pb2.SubmitResult(refused=refusal)
            else:
                answer = self.fake.accept(one)
                if one.spec.name in breaks:  # taken, but the answer is lost
                    await context.abort(Status.UNAVAILABLE, "the replica died")
                result = scheduler_pb2.SubmitResult(ok=answer)
            yield scheduler_pb2.SubmitResults(results=[result])

    async def HoldJob(self, request: Any, context: Any) -> Any:
        await self.fake.answer("HoldJob", request, context)
        return await self.fake.job(request.id, context)

    async def RequeueJob(self, request: Any, context: Any) -> Any:
        await self.fake.answer("RequeueJob", request, context)
        return await self.fake.job(request.id, context)

    async def GetJob(self, request: Any, context: Any) -> Any:
        await self.fake.answer("GetJob", request, context)
        return await self.fake.job(request.id, context)

    async def ListJobs(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ListJobs", request, context)
        states, start = list(request.filter.states), int(request.page_token or 0)
        jobs = [job for job in self.fake.jobs.values() if not states or job.status.state in states]
        token = str(start + PAGE) if len(jobs) > start + PAGE else ""
        return scheduler_pb2.ListJobsResponse(jobs=jobs[start : start + PAGE], next_page_token=token)

    async def WatchJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for item in self.fake.play("WatchJobs", request, context):
            self.fake.jobs[item.id] = item
            yield item

    async def CancelJob(self, request: Any, context: Any) -> Any:
        await self.fake.answer("CancelJob", request, context)
        found = await self.fake.job(request.id, context)
        found.status.cancel_requested = True
        return found

    async def ReleaseJob(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ReleaseJob", request, context)
        found = await self.fake.job(request.id, context)
        found.status.hold = ""
        return found

    async def ExplainSpec(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ExplainSpec", request, context)
        return self.fake.explained

    async def ExplainJob(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ExplainJob", request, context)
        found = await self.fake.job(request.id, context)
        busy = scheduler_pb2.REASON_UNITS_BUSY
        return scheduler_pb2.Explanation(
            id=found.id,
            state=found.status.state,
            summary="waits for 1 GPU",
            queue_position=1,
            reasons=[scheduler_pb2.ReasonCount(reason=busy, hosts=1)],
            hosts=[scheduler_pb2.HostVerdict(host="h1", reason=busy, detail="needs 1 unit, 0 of 4 free")],
        )

    async def JobLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for item in self.fake.play("JobLogs", request, context):
            yield item


class _Operations(scheduler_pb2_grpc.OperationsServiceServicer):
    def __init__(self, fake: FakeScheduler) -> None:
        self.fake = fake

    async def GetCluster(self, request: Any, context: Any) -> Any:
        await self.fake.answer("GetCluster", request, context)
        leader = records_pb2.Leader(id="s1", address="10.0.0.1:50151", since_s=1.0)
        return scheduler_pb2.Cluster(
            leader=leader,
            replica="s2",
            version="0.1.0",
            hosts=2,
            hosts_ready=1,
            record=self.fake.record,
            intent=self.fake.intent,
            policy_differs=self.fake.policy_differs,
        )

    async def ListHosts(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ListHosts", request, context)
        if self.fake.looks:
            self.fake.looks.pop(0)()
        return scheduler_pb2.ListHostsResponse(hosts=self.fake.hosts)

    async def ListUnits(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ListUnits", request, context)
        units = [unit for unit in self.fake.units if request.host in {"", unit.host}]
        return scheduler_pb2.ListUnitsResponse(units=units)

    async def CordonHost(self, request: Any, context: Any) -> Any:
        await self.fake.answer("CordonHost", request, context)
        host = await self.fake.host(request.host, context)
        host.intent.cordoned, host.intent.reason, host.intent.by = True, request.reason, request.by
        return host

    async def UncordonHost(self, request: Any, context: Any) -> Any:
        await self.fake.answer("UncordonHost", request, context)
        host = await self.fake.host(request.host, context)
        host.intent.cordoned = False
        return host

    async def DrainHost(self, request: Any, context: Any) -> Any:
        await self.fake.answer("DrainHost", request, context)
        host = await self.fake.host(request.host, context)
        host.intent.drain.CopyFrom(request.drain)
        host.intent.drain.at_s = 1.0
        return host

    async def UndrainHost(self, request: Any, context: Any) -> Any:
        await self.fake.answer("UndrainHost", request, context)
        host = await self.fake.host(request.host, context)
        host.intent.ClearField("drain")
        return host

    async def SetMaintenance(self, request: Any, context: Any) -> Any:
        await self.fake.answer("SetMaintenance", request, context)
        host = await self.fake.host(request.host, context)
        host.intent.maintenance = request.on
        return host

    async def ReleaseBrake(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ReleaseBrake", request, context)
        self.fake.record.ClearField("brake")
        return await self.GetCluster(request, context)

    async def SetArmed(self, request: Any, context: Any) -> Any:
        await self.fake.answer("SetArmed", request, context)
        self.fake.intent.disarmed = not request.armed
        self.fake.intent.reason, self.fake.intent.by = request.reason, request.by
        return await self.GetCluster(request, context)

    async def PlanFailover(self, request: Any, context: Any) -> Any:
        await self.fake.answer("PlanFailover", request, context)
        return self.fake.plan

    async def ListQueues(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ListQueues", request, context)
        return scheduler_pb2.ListQueuesResponse(queues=self.fake.queues)

    async def SetQueue(self, request: Any, context: Any) -> Any:
        await self.fake.answer("SetQueue", request, context)
        return scheduler_pb2.Queue(name=request.name, settings=request.settings)

    async def DeleteQueue(self, request: Any, context: Any) -> Any:
        await self.fake.answer("DeleteQueue", request, context)
        return scheduler_pb2.DeleteQueueResponse()

    async def DumpCluster(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for part in self.fake.play("DumpCluster", request, context):
            yield part

    async def ListFailovers(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ListFailovers", request, context)
        found = [record for record in self.fake.failovers if request.host in {"", record.host}]
        return scheduler_pb2.ListFailoversResponse(failovers=found[: request.last or None])

    async def ConfirmHostDead(self, request: Any, context: Any) -> Any:
        await self.fake.answer("ConfirmHostDead", request, context)
        return await self.fake.host(request.host, context)

    async def RetryUnit(self, request: Any, context: Any) -> Any:
        await self.fake.answer("RetryUnit", request, context)
        return next(unit for unit in self.fake.units if unit.unit.id == request.unit)

    async def Doctor(self, request: Any, context: Any) -> Any:
        await self.fake.answer("Doctor", request, context)
        await self.fake.host(request.host, context)
        await asyncio.sleep(self.fake.doctor_s)
        return scheduler_pb2.DoctorReport(host=request.host, findings=[inventory_pb2.Finding(check="iommu")])

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for item in self.fake.play("WatchEvents", request, context):
            yield item
