"""Preemption against brute force on small clusters: as few as possible, the youngest of those, never for nothing."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.queueing.claims import fits_without
from scheduler.core.queueing.preempt import HEADS, PAUSE_S, Preempter
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Allocation
from scheduler.core.state.jobs import Job
from scheduler.core.state.losses import Brake
from scheduler.core.state.tables import JobState
from tests.golden.runner import Player

HOSTS = st.lists(st.integers(1, 4), min_size=1, max_size=3)
VMS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(0, 2), st.sampled_from(["REQUIRED", "PREFERRED"])),
    max_size=8,
)
WANTED = st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(0, 3), st.sampled_from(["REQUIRED", "PREFERRED"]))


def cluster_of(hosts: list[int], vms: list[tuple[int, int, int, str]]) -> Player:
    player = Player()
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    for n, (gpus, cpus, priority, numa) in enumerate(vms):
        player.play(f"submit j{n} gpus={gpus} cpus={cpus} priority={priority} numa={numa}\nplace")
        player.now += n % 3
    for job in list(player.cluster.jobs.values()):
        if job.state is JobState.PENDING:
            player.play(f"cancel {job.id}")
    player.play("run\npolicy preemption.lower_priority=yes")
    return player


def brute(cluster: Cluster, job: Job) -> tuple[int, list[float]] | None:
    """The size of the smallest set of lower jobs on one host that makes room, and when they were placed."""
    best: tuple[int, list[float]] | None = None
    for host in cluster.hosts.values():
        mine = [cluster.allocations[a] for a in sorted(host.allocations)]
        lower = [a for a in mine if cluster.jobs[a.job].priority < job.priority]
        for size in range(len(lower) + 1):
            for victims in combinations(lower, size):
                if fits_without(cluster, host, job, victims):
                    ages = sorted(a.created_s for a in victims)
                    if best is None or size < best[0] or (size == best[0] and ages > best[1]):
                        best = size, ages
    return best


@settings(deadline=None, max_examples=150)
@given(HOSTS, VMS, WANTED)
def test_as_few_as_possible_and_the_youngest(
    hosts: list[int], vms: list[tuple[int, int, int, str]], wanted: tuple[int, int, int, str]
) -> None:
    player = cluster_of(hosts, vms)
    cluster = player.cluster
    gpus, cpus, priority, numa = wanted
    player.play(f"submit new gpus={gpus} cpus={cpus} priority={priority} numa={numa}")
    job = cluster.jobs["new"]
    player.placer.place(cluster, player.now)
    expected = brute(cluster, job) if job.state is JobState.PENDING else None
    Preempter().preempt(cluster, player.now)
    victims = [a for a in cluster.allocations.values() if a.preempted_for]
    if expected is None:
        assert not victims
        return
    assert (len(victims), sorted(a.created_s for a in victims)) == expected
    cluster.take_dirty()
    _leave(player, victims)
    player.play("place")
    assert job.state is JobState.STARTING, "the place was not kept, or not large enough"
    assert "VIOLATION" not in "\n".join(player.log)


def _leave(player: Player, victims: list[Allocation]) -> None:
    """One after the other; meanwhile others want what is free."""
    for n, victim in enumerate(victims):
        player.play(f"submit thief{n} gpus=1 priority=-5\nplace")
        player.play(f"stopped {victim.job}")
        player.play("place")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 6), st.integers(0, 6))
def test_no_more_is_taken_back_than_was_borrowed(mine: int, theirs: int, run: int, want: int) -> None:
    player = Player()
    player.play(f"host h1 4xa100\nhost h2 4xa100\nqueue q guaranteed={mine}\nqueue r guaranteed={theirs}")
    for n in range(run):
        player.play(f"submit r{n} queue=r\nrun")
    for n in range(want):
        player.play(f"submit q{n} queue=q")
    for _ in range(12):
        player.play("run")
        for allocation in list(player.cluster.allocations.values()):
            if allocation.stop_reason:
                player.play(f"stopped {allocation.job}")
    used = {queue: player.cluster.books.queues.used[queue].gpus for queue in player.cluster.books.queues.used}
    assert used.get("r", 0) >= min(run, theirs)
    assert used.get("q", 0) >= min(want, mine)
    assert "VIOLATION" not in "\n".join(player.log)


def test_no_time_is_due_while_the_brake_is_on() -> None:
    """Whoever sleeps until a time that is past and stays so never sleeps."""
    player = cluster_of([1] * 8, [(1, 1, 0, "REQUIRED")] * 8)
    for n in range(HEADS + 1):
        player.play(f"submit new{n} gpus=1 cpus={n + 1} priority=1")
    player.placer.place(player.cluster, player.now)
    preempter = Preempter()
    preempter.preempt(player.cluster, player.now)
    assert preempter.due_s is not None, "there was no time for all"
    player.cluster.brake = Brake(player.now, 0.0, "hosts fell", ())
    preempter.preempt(player.cluster, player.now + 2 * PAUSE_S)
    assert preempter.due_s is None
