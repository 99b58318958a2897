"""How long to wait before asking an unavailable store again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable


class Backoff:
    """Exponential waits with jitter, so that a fleet that lost its store together does not come back together.

    The n-th wait in a row lies between half and all of min(first_s * 2**n, cap_s). It sleeps with asyncio.sleep only,
    and takes its randomness as an argument, so that a simulation with a virtual clock and a seed repeats itself.
    """

    def __init__(
        self, first_s: float = 0.1, cap_s: float = 5.0, *, random_unit: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._random_unit = random_unit
        self._tries = 0

    def reset(self) -> None:
        """The store answered: begin again with the shortest wait."""
        self._tries = 0

    def next_s(self) -> float:
        """The next wait in seconds; the one after it is longer."""
        limit_s = min(self._first_s * 2.0**self._tries, self._cap_s)
        self._tries = min(self._tries + 1, 30)
        return limit_s * (1 + self._random_unit()) / 2

    async def sleep(self) -> None:
        """Wait for `next_s()`."""
        await asyncio.sleep(self.next_s())
