"""What users ask of the queue: dependencies on what is known, holds and requeues where they make sense."""

from __future__ import annotations

import grpc
import pytest

from gpupool.store import keys
from gpupool.store.port import Delete, Put
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.submitting.validate import faults
from tests.fakes.pool import Pool, spec
from tests.fakes.virtual_time import virtual_time
from tests.unit.test_jobs_api import Ask, Replica, serving


def after(*jobs: str) -> job_pb2.JobSpec:
    wanted = spec("b")
    for job in jobs:
        wanted.dependencies.add(job=job)
    return wanted


async def intent_of(replica: Replica, job: str) -> records_pb2.JobIntent:
    kv = await replica.store.get(keys.job_intent(job))
    return records_pb2.JobIntent.FromString(kv.value) if kv is not None else records_pb2.JobIntent()


@virtual_time
async def test_a_job_depends_on_jobs_that_were_there_before_it() -> None:
    async with serving(Pool()) as replica:
        first = await replica.api.submit(Ask(spec=spec("a")))
        await replica.api.submit(Ask(spec=after(first.id), idempotency_key="k"))
        with pytest.raises(ApiError, match=r"dependencies\[1\].job 'jnobody': no such job; .* submitted\s+before"):
            await replica.api.submit(Ask(spec=after(first.id, "jnobody")))
        results = await replica.api.submit_batch([Ask(spec=after("jnobody")), Ask(spec=after(first.id))])
        assert [r.WhichOneof("result") for r in results] == ["refused", "ok"]


@virtual_time
async def test_a_submission_that_is_repeated_is_not_judged_again() -> None:
    async with serving(Pool()) as replica:
        first = await replica.api.submit(Ask(spec=spec("a")))
        request = Ask(spec=after(first.id), idempotency_key="k")
        second = await replica.api.submit(request)
        gone = await replica.store.commit([], [Delete(keys.job_spec(first.id))])  # as if it had been retired
        await replica.mirror.reached(gone.revision)
        assert (await replica.api.submit(request)).id == second.id


def test_what_is_wrong_with_dependencies() -> None:
    assert faults(after("../x")) == ["dependencies[0].job '../x' is no job's id; `gpupool jobs` lists them"]
    assert faults(after("ja", "ja")) == [
        "dependencies[1].job 'ja' stands there twice; say once which end is waited for"
    ]
    assert faults(after(*(f"j{n}" for n in range(1001)))) == ["dependencies: 1001 of them, at most 1000 are allowed"]
    wrong = spec()
    wrong.dependencies.add(job="ja", when=9)
    assert faults(wrong) == ["dependencies[0].when is 9: it must be ok, any or not_ok"]


@virtual_time
async def test_only_a_pending_job_is_held_and_any_hold_can_be_released() -> None:
    async with serving(Pool()) as replica:
        job = (await replica.api.submit(Ask(spec=spec("a")))).id
        hold = scheduler_pb2.HoldJobRequest(id=job, reason="no", by="ann")
        await replica.api.wishes.hold(hold)
        assert (await intent_of(replica, job)).held_reason == "no"
        await replica.api.release(scheduler_pb2.ReleaseJobRequest(id=job))  # though no leader has seen it yet
        with pytest.raises(ApiError, match="is not held"):
            await replica.api.release(scheduler_pb2.ReleaseJobRequest(id=job))
        await replica.status(job, job_pb2.JOB_STATE_RUNNING)
        with pytest.raises(ApiError, match="is RUNNING, and only a pending job can be held; to stop it and hold it"):
            await replica.api.wishes.hold(hold)


@virtual_time
async def test_only_what_has_a_vm_is_requeued() -> None:
    async with serving(Pool()) as replica:
        job = (await replica.api.submit(Ask(spec=spec("a")))).id
        wish = scheduler_pb2.RequeueJobRequest(id=job, by="ann", hold=True)
        with pytest.raises(ApiError, match="is PENDING, and only one that starts or runs can be requeued") as caught:
            await replica.api.wishes.requeue(wish)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        status = job_pb2.JobStatus(state=job_pb2.JOB_STATE_RUNNING, attempt_count=3)
        await replica.store.commit([], [Put(keys.job_status(job), status.SerializeToString())])
        await replica.mirror.reached((await replica.store.list("/")).revision)
        await replica.api.wishes.requeue(wish)
        found = await intent_of(replica, job)
        assert (found.requeue_attempt, found.requeue_by, found.held_by) == (3, "ann", "ann")
        await replica.status(job, job_pb2.JOB_STATE_SUCCEEDED)
        with pytest.raises(ApiError, match="submit it again"):
            await replica.api.wishes.requeue(wish)
