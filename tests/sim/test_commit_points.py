"""A crash at commit after commit: here some of them, each in one of four ways; `--commit-points` plays all.

What is played by chance, a crash at *some* commit, is in every seed (faults.py).
"""

from __future__ import annotations

import pytest

from tests.sim.commit_points import DOWN_S, LEADER, Point, play

SEED = 3  # short: two machines, and jobs that are lost with one and start again
EVERY = {LEADER: 1, "h1/agent": 5, "h2/agent": 2}


@pytest.fixture(scope="module")
def commits() -> dict[str, int]:
    """How many there are, of whom."""
    whole = play(SEED)
    fenced = [line for line in whole.world.lines if "FENCING -> FENCED (" in line]
    assert fenced
    assert "NOTHING_RAN" not in fenced[0]
    return {who: count for (who, after), count in whole.seen.items() if after}


@pytest.mark.parametrize("who", EVERY)
def test_who_dies_at_a_commit_takes_nothing_along(who: str, commits: dict[str, int]) -> None:
    assert commits[who] >= 5
    for number in range(0, commits[who], EVERY[who]):
        turn = number // EVERY[who]
        play(SEED, Point(who, number, after=turn % 2 == 1, down_s=DOWN_S[turn // 2 % 2]))


def test_a_point_is_named_as_it_is_asked_for() -> None:
    point = Point("h1/agent", 7, after=True, down_s=0.5)
    assert Point.parse(str(point)) == point
    with pytest.raises(AssertionError, match="never reached"):
        play(SEED, Point(LEADER, 10_000, after=False))
