"""The real scheduler and agents under faults, for many seeds. GPUPOOL_SIM_SEEDS says how many (default 300)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from tests.sim.cluster import scenario
from tests.sim.soak import Tally, runs
from tests.sim.world import World

SEEDS = int(os.environ.get("GPUPOOL_SIM_SEEDS", "300"))


@pytest.mark.timeout(1500)
def test_seeds(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> None:
    tally, failures = Tally(), []
    for run in runs(range(SEEDS)):
        tally.add(run)
        failures += [run.failure] if run.failure else []
    with capsys.disabled():
        sys.stdout.write(f"\nsimulation: {tally}\n")
    record_property("simulation", str(tally))
    assert not failures, "\n\n".join(failures[:3])


def test_a_seed_is_one_history() -> None:
    digests = set()
    for _ in range(2):
        with World(3) as world:
            scenario(world)
            digests.add(world.digest())
    assert len(digests) == 1
