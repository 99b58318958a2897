"""Replay one seed, or run many: python -m tests.sim --seed 7 --trace; python -m tests.sim --seed 0 --count 1000.

With --commit-points a seed is played as often as there are commits in it, each time with a crash at another.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

from tests.sim.commit_points import Point, play, points
from tests.sim.world import SeedFailedError, World

DEFAULT = "tests.sim.cluster:scenario"


def load(name: str) -> Callable[[World], object]:
    """The scenario "module:function": it builds the world's processes and runs it."""
    module, _, function = name.partition(":")
    scenario: Callable[[World], object] = getattr(importlib.import_module(module), function)
    return scenario


def main() -> int:
    """Run the seeds asked for; 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--scenario", default=DEFAULT, metavar="MODULE:FUNCTION")
    parser.add_argument("--trace", action="store_true", help="print the trace as it happens")
    parser.add_argument("--no-jitter", action="store_true", help="run ready callbacks in the order asyncio would")
    parser.add_argument("--commit-points", action="store_true", help="crash at every commit point (commit_points.py)")
    parser.add_argument(
        "--commit-point", type=Point.parse, metavar="WHO:NUMBER:before|after:DOWN_S", help="at that one"
    )
    options = parser.parse_args()
    if options.commit_points or options.commit_point:
        seeds = range(options.seed, options.seed + options.count)
        return max(_crash(seed, options.commit_point, say if options.trace else None) for seed in seeds)
    scenario = load(options.scenario)
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        with World(seed, jitter=not options.no_jitter, echo=say if options.trace else None) as world:
            if options.scenario != DEFAULT:
                world.replay += f" --scenario {options.scenario}"
            if options.no_jitter:
                world.replay += " --no-jitter"
            try:
                scenario(world)
            except SeedFailedError as exc:
                failed += 1
                say(f"{exc}\n")
            else:
                say(f"seed {seed} ok: {len(world.lines)} lines, digest {world.digest()}")
    return 1 if failed else 0


def _crash(seed: int, only: Point | None, echo: Callable[[str], object] | None) -> int:
    """1 if any of the crashes was not survived."""
    ran = failed = 0
    for point in [only] if only else points(seed):
        ran += 1
        try:
            play(seed, point, echo)
        except AssertionError as exc:
            failed += 1
            say(f"{exc}\n")
    say(f"seed {seed}: {ran} crashes at commits, {failed} not survived")
    return 1 if failed else 0


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
