"""The pending queue against a sorted list."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.queueing.queue import Lane, PendingQueue, Share

JOBS = st.sampled_from([f"j{n}" for n in range(8)])
LANES = st.sampled_from([("q", "ann", 0), ("q", "bob", 0), ("r", "ann", 0)])
SHAPES = ("small", "large", "odd")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), JOBS, st.sampled_from(SHAPES), st.integers(-2, 2), st.sampled_from([0.0, 5.0, 9.0]), LANES
        ),
        st.tuples(st.just("discard"), JOBS),
        st.tuples(st.just("due"), st.sampled_from([4.0, 5.0, 20.0])),
    ),
    max_size=40,
)


class Naive:
    """What the queue must amount to: job -> shape, key, the time before which it waits, lane."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, tuple[int, int, int, int, str], float, Lane]] = {}

    def offers(self, skip: set[str], share: Share) -> list[str]:
        ready = [
            ((*key[:3], share(lane), *key[3:]), job)
            for job, (shape, key, at, lane) in self.jobs.items()
            if not at and shape not in skip
        ]
        return [job for _, job in sorted(ready)]

    def due(self, now: float) -> None:
        self.jobs = {j: (shape, key, 0.0 if at <= now else at, lane) for j, (shape, key, at, lane) in self.jobs.items()}


@settings(deadline=None)
@given(ACTIONS, st.sets(st.sampled_from(SHAPES)), st.dictionaries(st.sampled_from("qr"), st.sampled_from([0.5, 0.7])))
def test_against_a_sorted_list(actions: list[tuple[Any, ...]], skip: set[str], shares: dict[str, float]) -> None:
    def share(lane: Lane) -> float:
        return shares.get(lane[0], 0.0)

    queue: PendingQueue[str] = PendingQueue()
    naive = Naive()
    for arrival, (what, *rest) in enumerate(actions):
        if what == "add":
            job, shape, priority, at, lane = rest
            key = (0, 0, -int(priority), arrival, job)
            queue.add(job, shape, key, float(at), lane)
            naive.jobs[job] = (shape, key, float(at), lane)
        elif what == "discard":
            queue.discard(rest[0])
            naive.jobs.pop(rest[0], None)
        else:
            queue.due(float(rest[0]))
            naive.due(float(rest[0]))
        assert len(queue) == len(naive.jobs)
        assert queue.next_due_s() == min((at for _, _, at, _ in naive.jobs.values() if at), default=None)
    assert [job for job, _ in queue.offers(skip, share)] == naive.offers(skip, share)
    for place, job in enumerate(naive.offers(set(), share), 1):
        assert queue.position(job, share) == place


@settings(deadline=None)
@given(st.lists(st.tuples(LANES, st.sampled_from(SHAPES), st.integers(0, 1)), max_size=20))
def test_shares_grow_as_jobs_are_taken(jobs: list[tuple[Lane, str, int]]) -> None:
    queue: PendingQueue[str] = PendingQueue()
    left = {}
    for n, (lane, shape, priority) in enumerate(jobs):
        key = (1, 0, -priority, n, f"j{n}")
        queue.add(f"j{n}", shape, key, 0.0, lane)
        left[f"j{n}"] = (lane, key)
    used: Counter[str] = Counter()
    for job, _ in queue.offers(set(), lambda lane: float(used[lane[0]])):
        ranks = {j: (*key[:3], used[lane[0]], *key[3:]) for j, (lane, key) in left.items()}
        assert job == min(ranks, key=ranks.__getitem__)
        used[left.pop(job)[0][0]] += 1
        queue.discard(job)
    assert not left


def test_what_a_lane_is_shut_for_is_not_asked_again() -> None:
    queue: PendingQueue[str] = PendingQueue()
    for n, lane in enumerate([("q", "a", 0), ("q", "a", 0), ("q", "b", 0), ("q", "a", 0)]):
        queue.add(f"j{n}", "s", (1, 0, 0, n, f"j{n}"), 0.0, lane)
    shut: set[tuple[str, Lane]] = set()
    offered = []
    for job, shape in queue.offers(set(), shut=shut):
        offered.append(job)
        shut.add((shape, ("q", "a", 0)))
    assert offered == ["j0", "j2"]


def test_offers_while_the_caller_takes_jobs_out_and_learns() -> None:
    queue: PendingQueue[str] = PendingQueue()
    for n, shape in enumerate(["a", "b", "a", "b", "a"]):
        queue.add(f"j{n}", shape, (0, 0, 0, n, f"j{n}"))
    skip: set[str] = set()
    offered = []
    for job, shape in queue.offers(skip):
        offered.append(job)
        if shape == "b":
            skip.add("b")
        else:
            queue.discard(job)
    assert offered == ["j0", "j1", "j2", "j4"]
    assert [job for job, _ in queue.offers(set())] == ["j1", "j3"]


def test_a_job_that_does_not_wait_has_no_position() -> None:
    assert PendingQueue[str]().position("j1") == 0
