"""A scheduler with a pulse: tells how long its event loop ever stood still, in time on the wall and of the CPU.

    python -m bench.watched FILE scheduler-options ...

Every 5 ms something must run; what it was late by is a stall. On a busy machine the wall counts others' work too, so
the CPU time that this process itself used in between is told as well: a stall of ours is at least as long on both.
Writes FILE once a second: the largest so far, since the last time that FILE was deleted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from scheduler import __main__ as scheduler

PULSE_S, WRITE_S, WORTH_S = 0.005, 1.0, 0.05


class Pulse:
    """What was seen so far."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._wall = self._cpu = 0.0
        self._long = 0
        self._told = time.monotonic()

    async def beat(self) -> None:
        while True:
            before, before_cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(PULSE_S)
            late = time.monotonic() - before - PULSE_S
            used = min(late, time.process_time() - before_cpu)
            self._wall, self._cpu = max(self._wall, late), max(self._cpu, used)
            self._long += used > WORTH_S
            if time.monotonic() - self._told > WRITE_S:
                self._tell()

    def _tell(self) -> None:
        if not self._file.exists():
            self._wall = self._cpu = 0.0
            self._long = 0
        self._told = time.monotonic()
        self._file.write_text(json.dumps({"wall_s": self._wall, "cpu_s": self._cpu, "over_50_ms_of_cpu": self._long}))


def main() -> None:
    file = Path(sys.argv.pop(1))
    file.write_text("{}")
    serve = scheduler.serve

    async def watched(config: scheduler.Config) -> None:
        pulse = asyncio.create_task(Pulse(file).beat())
        try:
            await serve(config)
        finally:
            pulse.cancel()

    scheduler.serve = watched
    scheduler.main()


if __name__ == "__main__":
    main()
