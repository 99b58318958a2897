"""Dependencies against a naive reading of them, whatever ends in whatever order, under whatever leader."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.state.tables import JobState
from tests.golden.runner import Player

OK = JobState.SUCCEEDED
EDGES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 4), st.sampled_from(["ok", "any", "not_ok"])), max_size=8
).map(lambda edges: [(a, b, when) for a, b, when in edges if b < a])
DOINGS = st.lists(st.sampled_from(["place", "end 0", "end 1", "cancel", "leader"]), max_size=14)


@settings(deadline=None, max_examples=60)
@given(EDGES, DOINGS, st.randoms(use_true_random=False))
def test_nobody_starts_too_soon_and_nobody_waits_for_nothing(
    edges: list[tuple[int, int, str]], doings: list[str], random: object
) -> None:
    player = Player()
    player.play("host h1 8xa100")
    wants: dict[str, dict[str, str]] = {}
    for n in range(6):
        mine = {f"j{b}": when for a, b, when in edges if a == n}
        wants[f"j{n}"] = mine
        by = {w: ",".join(j for j, x in mine.items() if x == w) for w in ("ok", "any", "not_ok")}
        player.play(f"submit j{n} " + " ".join(f"{w}={jobs}" for w, jobs in by.items() if jobs))
    for doing in [*doings, "place"]:
        live = sorted(j.id for j in player.cluster.jobs.values() if j.allocation_id)
        if doing.startswith("end") and live:
            player.play(f"end {random.choice(live)} {doing[4:]}")  # type: ignore[attr-defined]
        elif doing == "cancel":
            open_ = sorted(j.id for j in player.cluster.jobs.values() if j.state is JobState.PENDING)
            player.play(f"cancel {random.choice(open_)}" if open_ else "place")  # type: ignore[attr-defined]
        elif doing in ("place", "leader"):
            player.play(doing)
        player.play("place")
        _judge(player, wants)
    assert "VIOLATION" not in "\n".join(player.log)


def _judge(player: Player, wants: dict[str, dict[str, str]]) -> None:
    jobs = player.cluster.jobs
    for job in jobs.values():
        met = [_met(jobs[other].state, when) for other, when in wants[job.id].items()]
        if job.attempt_count:
            assert all(m is True for m in met), f"{job.id} started too soon"
        elif job.state is JobState.PENDING:
            assert None in met, f"{job.id} waits for nothing"
            assert False not in met, f"{job.id} waits for what cannot come"


def _met(state: JobState, when: str) -> bool | None:
    """None: not decided yet."""
    if state not in (OK, JobState.FAILED, JobState.CANCELLED):
        return None
    return when == "any" or (state is OK) == (when == "ok")
