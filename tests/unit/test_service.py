"""The gRPC face, for real: statuses, streams, the agent's log stream passed on, and a store that is away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from gpupool import dumpfile
from gpupool.store import keys
from gpupool.store.port import Put
from gpupool.v1 import agent_pb2, agent_pb2_grpc, inventory_pb2, job_pb2, records_pb2, scheduler_pb2, scheduler_pb2_grpc
from scheduler.api.agent_doctor import DOCTOR_S, doctor
from scheduler.api.intents import ApiError
from scheduler.api.jobs_api import JobsApi
from scheduler.api.operations_api import OperationsApi
from scheduler.api.service import JobService, OperationsService
from scheduler.core.state.policy import Policy
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import HookedStore, Pool, spec, wall
from tests.fakes.virtual_time import until

Ask = scheduler_pb2.SubmitRequest


@dataclass
class Served:
    pool: Pool
    store: HookedStore
    mirror: Mirror
    jobs: scheduler_pb2_grpc.JobServiceAsyncStub
    operations: scheduler_pb2_grpc.OperationsServiceAsyncStub


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    pool = Pool()
    store = HookedStore(pool.backend)
    mirror = Mirror(store, wall)
    following = asyncio.create_task(mirror.run())
    api = JobsApi(store, mirror, policy=Policy(), wall=wall, token=lambda: os.urandom(16))
    server = grpc.aio.server()
    scheduler_pb2_grpc.add_JobServiceServicer_to_server(JobService(api, mirror), server)
    operations = OperationsApi(store, mirror, replica="s1", version="1", wall=wall)
    scheduler_pb2_grpc.add_OperationsServiceServicer_to_server(OperationsService(operations, mirror), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        job_stub: Any = scheduler_pb2_grpc.JobServiceStub(channel)
        operations_stub: Any = scheduler_pb2_grpc.OperationsServiceStub(channel)
        yield Served(pool, store, mirror, job_stub, operations_stub)
    await server.stop(0)
    following.cancel()


class Agent(agent_pb2_grpc.AgentServiceServicer):
    async def Describe(self, request: agent_pb2.DescribeRequest, context: Any) -> agent_pb2.Description:
        raise NotImplementedError

    async def Logs(self, request: agent_pb2.AgentLogsRequest, context: Any) -> AsyncIterator[scheduler_pb2.LogChunk]:
        if request.allocation != "j1.2":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no output of {request.allocation}")
        for text in ("one", "two"):
            yield scheduler_pb2.LogChunk(lines=[scheduler_pb2.LogLine(text=text)])

    async def Doctor(self, request: agent_pb2.AgentDoctorRequest, context: Any) -> scheduler_pb2.DoctorReport:
        if self.puzzled:
            await context.abort(grpc.StatusCode.INTERNAL, "no /sys")
        return scheduler_pb2.DoctorReport(host="h1", findings=[inventory_pb2.Finding(check="iommu")])

    puzzled = False


@asynccontextmanager
async def an_agent(*, puzzled: bool = False) -> AsyncIterator[str]:
    server, agent = grpc.aio.server(), Agent()
    agent.puzzled = puzzled
    agent_pb2_grpc.add_AgentServiceServicer_to_server(agent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def code(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def test_statuses() -> None:
    async with serving() as served:
        done = await served.jobs.Submit(Ask(spec=spec("a"), idempotency_key="k"))
        assert (await served.jobs.GetJob(scheduler_pb2.GetJobRequest(id=done.id))).spec.name == "a"
        assert (await code(served.jobs.GetJob(scheduler_pb2.GetJobRequest(id="x"))))[0] == "NOT_FOUND"
        assert (await code(served.jobs.ExplainJob(scheduler_pb2.ExplainJobRequest(id="x"))))[0] == "NOT_FOUND"
        assert (await code(served.jobs.Submit(Ask())))[0] == "INVALID_ARGUMENT"
        assert (await code(served.jobs.Submit(Ask(spec=spec("b"), idempotency_key="k"))))[0] == "ALREADY_EXISTS"
        bad_page = scheduler_pb2.ListJobsRequest(page_token="?")
        assert (await code(served.jobs.ListJobs(bad_page)))[0] == "INVALID_ARGUMENT"
        assert (await code(served.operations.ListUnits(scheduler_pb2.ListUnitsRequest(host="h"))))[0] == "NOT_FOUND"
        assert (await served.operations.GetCluster(scheduler_pb2.GetClusterRequest())).jobs["PENDING"] == 1


async def test_a_store_that_is_away() -> None:
    async with serving() as served:
        done = await served.jobs.Submit(Ask(spec=spec()))
        served.store.down = True
        status, details = await code(served.jobs.Submit(Ask(spec=spec())))
        assert status == "UNAVAILABLE"
        assert details.startswith("the store did not answer (etcd is away)")
        assert (await code(served.jobs.CancelJob(scheduler_pb2.CancelJobRequest(id=done.id))))[0] == "UNAVAILABLE"
        assert (await served.jobs.GetJob(scheduler_pb2.GetJobRequest(id=done.id))).id == done.id


async def test_a_thousand_in_one_stream() -> None:
    async with serving() as served:
        stream = served.jobs.SubmitMany()
        ids: list[Any] = []

        async def send(first: int, last: int) -> None:
            for n in range(first, last):
                await stream.write(Ask(spec=spec(f"n{n}", cpus=0 if n == 500 else 1)))

        await send(0, 1)
        ids.append(await stream.read())  # who waits for each answer gets it
        sending = asyncio.create_task(send(1, 1000))
        ids += [await stream.read() for _ in range(999)]
        await sending
        await stream.done_writing()
        assert await stream.read() == grpc.aio.EOF
        assert [n for n, answer in enumerate(ids) if answer.HasField("refused")] == [500]
        for n in (0, 499, 999):
            job = await served.jobs.GetJob(scheduler_pb2.GetJobRequest(id=ids[n].ok.id))
            assert job.spec.name == f"n{n}"


async def test_a_thousand_in_one_message() -> None:
    async with serving() as served:
        asked = [Ask(spec=spec(f"n{n}", cpus=0 if n == 500 else 1), idempotency_key=f"k{n}") for n in range(1000)]
        parts = [part async for part in served.jobs.SubmitBatch(scheduler_pb2.SubmitBatchRequest(requests=asked))]
        answers = [answer for part in parts for answer in part.results]
        assert len(parts) > 1, "what is committed is told before the rest is"
        assert [n for n, answer in enumerate(answers) if answer.HasField("refused")] == [500]
        jobs = [answer.ok.id for answer in answers if answer.HasField("ok")]
        arrivals = [served.mirror.arrival(job)[0] for job in jobs]
        assert arrivals == sorted(arrivals), "they arrive in the order in which they were sent"
        again = [part async for part in served.jobs.SubmitBatch(scheduler_pb2.SubmitBatchRequest(requests=asked[:3]))]
        assert [(a.ok.id, a.ok.created) for part in again for a in part.results] == [(job, False) for job in jobs[:3]]


async def test_a_batch_that_is_too_long_or_finds_no_store() -> None:
    async with serving() as served:
        long = scheduler_pb2.SubmitBatchRequest(requests=[Ask(spec=spec())] * 1001)
        status, details = await code(served.jobs.SubmitBatch(long).read())
        assert (status, details) == (
            "INVALID_ARGUMENT",
            "1001 requests in one message: at most 1000 are taken; send several",
        )
        served.store.down = True
        asked = scheduler_pb2.SubmitBatchRequest(requests=[Ask(spec=spec())] * 300)
        assert (await code(served.jobs.SubmitBatch(asked).read()))[0] == "UNAVAILABLE"


async def test_a_stream_is_told_that_the_store_is_away() -> None:
    async with serving() as served:
        served.store.down = True
        stream = served.jobs.SubmitMany()
        await stream.write(Ask(spec=spec()))
        assert (await code(stream.read()))[0] == "UNAVAILABLE"


async def test_a_watch_that_is_left_leaves_nothing_behind() -> None:
    async with serving() as served:
        await served.jobs.Submit(Ask(spec=spec()))
        before = served.mirror.listening[0]
        jobs = served.jobs.WatchJobs(scheduler_pb2.WatchJobsRequest())
        events = served.operations.WatchEvents(scheduler_pb2.WatchEventsRequest(follow=True))
        first: Any = await jobs.read()
        assert first.status.state == job_pb2.JOB_STATE_PENDING
        await until(lambda: served.mirror.listening[1], within_s=5)
        assert served.mirror.listening[0] == before + 3
        jobs.cancel()
        events.cancel()
        await until(lambda: served.mirror.listening == (before, 0), within_s=5)


async def test_logs_come_from_the_agent() -> None:
    async with serving() as served, an_agent() as address:
        await served.pool.submit("j1")
        attempts = [job_pb2.Attempt(number=n, host="h1") for n in (1, 2)]
        status = job_pb2.JobStatus(state=job_pb2.JOB_STATE_RUNNING, attempts=attempts, attempt_count=2)
        session = records_pb2.Session(address=address)
        await served.mirror.reached(
            await served.pool.put(
                Put(keys.job_status("j1"), status.SerializeToString()),
                Put(keys.session("h1"), session.SerializeToString()),
            )
        )
        chunks = [c async for c in served.jobs.JobLogs(scheduler_pb2.JobLogsRequest(id="j1"))]
        assert [(c.attempt, c.lines[0].text) for c in chunks] == [(2, "one"), (2, "two")]
        first = served.jobs.JobLogs(scheduler_pb2.JobLogsRequest(id="j1", attempt=1))
        assert await code(first.read()) == ("NOT_FOUND", f"the agent of h1 at {address} says: no output of j1.1")
        ninth = served.jobs.JobLogs(scheduler_pb2.JobLogsRequest(id="j1", attempt=9))
        assert await code(ninth.read()) == ("NOT_FOUND", "job j1 has no attempt 9; it has 1, 2")
        await served.pool.leave("h1")
        await until(lambda: not served.mirror.session_id("h1"), within_s=5)
        gone = await code(served.jobs.JobLogs(scheduler_pb2.JobLogsRequest(id="j1")).read())
        assert gone[0] == "UNAVAILABLE"
        assert "ran on h1, which is not reachable now" in gone[1]


async def at(served: Served, address: str) -> None:
    """The agent of h1 is at `address`."""
    session = records_pb2.Session(address=address)
    await served.mirror.reached(await served.pool.put(Put(keys.session("h1"), session.SerializeToString())))


async def test_doctor_is_asked_of_the_agent() -> None:
    request = scheduler_pb2.DoctorRequest(host="h1")
    async with serving() as served:
        assert await code(served.operations.Doctor(request)) == ("NOT_FOUND", "no host 'h1'; known hosts: none")
        async with an_agent() as address:
            await at(served, address)
            report = await served.operations.Doctor(request)
            assert [finding.check for finding in report.findings] == ["iommu"]
        status, details = await code(served.operations.Doctor(request))
        assert status == "UNAVAILABLE"
        assert f"the agent of h1 at {address} does not answer" in details
        assert "run `gpupool doctor` on the host itself" in details
        async with an_agent(puzzled=True) as address:
            await at(served, address)
            told = await code(served.operations.Doctor(request))
            assert told == ("INTERNAL", f"the agent of h1 at {address} says: no /sys")


async def test_doctor_of_a_host_without_a_session() -> None:
    async with serving() as served:
        record = records_pb2.HostRecord(state=records_pb2.HOST_STATE_FENCED)
        await served.mirror.reached(await served.pool.put(Put(keys.host("h1"), record.SerializeToString())))
        status, details = await code(served.operations.Doctor(scheduler_pb2.DoctorRequest(host="h1")))
        assert status == "UNAVAILABLE"
        assert "host h1 has no session now" in details


async def test_an_agent_that_hangs_is_not_waited_for_for_ever() -> None:
    async with serving() as served:
        await at(served, "10.0.0.1:1")
        operations = OperationsApi(served.store, served.mirror, replica="s1", version="1", wall=wall)
        asked: list[tuple[str, float]] = []

        async def hangs(address: str, timeout_s: float) -> scheduler_pb2.DoctorReport:
            asked.append((address, timeout_s))
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata(), "Deadline Exceeded"
            )

        with pytest.raises(ApiError, match=r"does not answer \(Deadline Exceeded\)") as caught:
            await doctor(operations, served.mirror, "h1", hangs)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert asked == [("10.0.0.1:1", DOCTOR_S)]


async def test_a_dump_is_streamed_as_of_one_revision() -> None:
    async with serving() as served:
        await served.pool.join("h1", gpus=2)
        submitted = await served.jobs.Submit(Ask(spec=spec("secret-free")))
        parts = [part async for part in served.operations.DumpCluster(scheduler_pb2.DumpClusterRequest())]
        assert parts[0].head.revision == served.mirror.revision > 0
        text = "\n".join(dumpfile.lines(parts))
        assert keys.job_spec(submitted.id) in text
        assert keys.session("h1") in text
        assert "127.0.0.1:1" not in text
