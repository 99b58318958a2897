"""Preemption for gangs against brute force: for all members or nobody, as few as possible, never for nothing."""

from __future__ import annotations

from itertools import combinations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.scratch import without
from scheduler.core.queueing.preempt import Preempter
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Allocation
from scheduler.core.state.jobs import Job
from scheduler.core.state.losses import Brake
from scheduler.core.state.tables import JobState
from tests.golden.runner import Player
from tests.unit.test_gangs import WHERE, arranged

HOSTS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(["a", "b", ""]), st.integers(1, 2)), min_size=1, max_size=3
)
VMS = st.lists(st.tuples(st.sampled_from([1, 1, 2, 3]), st.sampled_from([0, 0, 1, 2])), min_size=3, max_size=8)
GANG = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(0, 3), st.sampled_from([("", ""), ("", ""), *WHERE]))


def cluster_of(hosts: list[tuple[int, str, int]], vms: list[tuple[int, int]]) -> Player:
    player = Player()
    for n, (gpus, rack, roots) in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100\nroots h{n} {' '.join(f'pci0000:{r}0' for r in range(1, roots + 1))}")
        if rack:
            player.play(f"label h{n} rack={rack}")
    for n, (gpus, priority) in enumerate(vms):
        player.play(f"submit j{n} gpus={gpus} cpus=1 mib=64 priority={priority}\nplace")
        player.now += n % 3
    for job in list(player.cluster.jobs.values()):
        if job.state is JobState.PENDING:
            player.play(f"cancel {job.id}")
    player.play("run\npolicy preemption.lower_priority=yes")
    return player


def brute(cluster: Cluster, party: list[Job]) -> tuple[int, list[float]] | None:
    """The size of the smallest set of lower jobs anywhere that makes room for all, and when they were placed."""
    lower = [a for a in cluster.allocations.values() if cluster.jobs[a.job].priority < party[0].priority]
    for size in range(len(lower) + 1):
        best: list[float] | None = None
        for victims in combinations(lower, size):
            then = {name: without(host, [a for a in victims if a.host == name]) for name, host in cluster.hosts.items()}
            ages = sorted(a.created_s for a in victims)
            if (best is None or ages > best) and arranged(then, party):
                best = ages
        if best is not None:
            return size, best
    return None


@settings(deadline=None, max_examples=150)
@given(HOSTS, VMS, GANG)
def test_as_few_as_possible_for_all_or_nobody(
    hosts: list[tuple[int, str, int]], vms: list[tuple[int, int]], gang: tuple[int, int, int, tuple[str, str]]
) -> None:
    player = cluster_of(hosts, vms)
    cluster = player.cluster
    count, gpus, priority, where = gang
    spread, pack = where
    how = ".".join(filter(None, (spread and f"spread:{spread}", pack and f"pack:{pack}")))
    player.play(f"gang g {count} {how} gpus={gpus} cpus=1 mib=64 priority={priority}")
    party = [cluster.jobs[f"g-{n}"] for n in range(count)]
    player.placer.place(cluster, player.now)
    expected = brute(cluster, party) if party[0].state is JobState.PENDING else None
    Preempter().preempt(cluster, player.now)
    victims = [a for a in cluster.allocations.values() if a.preempted_for]
    assert all(a.stop_reason == f"preempted by gang g of priority {priority}" for a in victims)
    if expected is None:
        assert not victims
        return
    assert (len(victims), sorted(a.created_s for a in victims)) == expected
    cluster.take_dirty()
    assert Preempter().preempt(cluster, player.now + 9) == 0, "others were asked for those who wait already"
    _leave(player, victims)
    player.play("place")
    party = [player.cluster.jobs[job.id] for job in party]  # another leader has its own
    assert all(job.state is JobState.STARTING for job in party), "places were not kept, or not large enough"
    assert "VIOLATION" not in "\n".join(player.log)


def _leave(player: Player, victims: list[Allocation]) -> None:
    """One after the other, each under another leader; meanwhile others want what is free."""
    for n, victim in enumerate(victims):
        player.play(f"submit thief{n} gpus=1 priority=-5\nplace")
        if n % 2:
            player.play("leader")
        player.play(f"submit rogue{n} gpus=1 priority=-5\nplace")
        player.play(f"stopped {victim.job}")
        player.play("place")


def test_nobody_is_stopped_for_part_of_a_gang() -> None:
    """One member could have room, two could not."""
    player = cluster_of([(2, "", 1), (2, "", 1)], [(2, 0), (2, 9)])
    player.play("gang g 2 spread:host priority=5\nrun")
    assert not [a for a in player.cluster.allocations.values() if a.stop_reason]


def test_nobody_is_stopped_under_the_brake() -> None:
    player = cluster_of([(2, "", 1)], [(2, 0)])
    player.cluster.brake = Brake(player.now, 0.0, "hosts fell", ())
    player.play("gang g 2 priority=5\nrun")
    assert not [a for a in player.cluster.allocations.values() if a.stop_reason]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 8), st.integers(1, 5))
@example(4, 6, 8, 4)
@example(4, 4, 8, 4)
def test_no_more_is_taken_back_than_was_borrowed(mine: int, theirs: int, run: int, want: int) -> None:
    player = Player()
    player.play(f"host h1 4xa100\nhost h2 4xa100\nqueue q guaranteed={mine}\nqueue r guaranteed={theirs}")
    for n in range(run):
        player.play(f"submit r{n} queue=r\nrun")
    player.play(f"gang g {want} queue=q")
    for _ in range(12):
        player.play("run")
        for allocation in list(player.cluster.allocations.values()):
            if allocation.stop_reason:
                player.play(f"stopped {allocation.job}")
    used = {queue: player.cluster.books.queues.used[queue].gpus for queue in player.cluster.books.queues.used}
    room = max(8 - run, min(mine, 8 - min(run, theirs)))
    assert used.get("r", 0) >= min(run, theirs)
    assert used.get("q", 0) == (want if want <= room else 0)
    assert "VIOLATION" not in "\n".join(player.log)
