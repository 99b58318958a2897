"""The machine's clocks."""

from __future__ import annotations

import time


class BootClock:
    """Implements ports.Clock with the kernel's clocks."""

    def wall(self) -> float:
        """See Clock."""
        return time.time()

    def boot(self) -> float:
        """See Clock."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
