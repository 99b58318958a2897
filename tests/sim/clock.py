"""A host's clocks in the simulation."""

from __future__ import annotations

from tests.sim.loop import VirtualLoop
from tests.sim.sealed import WALL_EPOCH_S


class SimClock:
    """Implements agent.ports.Clock. `rate` is how fast the host's crystal runs; `wall_offset_s` how wrong its date is.

    Make a new one at each boot: the boot clock starts at zero then. Timers of the event loop always keep true time.
    """

    def __init__(self, loop: VirtualLoop, *, rate: float = 1.0, wall_offset_s: float = 0.0) -> None:
        self._loop = loop
        self.rate = rate
        self._wall_offset_s = wall_offset_s
        self._booted = loop.time()

    def wall(self) -> float:
        """See Clock.wall."""
        return WALL_EPOCH_S + self._wall_offset_s + self._loop.time()

    def boot(self) -> float:
        """See Clock.boot."""
        return (self._loop.time() - self._booted) * self.rate
