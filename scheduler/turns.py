"""Long work of the core, done with pauses in which others run: the lease is renewed, questions are answered.

Whoever does it must see to it that nothing changes meanwhile what the work looks at.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from .core.queueing.sets import PAUSE, Work

_T = TypeVar("_T")


async def in_pauses(work: Work[_T]) -> _T:
    """What it comes to."""
    cost = 0
    while True:
        try:
            cost += next(work)
        except StopIteration as end:
            found: _T = end.value
            return found
        if cost >= PAUSE:
            cost = 0
            await asyncio.sleep(0)
