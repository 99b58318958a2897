"""Amounts of what jobs use: GPUs, logical CPUs, memory. Infinite: no limit."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

_new = tuple.__new__  # as the class's own does, without a call in Python


class Amounts(NamedTuple):
    """GPUs, CPUs and MiB; also as a limit, where any may be infinite."""

    gpus: float = 0
    cpus: float = 0
    memory_mib: float = 0

    def plus(self, other: Amounts) -> Amounts:
        """Both together."""
        return _new(Amounts, (self[0] + other[0], self[1] + other[1], self[2] + other[2]))

    def minus(self, other: Amounts) -> Amounts:
        """What is left."""
        return _new(Amounts, (self[0] - other[0], self[1] - other[1], self[2] - other[2]))

    def times(self, count: int) -> Amounts:
        """So many times as much."""
        return Amounts(self[0] * count, self[1] * count, self[2] * count)

    def within(self, limit: Amounts) -> bool:
        """Whether no part is beyond the limit."""
        return self[0] <= limit[0] and self[1] <= limit[1] and self[2] <= limit[2]

    def over_given(self, sure: Amounts) -> bool:
        """Whether any part of which something is guaranteed is beyond that; what has no guarantee does not count."""
        return any(0 < given < have for have, given in zip(self, sure, strict=True))

    def beyond(self, limit: Amounts) -> str:
        """The first part that is beyond the limit, in words with both values; "": none is."""
        for name, have, may in zip(_WORDS, self, limit, strict=True):
            if have > may:
                return f"{have:.0f} {name}, at most {may:.0f} are allowed"
        return ""


_WORDS = ("GPUs", "CPUs", "MiB of memory")
NOTHING = Amounts()
NO_LIMIT = Amounts(inf, inf, inf)
