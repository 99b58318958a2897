"""Measure, and print each figure beside what limits it on this machine.

    python -m bench [NAME ...] [-o table|json]

Progress goes to stderr. The figures belong to this machine and to what else it does meanwhile: compare ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from . import (
    cold_start,
    evidence,
    failover,
    footprint,
    inventory,
    leader,
    lifecycle,
    packing,
    places,
    replace,
    reservation,
    start,
    store_commit,
    submit,
    victims,
)
from .row import Row, as_json, print_table

BENCHES: dict[str, Callable[[Callable[[str], None]], Awaitable[list[Row]]]] = {
    "store": store_commit.run,
    "cold": cold_start.run,
    "submit": submit.run,
    "footprint": footprint.run,
    "failover": failover.run,
    "evidence": evidence.run,
    "leader": leader.run,
    "replace": replace.run,
    "inventory": inventory.run,
    "start": start.run,
    "reservation": reservation.run,
    "packing": packing.run,
    "places": places.run,
    "lifecycle": lifecycle.run,
    "victims": victims.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHES)}; all if none is given")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHES]:
        parser.error(f"no measurement is called {unknown[0]!r}; there are {', '.join(BENCHES)}")
    found = {}
    for name in options.names or BENCHES:
        _tell(f"{name}: load is {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs before it starts")
        found[name] = asyncio.run(_measured(name))
        if options.output == "table":
            print_table(name, found[name])
    if options.output == "json":
        print(as_json(found))


async def _measured(name: str) -> list[Row]:
    return await BENCHES[name](_tell)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
