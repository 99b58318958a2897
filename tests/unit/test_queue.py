"""The pending queue against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.queue import PendingQueue

JOBS = st.sampled_from([f"j{n}" for n in range(8)])
SHAPES = ("small", "large", "odd")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), JOBS, st.sampled_from(SHAPES), st.integers(-2, 2), st.sampled_from([0.0, 5.0, 9.0])),
        st.tuples(st.just("discard"), JOBS),
        st.tuples(st.just("due"), st.sampled_from([4.0, 5.0, 20.0])),
    ),
    max_size=40,
)


class Naive:
    """What the queue must amount to: job -> shape, key, the time before which it waits."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, tuple[int, int, int, int, str], float]] = {}

    def offers(self, skip: set[str]) -> list[str]:
        ready = [(key, job) for job, (shape, key, at) in self.jobs.items() if not at and shape not in skip]
        return [job for _, job in sorted(ready)]

    def due(self, now: float) -> None:
        self.jobs = {job: (shape, key, 0.0 if at <= now else at) for job, (shape, key, at) in self.jobs.items()}


@given(ACTIONS, st.sets(st.sampled_from(SHAPES)))
def test_against_a_sorted_list(actions: list[tuple[str, ...]], skip: set[str]) -> None:
    queue: PendingQueue[str] = PendingQueue()
    naive = Naive()
    for arrival, (what, *rest) in enumerate(actions):
        if what == "add":
            job, shape, priority, at = rest
            key = (0, 0, -int(priority), arrival, job)
            queue.add(job, shape, key, float(at))
            naive.jobs[job] = (shape, key, float(at))
        elif what == "discard":
            queue.discard(rest[0])
            naive.jobs.pop(rest[0], None)
        else:
            queue.due(float(rest[0]))
            naive.due(float(rest[0]))
        assert len(queue) == len(naive.jobs)
        assert queue.next_due_s() == min((at for _, _, at in naive.jobs.values() if at), default=None)
    assert [job for job, _ in queue.offers(skip)] == naive.offers(skip)
    for place, job in enumerate(naive.offers(set()), 1):
        assert queue.position(job) == place


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
