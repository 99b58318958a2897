"""Arrays: never more at once than may, all run in the end; made as one by the API, again and again the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.store import keys
from gpupool.store.port import Delete
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.core.state.tables import JobState
from scheduler.submitting.validate import faults
from tests.fakes.pool import Pool, spec
from tests.fakes.virtual_time import virtual_time
from tests.golden.runner import Player
from tests.unit.test_jobs_api import Ask, serving

COUNT = 5
DOINGS = st.lists(
    st.tuples(st.sampled_from(["end", "hold", "release", "requeue", "cancel", "leader"]), st.integers(0, COUNT - 1)),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3), DOINGS)
def test_never_more_than_may_and_all_in_the_end(parallel: int, doings: list[tuple[str, int]]) -> None:
    player = Player()
    player.play("host h1 8xa100")
    for index in reversed(range(COUNT)):
        player.play(f"submit a-{index} array=a.{index}.{parallel}\nrun")
    for doing, index in doings:
        job = player.cluster.jobs[f"a-{index}"]
        if doing == "leader":
            player.play("leader")
        elif not job.final and (doing in ("hold", "release", "cancel") or job.allocation_id):
            player.play(f"{doing} a-{index}")
        if doing in ("requeue", "cancel") and job.allocation_id:
            player.play(f"stopped a-{index}")
        player.play("run")
        live = [j for j in player.cluster.jobs.values() if j.allocation_id]
        ready = [j for j in player.cluster.jobs.values() if j.state is JobState.PENDING and not j.hold]
        assert len(live) == min(parallel or COUNT, len(live) + len(ready))
    for _ in range(COUNT):
        for job in list(player.cluster.jobs.values()):
            if job.hold:
                player.play(f"release {job.id}")
        player.play("run")
        for job in list(player.cluster.jobs.values()):
            if job.allocation_id:
                player.play(f"end {job.id}")
    assert all(j.final for j in player.cluster.jobs.values())
    assert "VIOLATION" not in "\n".join(player.log)


def array(count: int, parallel: int = 0) -> job_pb2.JobSpec:
    wanted = spec("a")
    wanted.array.count, wanted.array.parallel = count, parallel
    return wanted


@virtual_time
async def test_an_array_is_made_as_one_and_again_the_same() -> None:
    async with serving(Pool()) as replica:
        request = Ask(spec=array(250, 8), idempotency_key="k")
        answer = await replica.api.submit(request)
        assert answer.created
        found = replica.api.list(
            scheduler_pb2.ListJobsRequest(page_size=1000, filter=scheduler_pb2.JobFilter(array=answer.id))
        ).jobs
        assert {job.id for job in found} == {f"{answer.id}-{n}" for n in range(250)}
        last = found[-1]
        assert last.id == f"{answer.id}-0"  # written last, so that whoever sees it sees all
        assert last.spec.env["GPUPOOL_ARRAY_INDEX"] == "0"
        assert not (await replica.api.submit(request)).created
        done = await replica.store.commit([], [Delete(keys.job_spec(f"{answer.id}-{n}")) for n in (0, 7, 200)])
        await replica.mirror.reached(done.revision)
        again = await replica.api.submit_batch([request])  # a submission that broke off is made whole
        assert again[0].ok.id == answer.id
        assert len(replica.mirror.ids(keys.Kind.JOB_SPEC)) == 250


@virtual_time
async def test_who_depends_on_an_array_depends_on_its_elements() -> None:
    async with serving(Pool()) as replica:
        first = await replica.api.submit(Ask(spec=array(3)))
        wanted = spec("b")
        wanted.dependencies.add(job=first.id)
        second = await replica.api.submit(Ask(spec=wanted))
        kv = await replica.store.get(keys.job_spec(second.id))
        assert kv is not None
        stored = records_pb2.JobRecord.FromString(kv.value).spec
        assert [d.job for d in stored.dependencies] == [f"{first.id}-{n}" for n in range(3)]


@virtual_time
async def test_an_array_of_ten_million_is_refused() -> None:
    async with serving(Pool()) as replica:
        with pytest.raises(ApiError, match=r"array\.count is 10000000: at most 10000 elements are allowed"):
            await replica.api.submit(Ask(spec=array(10_000_000)))


def test_what_else_is_wrong_with_arrays() -> None:
    wanted = array(0, 3)
    wanted.array.id = "x"
    assert faults(wanted) == [
        "array.parallel is 3, but array.count is 0: say how many elements there are",
        "array.id and array.index are set by the scheduler; leave them out",
    ]
    wanted = array(10_000)
    wanted.env["X"] = "x" * 200_000
    assert "array.count is 10000: with specs of 200" in faults(wanted)[0]
