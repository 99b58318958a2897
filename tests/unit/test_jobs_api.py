"""What users ask about jobs: idempotent, readable at once, and every refusal says why and what to do."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest

from gpupool.store import keys
from gpupool.store.port import Change, Put, StoreError, Unavailable
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.api.jobs_api import JobsApi
from scheduler.core.state.policy import Policy
from scheduler.mirror.mirror import Mirror
from tests.fakes.pool import HookedStore, Pool, spec, wall
from tests.fakes.virtual_time import until, virtual_time

Ask = scheduler_pb2.SubmitRequest


class Replica:
    def __init__(self, pool: Pool) -> None:
        tokens = itertools.count()
        self.store = HookedStore(pool.backend)
        self.mirror = Mirror(self.store, wall)
        self.api = JobsApi(
            self.store, self.mirror, policy=Policy(), wall=wall, token=lambda: str(next(tokens)).encode()
        )

    async def status(self, job: str, state: int, host: str = "") -> None:
        wire = job_pb2.JobStatus(attempts=[job_pb2.Attempt(number=1, host=host)] if host else [])
        wire.state = state  # type: ignore[assignment]
        done = await self.store.commit([], [Put(keys.job_status(job), wire.SerializeToString())])
        await self.mirror.reached(done.revision)


@asynccontextmanager
async def serving(pool: Pool) -> AsyncIterator[Replica]:
    replica = Replica(pool)
    task = asyncio.create_task(replica.mirror.run())
    await replica.mirror.synced.wait()
    yield replica
    task.cancel()


async def ids(replica: Replica, **wanted: object) -> list[str]:
    found = replica.api.list(scheduler_pb2.ListJobsRequest(filter=scheduler_pb2.JobFilter(**wanted)))  # type: ignore[arg-type]
    return [job.spec.name for job in found.jobs]


@virtual_time
async def test_the_same_key_gives_the_same_job() -> None:
    async with serving(Pool()) as replica:
        request = Ask(spec=spec("a"), idempotency_key="k")
        first = await replica.api.submit(request)
        assert (await replica.api.get(first.id)).spec.name == "a"  # at once
        started = asyncio.get_running_loop().time()
        again = await replica.api.submit(request)
        assert (first.created, again.created, again.id) == (True, False, first.id)
        assert asyncio.get_running_loop().time() == started
        other = await replica.api.submit(Ask(spec=spec("a")))
        assert other.id != first.id


@virtual_time
async def test_the_same_key_for_another_spec_is_refused() -> None:
    async with serving(Pool()) as replica:
        await replica.api.submit(Ask(spec=spec("a"), idempotency_key="k"))
        with pytest.raises(
            ApiError, match=r"key 'k' belongs to job j.*differs in name, cpus; use another key"
        ) as caught:
            await replica.api.submit(Ask(spec=spec("b", cpus=2), idempotency_key="k"))
        assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS


@virtual_time
async def test_a_batch_with_everything_in_it() -> None:
    async with serving(Pool()) as replica:
        await replica.api.submit(Ask(spec=spec("old"), idempotency_key="old"))
        results = await replica.api.submit_batch(
            [
                Ask(spec=spec("a"), idempotency_key="a"),
                Ask(spec=spec("bad", cpus=0)),
                Ask(spec=spec("a"), idempotency_key="a"),
                Ask(spec=spec("changed"), idempotency_key="old"),
                Ask(spec=spec("old"), idempotency_key="old"),
                Ask(spec=spec("dry"), validate_only=True),
                Ask(spec=spec("b")),
            ]
        )
        told = [(r.ok.created if r.HasField("ok") else grpc.StatusCode(_code(r.refused.code)).name) for r in results]
        assert told == [True, "INVALID_ARGUMENT", False, "ALREADY_EXISTS", False, False, True]
        assert (await replica.api.get(results[6].ok.id)).spec.name == "b"


def ordered(name: str, *after: str, allow: bool = False) -> Ask:
    wanted = spec(name)
    wanted.restart.after.extend(after)
    return Ask(spec=wanted, allow_unavailable=allow)


@virtual_time
async def test_a_restart_order_that_makes_no_sense_is_refused() -> None:
    async with serving(Pool()) as replica:
        submit = replica.api.submit
        await submit(ordered("db"))
        await submit(ordered("web", "db"))
        with pytest.raises(ApiError, match=r"restart.after 'bd': no job has this name; names at hand: db, web"):
            await submit(ordered("cache", "bd"))
        with pytest.raises(ApiError, match=r"restart.after 'x': that is the job itself"):
            await submit(ordered("x", "x", allow=True))
        assert (await submit(ordered("cache", "later", "web", allow=True))).warnings
        with pytest.raises(
            ApiError, match=r"restart.after 'cache': later after cache after later is a circle"
        ) as caught:
            await submit(ordered("later", "cache", allow=True))
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@virtual_time
async def test_jobs_of_one_batch_may_name_each_other() -> None:
    async with serving(Pool()) as replica:
        good = await replica.api.submit_batch([ordered("a", "b"), ordered("b", "c"), ordered("c")])
        assert all(result.ok.created for result in good)
        circle = await replica.api.submit_batch([ordered("d", "e"), ordered("e", "d"), ordered("f", "e")])
        assert ["circle" in result.refused.message for result in circle] == [True, True, False]


def _code(number: int) -> tuple[int, str]:
    return next(code.value for code in grpc.StatusCode if code.value[0] == number)


@virtual_time
async def test_a_batch_of_large_specs_is_cut() -> None:
    large = spec()
    large.env["X"] = "x" * 200_000
    async with serving(Pool()) as replica:
        results = await replica.api.submit_batch([Ask(spec=large) for _ in range(20)])
        assert all(result.ok.created for result in results)
        assert len(replica.mirror.jobs()) == 20


@virtual_time
async def test_what_no_host_has() -> None:
    pool = Pool()
    await pool.join("h1")
    async with serving(pool) as replica:
        wanted = spec(image="other")
        wanted.gpus.model = "h100"
        wanted.vm.hugepage_size_kib = 2048
        with pytest.raises(ApiError) as caught:
            await replica.api.submit(Ask(spec=wanted))
        assert "gpus.model 'h100': no host has it; GPU models at hand: a100" in caught.value.message
        assert "image 'other': no host has it; images at hand: img" in caught.value.message
        assert "no host has set pages of 2 MiB aside; sizes at hand: none" in caught.value.message
        answer = await replica.api.submit(Ask(spec=wanted, allow_unavailable=True))
        assert len(answer.warnings) == 3


@virtual_time
async def test_validate_only_writes_nothing() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        before = pool.backend.revision
        assert not (await replica.api.submit(Ask(spec=spec(), validate_only=True))).id
        assert pool.backend.revision == before


@virtual_time
async def test_filters() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        made = {}
        for name in ("train-1", "train-2", "eval"):
            wanted = spec(name)
            wanted.labels["team"] = name[0]
            made[name] = (await replica.api.submit(Ask(spec=wanted))).id
        await replica.status(made["train-2"], job_pb2.JOB_STATE_RUNNING, "h1")
        assert await ids(replica) == ["train-1", "train-2", "eval"]
        assert await ids(replica, name="train-*") == ["train-1", "train-2"]
        assert await ids(replica, labels={"team": "e"}) == ["eval"]
        assert await ids(replica, host="h1") == ["train-2"]
        assert await ids(replica, states=[job_pb2.JOB_STATE_PENDING], name="train-*") == ["train-1"]
        assert await ids(replica, ids=[made["eval"]]) == ["eval"]


@virtual_time
async def test_pages_stand_still_while_jobs_come_and_go() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        for n in range(5):
            await replica.api.submit(Ask(spec=spec(f"j{n}")))
        page = replica.api.list(scheduler_pb2.ListJobsRequest(page_size=2))
        gone = keys.job_spec(page.jobs[0].id)
        replica.mirror._apply(Change(gone, None, 10**6))
        await replica.api.submit(Ask(spec=spec("late")))
        names = [job.spec.name for job in page.jobs]
        while page.next_page_token:
            page = replica.api.list(scheduler_pb2.ListJobsRequest(page_size=2, page_token=page.next_page_token))
            names += [job.spec.name for job in page.jobs]
        assert names == ["j0", "j1", "j2", "j3", "j4", "late"]
        with pytest.raises(ApiError, match="page_token 'x' is not one that ListJobs gave"):
            replica.api.list(scheduler_pb2.ListJobsRequest(page_token="x"))


@virtual_time
async def test_cancel() -> None:
    async with serving(Pool()) as replica:
        job = (await replica.api.submit(Ask(spec=spec()))).id
        request = scheduler_pb2.CancelJobRequest(id=job)
        assert (await replica.api.cancel(request)).status.cancel_requested
        revision = replica.mirror.revision
        assert (await replica.api.cancel(request)).status.cancel_requested
        assert replica.mirror.revision == revision
        done = (await replica.api.submit(Ask(spec=spec()))).id
        await replica.status(done, job_pb2.JOB_STATE_SUCCEEDED)
        assert not (await replica.api.cancel(scheduler_pb2.CancelJobRequest(id=done))).status.cancel_requested
        with pytest.raises(ApiError, match="no job 'nope'; `gpupool jobs` lists them"):
            await replica.api.cancel(scheduler_pb2.CancelJobRequest(id="nope"))


@virtual_time
async def test_a_job_that_another_replica_took_is_found() -> None:
    pool = Pool()
    async with serving(pool) as one, serving(pool) as two:
        job = (await one.api.submit(Ask(spec=spec()))).id
        assert (await two.api.get(job)).id == job


@virtual_time
async def test_explain(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    async with serving(pool) as replica:
        job = (await replica.api.submit(Ask(spec=spec(gpus=3)))).id
        assert (await replica.api.explain(job)).summary == "no host has ever joined"
        await pool.join("h1")
        await until(lambda: len(replica.mirror.ids(keys.Kind.UNIT)) == 2)
        found = await replica.api.explain(job)
        assert found.summary == "fits on none of 1 hosts: 1 TOO_FEW_UNITS"
        assert [(h.host, h.detail) for h in found.hosts] == [("h1", "needs 3 units of one model, it has 2")]
        assert found.queue_position == 1
        await replica.status(job, job_pb2.JOB_STATE_FAILED)
        assert (await replica.api.explain(job)).summary.startswith("FAILED: ")
        with caplog.at_level(logging.ERROR), pytest.raises(ApiError):
            await replica.api.explain("nope")


@virtual_time
async def test_what_no_host_could_ever_take_is_refused() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        early = Ask(spec=spec(gpus=64), idempotency_key="early")
        assert not (await replica.api.submit(early)).warnings  # nobody is known yet, so nothing can be said
        await pool.join("h1")
        await pool.join("h2", gpus=4)
        await until(lambda: len(replica.mirror.ids(keys.Kind.INVENTORY)) == 2)
        assert len((await replica.api.submit(early)).warnings) == 1  # accepted once, it stays so
        await replica.api.submit(Ask(spec=spec(gpus=4)))
        with pytest.raises(ApiError) as caught:
            await replica.api.submit(Ask(spec=spec(gpus=5, cpus=18)))
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        nearest = (
            "no known host could ever take it, even if it were empty: h2 has 1 unit too few and has 2 CPUs too few"
        )
        assert caught.value.message == f"{nearest}; to queue it all the same: --allow-unavailable"
        answer = await replica.api.submit(Ask(spec=spec(gpus=5, cpus=18), allow_unavailable=True))
        assert list(answer.warnings) == [nearest]
        assert list((await replica.api.explain(answer.id)).impossible) == [nearest]
        results = await replica.api.submit_batch([Ask(spec=spec(gpus=5)), Ask(spec=spec(gpus=4))])
        assert [result.HasField("ok") for result in results] == [False, True]
        await pool.leave("h2")  # it may come back
        await pool.put(Put(keys.host_intent("h2"), records_pb2.HostIntent(maintenance=True).SerializeToString()))
        await replica.api.submit(Ask(spec=spec(gpus=4)))
        await pool.join("h3", gpus=5)
        await until(lambda: len(replica.mirror.ids(keys.Kind.INVENTORY)) == 3)
        await replica.api.submit(Ask(spec=spec(gpus=5)))


@virtual_time
async def test_a_dry_run_says_what_explain_would() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        await pool.join("h1")
        await replica.status((await replica.api.submit(Ask(spec=spec("first", gpus=2)))).id, job_pb2.JOB_STATE_PENDING)
        await pool.put(Put(keys.host_intent("h1"), records_pb2.HostIntent(cordoned=True).SerializeToString()))
        await until(lambda: bool(replica.mirror.ids(keys.Kind.HOST_INTENT)))
        before = pool.backend.revision
        wanted = spec("next", gpus=2)
        wanted.priority = -1
        found = await replica.api.explain_spec(wanted)
        assert (found.id, found.state, found.queue_position) == ("", job_pb2.JOB_STATE_PENDING, 2)
        assert found.summary == "fits on none of 1 hosts: 1 HOST_CORDONED"
        assert (found.nearest.host, found.nearest.summary) == ("h1", "h1 is cordoned")
        assert not found.impossible
        wanted.priority = 1
        assert (await replica.api.explain_spec(wanted)).queue_position == 1
        assert len((await replica.api.explain_spec(spec(gpus=3))).impossible) == 1
        with pytest.raises(ApiError, match="cpus is 0"):
            await replica.api.explain_spec(spec(cpus=0))
        assert pool.backend.revision == before
        real = (await replica.api.submit(Ask(spec=wanted))).id
        again, told = await replica.api.explain_spec(wanted), await replica.api.explain(real)
        again.id, again.queue_position = told.id, told.queue_position
        assert again == told


@virtual_time
async def test_a_dry_run_refuses_what_a_submission_would() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        await pool.join("h1")
        nowhere, after, named = spec("a"), spec("b"), spec("c")
        nowhere.queue = "vision"
        after.dependencies.add(job="jnobody")
        named.restart.after.append("nobody")
        for wrong, why in ((nowhere, "queue 'vision': there is none"), (after, "'jnobody': no such job")):
            for ask in (replica.api.explain_spec(wrong), replica.api.submit(Ask(spec=wrong))):
                with pytest.raises(ApiError, match=why):
                    await ask
        assert (await replica.api.explain_spec(named)).impossible == [
            "restart.after 'nobody': no job has this name; names at hand: none"
        ]


@virtual_time
async def test_a_dry_run_waits_for_nobody_who_has_ended() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        await pool.join("h1")
        await until(lambda: bool(replica.mirror.ids(keys.Kind.INVENTORY)))
        other = (await replica.api.submit(Ask(spec=spec("first")))).id
        wanted, never = spec("next"), spec("never")
        wanted.dependencies.add(job=other)
        never.dependencies.add(job=other, when=job_pb2.Dependency.NOT_OK)
        assert (await replica.api.explain_spec(wanted)).wait == scheduler_pb2.JOB_WAIT_DEPENDENCY
        await replica.status(other, job_pb2.JOB_STATE_SUCCEEDED)
        assert not (await replica.api.explain_spec(wanted)).wait
        said = f"would be CANCELLED at once, as it can never start: {other} is SUCCEEDED"
        assert (await replica.api.explain_spec(never)).summary == said


@virtual_time
async def test_watch_tells_what_is_and_what_changes_and_ends() -> None:
    async with serving(Pool()) as replica:
        job = (await replica.api.submit(Ask(spec=spec("a")))).id
        await replica.api.submit(Ask(spec=spec("b")))
        before = replica.mirror.listening[0]
        request = scheduler_pb2.WatchJobsRequest(filter=scheduler_pb2.JobFilter(ids=[job]))
        async with aclosing(replica.api.watch(request)) as news:
            assert (await anext(news)).status.state == job_pb2.JOB_STATE_PENDING
            await replica.status(job, job_pb2.JOB_STATE_RUNNING)
            assert (await anext(news)).status.state == job_pb2.JOB_STATE_RUNNING
            assert replica.mirror.listening[0] == before + 3
        assert replica.mirror.listening[0] == before


@virtual_time
async def test_a_store_that_is_away_is_told() -> None:
    async with serving(Pool()) as replica:
        job = (await replica.api.submit(Ask(spec=spec()))).id
        replica.store.down = True
        with pytest.raises(Unavailable):
            await replica.api.submit(Ask(spec=spec()))
        with pytest.raises(StoreError):
            await replica.api.cancel(scheduler_pb2.CancelJobRequest(id=job))
        assert (await replica.api.get(job)).id == job  # what is known is still shown
