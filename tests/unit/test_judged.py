"""A shape that was found good is not judged again, and is once anything that its judgement rests on has changed."""

from __future__ import annotations

import pytest

from gpupool.store import keys
from gpupool.store.port import Put
from gpupool.v1 import job_pb2, records_pb2
from scheduler.api.intents import ApiError
from tests.fakes.pool import Pool, spec
from tests.fakes.virtual_time import virtual_time
from tests.unit.test_jobs_api import Ask, Replica, serving


async def good(replica: Replica, wanted: job_pb2.JobSpec) -> bool:
    """Whether such a job is accepted; each is submitted twice, so that the second may be known."""
    try:
        for _ in range(2):
            await replica.api.submit(Ask(spec=wanted))
    except ApiError:
        return False
    return True


@virtual_time
async def test_the_texts_of_each_job_are_looked_at() -> None:
    async with serving(Pool()) as replica:
        assert await good(replica, spec("a"))
        for field, value in (("name", "-"), ("command", [""]), ("env", {"1": ""}), ("labels", {"a": "\n"})):
            wanted = spec("a")
            wanted.MergeFrom(job_pb2.JobSpec(**{field: value}))  # type: ignore[arg-type]
            if field == "command":
                wanted.command[:] = [""]
            assert not await good(replica, wanted), field
            assert await good(replica, spec("b"))
        large = spec("a")
        large.env["A"] = "x" * 300_000
        assert not await good(replica, large)


@virtual_time
async def test_what_hosts_say_anew_counts() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        await pool.join("h1", gpus=4)
        await pool.join("h2", gpus=1)
        await replica.mirror.reached(pool.backend.revision)
        assert await good(replica, spec("a", gpus=4))
        await pool.join("h1", gpus=1, boot="b2")
        await replica.mirror.reached(pool.backend.revision)
        assert not await good(replica, spec("b", gpus=4))
        assert await good(replica, spec("b", gpus=1))


@virtual_time
async def test_what_is_wanted_of_a_queue_counts() -> None:
    pool = Pool()
    async with serving(pool) as replica:
        assert await good(replica, spec("a", gpus=2))
        limit = records_pb2.QueueIntent(limit=records_pb2.Amounts(gpus=1))
        await replica.mirror.reached(await pool.put(Put(keys.queue("default"), limit.SerializeToString())))
        assert not await good(replica, spec("b", gpus=2))
        assert await good(replica, spec("b", gpus=1))
        stopped = records_pb2.QueueIntent(suspended=True, suspended_by="ada")
        await replica.mirror.reached(await pool.put(Put(keys.queue("default"), stopped.SerializeToString())))
        for _ in range(2):
            answer = await replica.api.submit(Ask(spec=spec("b", gpus=1)))
            assert list(answer.warnings) == ["queue 'default' is suspended by ada: no reason given"]


@virtual_time
async def test_jobs_that_name_others_are_judged_each_time() -> None:
    async with serving(Pool()) as replica:
        assert await good(replica, spec("a"))
        wanted = spec("a")
        wanted.dependencies.add(job="jnobody")
        assert not await good(replica, wanted)
        circle = spec("a")
        circle.restart.after.append("a")
        with pytest.raises(ApiError, match="that is the job itself"):
            await replica.api.submit(Ask(spec=circle))
