"""The real scheduler and agents under faults, for many seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.sim.cluster import scenario
from tests.sim.conftest import Seeds
from tests.sim.world import World


@pytest.mark.timeout(1500)
def test_seeds(
    seeds: Seeds, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = seeds.result()
    tally = printed.splitlines()[-1]
    with capsys.disabled():
        sys.stdout.write(f"\nsimulation: {tally}\n")
    record_property("simulation", tally)
    assert not code, printed


def test_a_seed_is_one_history() -> None:
    digests = set()
    for _ in range(2):
        with World(3) as world:
            scenario(world)
            digests.add(world.digest())
    assert len(digests) == 1
