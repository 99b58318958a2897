"""Long work of the core in parts: it says now and then what it has cost, so that others may run in between.

Nothing that the work looks at may change in a pause. There is no clock here: what it costs is counted in tries.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

PAUSE = 50  # tries; some 5 ms

_T = TypeVar("_T")
Work = Generator[int, None, _T]  # yields what it has just done costs, in tries: each some 0.1 ms


def done(work: Work[_T]) -> _T:
    """Do it all at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: _T = end.value
            return found


def pauses(work: Work[_T]) -> Generator[None, None, _T]:
    """Do it, with a pause whenever it has cost as much as PAUSE tries; returns what it comes to."""
    cost = 0
    while True:
        try:
            cost += next(work)
        except StopIteration as end:
            found: _T = end.value
            return found
        if cost >= PAUSE:
            cost = 0
            yield
