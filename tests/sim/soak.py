"""Seeds for as long as wanted: python -m tests.sim.soak --seconds 3600. Each run begins where none has been before."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

from tests.sim.cluster import Run, run_seed

FAILURES = Path("var/soak")


class Tally:
    """What went by, and how fast."""

    def __init__(self) -> None:
        self.seeds = 0
        self.host_s = 0.0
        self.began = time.monotonic()

    def add(self, run: Run) -> None:
        """One more seed."""
        self.seeds += 1
        self.host_s += run.host_s

    def __str__(self) -> str:
        minutes = max(time.monotonic() - self.began, 1e-3) / 60
        rate = f"{self.seeds / minutes:.0f} seeds and {self.host_s / 3600 / minutes:.0f} simulated host-hours a minute"
        return f"{self.seeds} seeds in {60 * minutes:.0f} s: {rate}"


def runs(seeds: Iterable[int], until: float | None = None) -> Iterator[Run]:
    """The seeds' runs, on all cores, as they end; no seed is begun after `until` (of time.monotonic)."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        if until is None:
            yield from pool.map(run_seed, seeds, chunksize=5)
            return
        numbers = iter(seeds)
        while time.monotonic() < until:  # a few at a time, so that the end is kept to
            yield from pool.map(run_seed, islice(numbers, 8 * workers), chunksize=2)


def main() -> int:
    """1 if a seed failed; each failure is in a file of var/soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--first", type=int, default=int(time.time()) * 1000, help="the first seed")
    options = parser.parse_args()
    tally, failed = Tally(), 0
    sys.stdout.write(f"from seed {options.first} on, for {options.seconds:.0f} s\n")
    for run in runs(count(options.first), time.monotonic() + options.seconds):
        tally.add(run)
        if run.failure:
            failed += 1
            FAILURES.mkdir(parents=True, exist_ok=True)
            (FAILURES / f"seed-{run.seed}.txt").write_text(run.failure)
            sys.stdout.write(f"{run.failure.splitlines()[0]}; see {FAILURES}/seed-{run.seed}.txt\n")
        if tally.seeds % 1000 == 0:
            sys.stdout.write(f"{tally}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{tally}; {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
