"""The free parts of a node's GPUs, which GPU aside: few such patterns occur, and all that is known of one is kept."""

from __future__ import annotations

from .sizes import WHOLE


class Pattern:
    """What is free on each GPU, the most first."""

    __slots__ = ("after", "free", "top", "total", "whole")

    def __init__(self, free: tuple[int, ...]) -> None:
        self.free = free
        self.total = sum(free)
        self.whole = free.count(WHOLE)
        self.top = free[0] if free else 0
        self.after: dict[int, tuple[Pattern, ...]] = {}  # by thousandths taken

    def takes(self, gpu_milli: int) -> bool:
        """Whether a slice, or so many whole GPUs, are free."""
        if gpu_milli >= WHOLE:
            return self.whole * WHOLE >= gpu_milli
        return self.top >= gpu_milli


class Patterns:
    """Every pattern once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Pattern] = {}

    def of(self, free: list[int]) -> Pattern:
        """The pattern of these free parts."""
        key = tuple(sorted(free, reverse=True))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Pattern(key)
        return found

    def after(self, pattern: Pattern, gpu_milli: int) -> tuple[Pattern, ...]:
        """What may stay when so much is taken: one for each different GPU that a slice could be of."""
        found = pattern.after.get(gpu_milli)
        if found is None:
            found = pattern.after[gpu_milli] = tuple(map(self.of, _without(pattern, gpu_milli)))
        return found


def _without(pattern: Pattern, gpu_milli: int) -> list[list[int]]:
    if gpu_milli == 0:
        return [list(pattern.free)]
    if not pattern.takes(gpu_milli):
        return []
    if gpu_milli >= WHOLE:
        count = gpu_milli // WHOLE  # whole GPUs come first
        return [[0] * count + list(pattern.free[count:])]
    left = []
    for size in sorted({free for free in pattern.free if free >= gpu_milli}):
        rest = list(pattern.free)
        rest[rest.index(size)] -= gpu_milli
        left.append(rest)
    return left
