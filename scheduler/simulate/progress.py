"""Says on stderr how far a long run has come; a run of a second or two says nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import click

from gpupool.cli.views import duration

EVERY_S = 3.0


@dataclass(slots=True)
class Progress:
    """`jobs`: how many there are; `last_s`: the virtual time of the last arrival."""

    jobs: int
    last_s: float
    _begun_s: float = field(default_factory=time.monotonic)
    _said_s: float = field(default_factory=time.monotonic)
    _stops: int = 0

    def __call__(self, passed_s: float, over: int) -> None:
        """The world has come so far."""
        self._stops += 1
        now = time.monotonic()
        if now - self._said_s < EVERY_S:
            return
        self._said_s = now
        click.echo(
            f"{duration(passed_s)} of {duration(self.last_s)} of arrivals, {over:,} of {self.jobs:,} jobs are over, "
            f"{self._stops / (now - self._begun_s):,.0f} events/s",
            err=True,
        )
