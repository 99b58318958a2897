"""The real scheduler and agents under faults, for many seeds. GPUPOOL_SIM_SEEDS says how many (default 300)."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.sim.cluster import run_seed, scenario
from tests.sim.world import World

SEEDS = int(os.environ.get("GPUPOOL_SIM_SEEDS", "300"))


@pytest.mark.timeout(1500)
def test_seeds() -> None:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        failures = [failure for failure in pool.map(run_seed, range(SEEDS), chunksize=5) if failure]
    assert not failures, "\n\n".join(failures[:3])


def test_a_seed_is_one_history() -> None:
    digests = set()
    for _ in range(2):
        with World(3) as world:
            scenario(world)
            digests.add(world.digest())
    assert len(digests) == 1
