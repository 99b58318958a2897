"""Run seeds of the simulation until one fails: python -m tests.mutants.hunt --faults partition,pause --seeds 60."""

from __future__ import annotations

import argparse
import sys

from tests.mutants.model import ALL
from tests.sim.cluster import scenario
from tests.sim.faults import WEIGHTS, Kind
from tests.sim.world import World


def hunt(kinds: str, words: str, seeds: int, *, settle: bool) -> str:
    """What the first seed that failed said in its first line; "" if none did. Other words than `words` do not count."""
    weights = WEIGHTS if kinds == ALL else {Kind(name): WEIGHTS[Kind(name)] for name in kinds.split(",")}
    for seed in range(seeds):
        with World(seed) as world:
            try:
                scenario(world, weights, settle=settle, harsh=kinds != ALL)
            except AssertionError as exc:
                said = str(exc)
                if words in said:
                    return f"seed {seed}: " + said.splitlines()[1 if "did not settle" in said else 0].strip()
    return ""


def main() -> int:
    """1 if a seed failed, as a test run that fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.hunt", description=__doc__)
    parser.add_argument("--faults", default=ALL, help="kinds of tests/sim/faults.py, separated by commas")
    parser.add_argument("--words", default="", help="what the failure must say")
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--settle", action="store_true")
    options = parser.parse_args()
    seen = hunt(options.faults, options.words, options.seeds, settle=options.settle)
    sys.stdout.write((seen or f"{options.seeds} seeds saw nothing") + "\n")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
