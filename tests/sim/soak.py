"""Seeds for as long as wanted: python -m tests.sim.soak --seconds 3600. Each run begins where none has been before.

With --count it runs that many seeds, from 0 on unless told otherwise.
"""

from __future__ import annotations

import argparse
import gc
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
        self.cpu_s = 0.0
        self.began = time.monotonic()

    def add(self, run: Run) -> None:
        """One more seed."""
        self.seeds += 1
        self.host_s += run.host_s
        self.cpu_s += run.cpu_s

    def __str__(self) -> str:
        minutes = max(self.cpu_s, 1e-3) / 60
        rate = f"{self.seeds / minutes:.0f} seeds and {self.host_s / 3600 / minutes:.0f} simulated host-hours"
        took_s = time.monotonic() - self.began
        return f"{self.seeds} seeds in {took_s:.0f} s, {self.cpu_s:.0f} s of CPU: {rate} a minute of one core"


def runs(seeds: Iterable[int], until: float | None = None) -> Iterator[Run]:
    """The seeds' runs, on all cores, as they end; no seed is begun after `until` (of time.monotonic)."""
    workers = os.cpu_count() or 1
    # What is there before the first seed is never looked at again when garbage is collected after each.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=gc.freeze) as pool:
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
    parser.add_argument("--count", type=int, help="that many seeds, however long they take")
    parser.add_argument("--first", type=int, help="the first seed")
    options = parser.parse_args()
    tally, failed = Tally(), 0
    if options.count:
        first = options.first or 0
        done = runs(range(first, first + options.count))
    else:
        first = int(time.time()) * 1000 if options.first is None else options.first
        done = runs(count(first), time.monotonic() + options.seconds)
    sys.stdout.write(f"from seed {first} on\n")
    for run in done:
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
