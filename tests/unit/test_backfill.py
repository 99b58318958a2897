"""Backfill: whoever has a place kept starts by then, if all keep to their limits; nobody idles for nothing."""

from __future__ import annotations

from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.core.queueing.backfill import LATER_S, LOOKS, NEW
from scheduler.core.state import limits
from scheduler.core.state.policy import CONSERVATIVE, EASY, MOST_KEPT
from scheduler.core.state.tables import JobState
from tests.golden.runner import Player

GRACE_S = 5
SUBMITS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 4), st.sampled_from([0, 10, 30, 60, 100]), st.integers(0, 1)),
    min_size=2,
    max_size=14,
)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), SUBMITS, st.integers(0, 10**6))
@example([2], [(0, 1, 30, 0), (0, 2, 0, 0), (29, 1, 10, 1)], 0)  # the last takes what the second was to have
def test_the_first_starts_by_when_its_place_is_free(
    hosts: list[int], submits: list[tuple[int, int, int, int]], seed: int
) -> None:
    _kept(hosts, submits, seed, EASY)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 4), min_size=2, max_size=4), SUBMITS, st.integers(0, 10**6))
@example([4, 4], [(0, 3, 30, 0), (0, 3, 60, 0), (1, 4, 0, 0), (1, 4, 0, 0), (2, 1, 0, 0)], 0)
def test_each_that_has_a_place_starts_by_when_it_is_free(
    hosts: list[int], submits: list[tuple[int, int, int, int]], seed: int
) -> None:
    _kept(hosts, submits, seed, CONSERVATIVE)


def _kept(hosts: list[int], submits: list[tuple[int, int, int, int]], seed: int, mode: str) -> None:
    player, rng = Player(), Random(seed)
    player.play(f"policy backfill.mode={mode}")
    for n, gpus in enumerate(hosts):
        player.play(f"host h{n} {gpus}xa100")
    promised: dict[str, float] = {}
    for at_s in range(160):
        for n, (when, gpus, limit, priority) in enumerate(submits):
            if when == at_s:
                player.play(f"submit j{n} gpus={gpus} limit={limit} priority={priority} grace={GRACE_S}")
        _ends(player, rng)
        player.now = 2000.0 + at_s  # a second a round, whatever was played
        waited = {job.id for job in player.cluster.jobs.values() if job.state is JobState.PENDING}
        player.play("run")
        jobs, claims = player.cluster.jobs, player.cluster.books.claims
        assert mode == CONSERVATIVE or sum(bool(claim.at_s) for claim in claims.values()) <= 1
        begun = [job for job in map(jobs.__getitem__, waited) if job.state is not JobState.PENDING]
        for job, by_s in list(promised.items()):
            if jobs[job].state is JobState.PENDING:
                assert player.now <= by_s + 1, f"{job} was to start by {by_s}, and {player.now} has come"
            if jobs[job].state is not JobState.PENDING or job not in claims:
                del promised[job]
        for job, claim in claims.items():
            mine = -jobs[job].priority, jobs[job].arrival
            if any((-other.priority, other.arrival) < mine for other in begun):
                promised.pop(job, None)  # who comes before it may have taken that place
            else:
                promised[job] = min(promised.get(job, claim.at_s), claim.at_s)
    assert "VIOLATION" not in "\n".join(player.log)


def _ends(player: Player, rng: Random) -> None:
    """Some VMs end by themselves; who was asked to stop does within its grace."""
    for job in list(player.cluster.jobs.values()):
        allocation = player.cluster.allocations.get(job.allocation_id or "")
        if allocation is None:
            continue
        gone_by = limits.gone_by_s(job)
        if allocation.stop_reason and (rng.random() < 0.3 or (gone_by is not None and gone_by <= player.now + 1)):
            player.play(f"stopped {job.id}")
        elif not allocation.stop_reason and rng.random() < 0.02:
            player.play(f"end {job.id}")


def test_no_more_places_are_looked_for_in_a_turn_than_may_and_nobody_passes_meanwhile() -> None:
    hosts = NEW + 4
    player = Player()
    player.play("policy backfill.mode=conservative")
    for n in range(hosts):
        player.play(f"host h{n:02} 4xa100\nsubmit a{n:02} gpus=3 limit={100 + n}\nrun")
    for n in range(hosts):
        player.play(f"submit big{n:02} gpus=4")
    player.play("submit passes gpus=1")
    kept: list[int] = []
    while not kept or player.placer.due_s is not None:
        player.placer.place(player.cluster, player.now)
        assert player.cluster.jobs["passes"].state is JobState.PENDING
        kept.append(len(player.cluster.books.claims))
        assert player.placer.due_s in (None, player.now + LATER_S)
    assert kept == [NEW, hosts]
    assert hosts <= MOST_KEPT


def test_beyond_the_most_that_are_kept_jobs_may_pass() -> None:
    player = Player()
    player.play("policy backfill.mode=conservative")
    for n in range(MOST_KEPT + 2):
        player.play(f"host h{n:02} 4xa100\nsubmit a{n:02} gpus=3 limit={1000 + n}\nrun")
    for n in range(MOST_KEPT + 1):
        player.play(f"submit big{n:02} gpus=4")
    player.play("submit passes")
    for _ in range(MOST_KEPT // NEW + 2):
        player.placer.place(player.cluster, player.now)
    assert len(player.cluster.books.claims) == MOST_KEPT
    assert player.cluster.jobs["passes"].state is JobState.STARTING


def test_of_whom_nothing_is_known_others_do_not_wait() -> None:
    """More shapes than are looked at in a turn, each too large for ever; something is set free before each turn."""
    player = Player()
    player.play("policy backfill.mode=conservative\nhost h1 4xa100\nhost h2 4xa100")
    player.play("submit a gpus=3\nsubmit b gpus=3\nsubmit c limit=1000\nrun")
    for n in range(2 * LOOKS):
        player.play(f"submit big{n:02} gpus=4 cpus={n % 16 + 1} mib={64 + n}")
    for n in range(3):
        player.play(f"submit small{n} gpus=1 limit=10\nrun")
        assert player.cluster.jobs[f"small{n}"].state is JobState.RUNNING
        player.play(f"end small{n}")
