"""`python -m tests.chaos [--seed N] [--seconds S] [--plan]`: see the package."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from tests.chaos.plan import make_plan
from tests.chaos.run import Chaos


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED") or 1))
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("CHAOS_S") or 900))
    parser.add_argument("--images", type=Path, default=Path("var/images"))
    parser.add_argument("--plan", action="store_true", help="only print what would be done")
    options = parser.parse_args()
    _tell(f"seed {options.seed}, {options.seconds:g} s; again with: CHAOS_SEED={options.seed} make chaos")
    for fault in make_plan(options.seed, options.seconds):
        _tell(f"  {fault}")
    if options.plan:
        return
    report = asyncio.run(Chaos(options.seed, options.seconds, options.images, _tell).run())
    _tell(report.as_json())
    sys.exit(bool(report.findings))


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
