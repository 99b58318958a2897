"""Long work of the core, done with pauses in which others run: the lease is renewed, questions are answered.

Whoever does it must see to it that nothing changes meanwhile what the work looks at.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

from .core.work import Work, pauses

_T = TypeVar("_T")


async def in_pauses(work: Work[_T]) -> _T:
    """What it comes to."""
    parts = pauses(work)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            found: _T = end.value
            return found
        await asyncio.sleep(0)
