"""Gangs through the API and the leader's loop: refused or accepted with reasons; committed as one, or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from gpupool.store import keys
from gpupool.store.port import Committed, Op, Put
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.submitting.validate_gang import gang_faults
from tests.fakes.pool import Commit, HookedStore, Pool, spec
from tests.fakes.virtual_time import until, virtual_time
from tests.unit.test_jobs_api import Ask, serving
from tests.unit.test_leader import leading


def gang(count: int, **wanted: str) -> job_pb2.JobSpec:
    found = spec("g")
    found.gang.CopyFrom(job_pb2.Gang(count=count, **wanted))  # type: ignore[arg-type]
    return found


async def submit(pool: Pool, count: int) -> None:
    """As the API writes them."""
    for index in reversed(range(count)):
        member = gang(count)
        member.gang.id, member.gang.index = "g", index
        await pool.submit(f"g-{index}", member)


@virtual_time
async def test_a_gang_is_committed_in_one_transaction() -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    seen: list[list[str]] = []

    async def note(ops: Sequence[Op], commit: Commit) -> Committed:
        seen.append([op.key for op in ops])
        return await commit()

    store.on_commit = note
    hosts = [f"h{n:02}" for n in range(32)]
    for host in hosts:
        await pool.join(host)
    async with leading(pool, store):
        await until(lambda: all(pool.host(host).session for host in hosts))
        await submit(pool, 64)
        await until(pool.allocations)
    (placed,) = [found for found in seen if any(key.startswith(keys.ALLOCATIONS) for key in found)]
    assert len(placed) == 128
    assert len(pool.allocations()) == 64


@pytest.mark.parametrize("which", ["h1", "h3"])
@virtual_time
async def test_where_one_cannot_be_written_none_is(which: str) -> None:
    pool = Pool()
    store = HookedStore(pool.backend)
    for host in ("h1", "h2", "h3"):
        await pool.join(host, gpus=1)

    async def session_ends_first(ops: Sequence[Op], commit: Commit) -> Committed:
        if any(op.key.startswith(keys.allocation(which, "g-")) for op in ops):
            await pool.leave(which)
        return await commit()

    async with leading(pool, store):
        await until(lambda: all(pool.host(h).state == records_pb2.HOST_STATE_READY for h in ("h1", "h2", "h3")))
        store.on_commit = session_ends_first
        await submit(pool, 3)
        await until(lambda: pool.host(which).state == records_pb2.HOST_STATE_FENCED)
        assert not pool.allocations()
        assert {pool.status(f"g-{n}").attempt_count for n in range(3)} == {0}
        await pool.join("h4", gpus=1)
        await until(pool.allocations)
        assert {a.id for a in pool.allocations()} == {"g-0.1", "g-1.1", "g-2.1"}


@virtual_time
async def test_what_of_a_gang_is_left_is_done_by_another_leader() -> None:
    """The leader that asked the first to stop is gone before it could ask the others."""
    pool = Pool()
    for host in ("h1", "h2"):
        await pool.join(host, gpus=1)
    async with leading(pool, pool.store):
        await until(lambda: pool.host("h2").state == records_pb2.HOST_STATE_READY)
        await submit(pool, 2)
        await until(pool.allocations)
        for allocation in pool.allocations():
            await pool.report(allocation, records_pb2.ALLOCATION_STATE_RUNNING)
        await until(lambda: pool.status("g-1").state == job_pb2.JOB_STATE_RUNNING)
    first = pool.allocations()[0]
    first.desired, first.stop_reason = records_pb2.DESIRED_STOP, "drain of h1"
    await pool.put(Put(keys.allocation(first.host, first.id), first.SerializeToString()))
    async with leading(pool, pool.store):
        await until(lambda: all(a.desired == records_pb2.DESIRED_STOP for a in pool.allocations()))
        for allocation in pool.allocations():
            await pool.report(allocation, records_pb2.ALLOCATION_STATE_ENDED, job_pb2.OUTCOME_STOPPED)
            await pool.clean(allocation)
        await until(lambda: {a.id for a in pool.allocations()} == {"g-0.2", "g-1.2"})
    assert pool.status("g-1").restarts == 0


@virtual_time
async def test_a_gang_is_made_as_one_and_again_the_same() -> None:
    async with serving(Pool()) as replica:
        request = Ask(spec=gang(3, spread_over="host"), idempotency_key="k")
        answer = await replica.api.submit(request)
        wanted = scheduler_pb2.JobFilter(array=answer.id)
        found = replica.api.list(scheduler_pb2.ListJobsRequest(filter=wanted)).jobs
        assert {job.id for job in found} == {f"{answer.id}-{n}" for n in range(3)}
        assert found[0].spec.env["GPUPOOL_GANG_COUNT"] == "3"
        assert found[0].spec.env["GPUPOOL_GANG_ID"] == answer.id
        assert not (await replica.api.submit(request)).created
        assert (await replica.api.submit_batch([request]))[0].ok.id == answer.id
        after = spec("b")
        after.dependencies.add(job=answer.id)
        last = await replica.api.submit(Ask(spec=after))
        stored = (await replica.api.get(last.id)).spec
        assert [d.job for d in stored.dependencies] == [f"{answer.id}-{n}" for n in range(3)]


async def label(pool: Pool, host: str, **labels: str) -> None:
    kv = pool.backend.get(keys.inventory(host))
    assert kv is not None
    inventory = inventory_pb2.Inventory.FromString(kv.value)
    inventory.labels.update(labels)
    await pool.put(Put(keys.inventory(host), inventory.SerializeToString()))


LARGER = [
    (gang(7), "of its 7 members 6 would have room on all of them together"),
    (gang(4, spread_over="host"), "of its 4 members 3 would have room on all of them together, one on each host"),
    (gang(5, pack_into="rack"), "of its 5 members 4 would have room on rack a"),
    (gang(3, pack_into="host"), "of its 3 members 2 would have room on one host, such as of h1"),
    (gang(3, spread_over="rack"), "of its 3 members 2 would have room on all of them together, one on each rack"),
    (gang(2, pack_into="row"), "of its 2 members none would have room on all of them together"),
]


@pytest.mark.parametrize(("wanted", "why"), LARGER)
@virtual_time
async def test_a_gang_larger_than_the_cluster_is_refused(wanted: job_pb2.JobSpec, why: str) -> None:
    pool = Pool()
    for host, rack in (("h1", "a"), ("h2", "a"), ("h3", "b")):
        await pool.join(host)
        await label(pool, host, rack=rack)
    async with serving(pool) as replica:
        full = f"the gang is larger than all known hosts, even if they were empty: {why}"
        with pytest.raises(ApiError, match=re.escape(f"{full}; to queue it all the same: --allow-unavailable")):
            await replica.api.submit(Ask(spec=wanted))
        answer = await replica.api.submit(Ask(spec=wanted, allow_unavailable=True))
        assert list(answer.warnings) == [full]
        smaller = job_pb2.JobSpec()
        smaller.CopyFrom(wanted)
        smaller.gang.count = 1 if wanted.gang.pack_into == "row" else wanted.gang.count - 1
        if wanted.gang.pack_into != "row":
            assert not (await replica.api.submit(Ask(spec=smaller))).warnings
        told = await replica.api.explain(f"{answer.id}-0")
        assert list(told.impossible) == [full]


@virtual_time
async def test_a_dry_run_says_how_far_a_gang_comes() -> None:
    pool = Pool()
    for host in ("h1", "h2"):
        await pool.join(host, gpus=1)
    async with leading(pool, pool.store), serving(pool) as replica:
        await until(lambda: all(pool.host(h).state == records_pb2.HOST_STATE_READY for h in ("h1", "h2")))
        told = await replica.api.explain_spec(gang(3))
        assert told.summary.startswith(
            "its gang starts together: of 3 members 2 have room (h1, h2), member 2 fits on none"
        )
        told = await replica.api.explain_spec(gang(2))
        assert told.summary.startswith("all 2 of its gang have room, on h1, h2; waits for its turn")


@virtual_time
async def test_what_a_queue_may_use_is_for_all_members_together() -> None:
    pool = Pool()
    intent = records_pb2.QueueIntent(limit=records_pb2.Amounts(gpus=4), user_jobs=2)
    await pool.put(Put(keys.queue("q"), intent.SerializeToString()))
    async with serving(pool) as replica:
        wanted = gang(5)
        wanted.queue, wanted.user = "q", "ann"
        with pytest.raises(ApiError) as caught:
            await replica.api.submit(Ask(spec=wanted))
    assert caught.value.message.splitlines() == [
        "gpus.count is 1 for each of 5 members: queue 'q' may use 4 GPUs",
        "gang.count is 5: in queue 'q' one user may run 2 jobs",
    ]


def test_what_is_wrong_with_gangs() -> None:
    assert list(gang_faults(gang(64), 128)) == []
    (why,) = gang_faults(gang(65), 128)
    assert why.startswith("gang.count is 65: at most 64 members are allowed, as a gang starts in one transaction")
    large = gang(60)
    large.env["X"] = "x" * 10_000
    (why,) = gang_faults(large, 128)
    assert re.match(r"gang\.count is 60: with specs of 100\d\d bytes at most 52 are allowed", why)
    both = gang(2, id="x")
    both.array.count = 3
    assert list(gang_faults(both, 128)) == [
        "gang.id and gang.index are set by the scheduler; leave them out",
        "gang.count is 2 and array.count 3: a job is of a gang or of an array",
    ]
    assert list(gang_faults(gang(0, pack_into="host"), 128)) == ["gang.count is 0: say how many members there are"]
    (why,) = gang_faults(gang(2, spread_over="host", pack_into="pcie_root"), 128)
    assert "members that are all on one pcie_root cannot be" in why
    assert list(gang_faults(gang(2, spread_over="pcie_root", pack_into="host"), 128)) == []
    near = gang(2)
    near.labels["x"] = near.placement.near["x"] = "1"
    (why,) = gang_faults(near, 128)
    assert "to keep it together write gang.pack_into: host" in why
