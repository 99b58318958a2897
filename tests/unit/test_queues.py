"""Queues: limits hold whatever comes; shares decay by halves; many that wait cost little; what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.store import keys
from gpupool.v1 import records_pb2, scheduler_pb2
from scheduler.api.intents import ApiError
from scheduler.api.operations_api import OperationsApi
from scheduler.core.fitting.own import Case
from scheduler.core.place import Placer
from scheduler.core.queueing import shares
from scheduler.core.state.amounts import NO_LIMIT, Amounts
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import QueueChanged
from scheduler.core.state.facts import QueueIntent
from scheduler.core.state.jobs import Job, Request
from scheduler.core.state.terms import Terms
from scheduler.core.step import step
from tests.fakes.pool import Pool, spec, wall
from tests.fakes.virtual_time import virtual_time
from tests.golden.runner import Player
from tests.unit.test_jobs_api import Ask, Replica, serving

LIMITS = st.builds(
    lambda limit, user, jobs: QueueIntent(
        "q", limit=Amounts(limit, 64, 10**6), user_limit=Amounts(user, 64, 10**6), user_jobs=jobs
    ),
    st.integers(0, 5), st.integers(0, 4), st.integers(0, 3),
)  # fmt: skip
DOINGS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(["ann", "bob"]), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("lost")),
        st.tuples(st.just("leader")),
        st.tuples(st.just("limit"), LIMITS),
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=60)
@given(LIMITS, DOINGS)
def test_no_start_goes_beyond_a_limit(limits: QueueIntent, doings: list[tuple[object, ...]]) -> None:
    player = Player()
    player.play("host h1 8xa100")
    player.tell(QueueChanged("q", limits))
    for n, (what, *rest) in enumerate(doings):
        live = sorted(j.id for j in player.cluster.jobs.values() if j.allocation_id)
        if what == "submit":
            player.play(f"submit j{n} queue=q user={rest[0]} gpus={rest[1]}")
        elif what == "end" and live:
            player.play(f"end {live[int(str(rest[0])) % len(live)]}")
        elif what == "limit":
            limits = rest[0]  # type: ignore[assignment]
            player.tell(QueueChanged("q", limits))
        elif what == "lost":
            player.play("lost h1\nhost h1")
        elif what == "leader":
            player.play("leader")
        before = {a.job for a in player.cluster.allocations.values()}
        player.play("run")
        used = [(player.cluster.jobs[a.job], a.job in before) for a in player.cluster.allocations.values()]
        fresh = [job for job, old in used if not old]
        if fresh:
            assert sum(job.request.gpus for job, _ in used) <= limits.limit.gpus
        for job in fresh:
            mine = [other for other, _ in used if other.terms.user == job.terms.user]
            assert sum(other.request.gpus for other in mine) <= limits.user_limit.gpus
            assert len(mine) <= limits.user_jobs
    assert "VIOLATION" not in "\n".join(player.log)


def two_queues() -> Cluster:
    cluster = Cluster()
    for name in ("q", "r"):
        step(cluster, QueueChanged(name, QueueIntent(name)), 0.0)
    cluster.books.shares.host_has("h1", Amounts(10, 100, 1000))
    return cluster


@settings(deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(1, 1e6), max_size=5))
def test_the_past_counts_half_after_each_half_life(used: float, looks: list[float]) -> None:
    cluster = two_queues()
    half_life_s = cluster.policy.fair_share.half_life_s
    shares.look(cluster, 1.0)
    cluster.books.shares.decayed["q"] = used
    now = 1.0
    for after_s in [*looks, half_life_s * 2 - sum(looks)]:  # however often somebody looks
        now += max(0.0, after_s)
        shares.look(cluster, now)
    expected = used * 2.0 ** (-(now - 1.0) / half_life_s)
    assert cluster.books.shares.decayed.get("q", 0.0) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_the_dominant_resource_counts_by_weight() -> None:
    cluster = two_queues()
    step(cluster, QueueChanged("q", QueueIntent("q", weight=2)), 0.0)
    cluster.books.queues.used["q"] = Amounts(1, 50, 100)
    cluster.books.queues.used["r"] = Amounts(3, 10, 100)
    assert (cluster.share(("q", "", 0)), cluster.share(("r", "", 0))) == (0.25, 0.3)


class Counting(Placer):
    asked = 0

    def _choose(self, cluster: Cluster, job: Job, mine: Case | None, now: float) -> None:
        type(self).asked += 1


def test_many_that_wait_cost_one_decision_a_shape() -> None:
    player = Player()
    player.play("host h1 1xa100\nqueue q limit=0\nqueue r")
    for n in range(3000):
        queue, gpus = ("q", 1) if n % 3 == 0 else ("r", 2 + n % 2)
        terms = Terms(queue=queue, user=f"u{n % 5}")
        player.cluster.jobs[f"j{n}"] = job = Job(f"j{n}", Request("img", gpus), n, 0.0, terms=terms)
        player.cluster.enqueue(job)
    placer = Counting()
    Counting.asked = 0
    assert placer.place(player.cluster, player.now) == 0
    assert Counting.asked == 2  # none for a queue that is full, one for each shape of the other


# The API


def operations(replica: Replica) -> OperationsApi:
    return OperationsApi(replica.store, replica.mirror, replica="r", version="1", wall=wall)


def wanted(name: str, *fields: str, create: bool = False, **settings: object) -> scheduler_pb2.SetQueueRequest:
    intent = records_pb2.QueueIntent(**settings)  # type: ignore[arg-type]
    return scheduler_pb2.SetQueueRequest(name=name, settings=intent, fields=fields, create=create, by="ann")


@virtual_time
async def test_a_queue_is_made_changed_and_deleted() -> None:
    async with serving(Pool()) as replica:
        api = operations(replica).queues
        limit = records_pb2.Amounts(gpus=4)
        made = await api.set(wanted("q", "limit", "weight", create=True, limit=limit, weight=2))
        assert (made.settings.limit.gpus, made.settings.weight, made.settings.by) == (4, 2, "ann")
        with pytest.raises(ApiError, match="is there already"):
            await api.set(wanted("q", create=True))
        changed = await api.set(wanted("q", "weight", "suspended", weight=5, suspended=True))
        assert (changed.settings.limit.gpus, changed.settings.weight, changed.settings.suspended_by) == (4, 5, "ann")
        assert [queue.name for queue in await api.all()] == ["default", "q"]
        with pytest.raises(ApiError, match="no queue 'x'; known queues: default, q"):
            await api.set(wanted("x", "weight"))
        job = spec("a")
        job.queue = "q"
        answer = await replica.api.submit(Ask(spec=job))
        assert answer.warnings == ["queue 'q' is suspended by ann: no reason given"]
        assert (await replica.api.explain(answer.id)).wait == scheduler_pb2.JOB_WAIT_QUEUE
        with pytest.raises(ApiError, match="has 1 jobs that are not finished"):
            await api.delete(scheduler_pb2.DeleteQueueRequest(name="q"))
        await replica.status(answer.id, 4)
        await api.delete(scheduler_pb2.DeleteQueueRequest(name="q"))
        assert await replica.store.get(keys.queue("q")) is None


@virtual_time
async def test_what_makes_no_queue() -> None:
    async with serving(Pool()) as replica:
        with pytest.raises(ApiError) as caught:
            await operations(replica).queues.set(
                wanted("Q!", "colour", create=True, priority_min=2000, priority_max=1, weight=10**7,
                       limit=records_pb2.Amounts(gpus=1), guaranteed=records_pb2.Amounts(gpus=2))
            )  # fmt: skip
        told = caught.value.message.splitlines()
        assert [line.split(":")[0] for line in told] == [
            "bad queue name 'Q!'", "fields", "weight is 10000000", "priority_min is 2000",
            "priority_min is 2000, more than priority_max, which is 1", "guaranteed",
        ]  # fmt: skip


@virtual_time
async def test_what_could_never_start_in_a_queue_is_refused() -> None:
    async with serving(Pool()) as replica:
        api = operations(replica).queues
        await api.set(
            wanted("q", "limit", "user_limit", "priority_max", create=True, priority_max=10,
                   limit=records_pb2.Amounts(gpus=0), user_limit=records_pb2.Amounts(cpus=2))
        )  # fmt: skip
        job = spec("a", cpus=4)
        job.queue, job.priority = "q", 11
        with pytest.raises(ApiError) as caught:
            await replica.api.submit(Ask(spec=job))
        assert caught.value.message.splitlines() == [
            "priority is 11: in queue 'q' it must be 10 or less",
            "gpus.count is 1: queue 'q' may use no GPUs",
            "cpus is 4: in queue 'q' one user may use 2 CPUs",
            "user is missing: queue 'q' has limits for each user",
        ]
        job.queue = "nope"
        with pytest.raises(ApiError, match="queue 'nope': there is none of this name; queues at hand: default, q"):
            await replica.api.submit(Ask(spec=job))


def test_no_limit_is_none() -> None:
    assert Amounts(10**9, 10**9, 10**12).within(NO_LIMIT)
