"""The pending queue: jobs in order, grouped by shape, so that a shape which does not fit is asked about once.

Order is a total order of keys that end in the job's id. A job that must wait for a time is not offered before it, and
one that waits for something else (a time of infinity) not at all.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

Key = tuple[int, int, int, int, str]  # ends in the job's id
Shape = TypeVar("Shape", bound=Hashable)


@dataclass(slots=True)
class _Entry(Generic[Shape]):
    shape: Shape
    key: Key
    not_before_s: float


@dataclass(slots=True)
class PendingQueue(Generic[Shape]):
    """See the module docstring."""

    _entries: dict[str, _Entry[Shape]] = field(default_factory=dict)
    _by_shape: dict[Shape, list[Key]] = field(default_factory=dict)
    _delayed: list[tuple[float, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """The ids of all that wait, in no order that matters."""
        return iter(self._entries)

    def add(self, job: str, shape: Shape, key: Key, not_before_s: float = 0.0) -> None:
        """Queue `job`; it is offered from `not_before_s` (Unix time) on."""
        self.discard(job)
        self._entries[job] = _Entry(shape, key, not_before_s)
        if not_before_s == inf:
            return
        if not_before_s > 0:
            heapq.heappush(self._delayed, (not_before_s, job))
        else:
            insort(self._by_shape.setdefault(shape, []), key)

    def parked(self, job: str) -> bool:
        """Whether the job waits for something other than a time, or its turn."""
        entry = self._entries.get(job)
        return entry is not None and entry.not_before_s == inf

    def discard(self, job: str) -> None:
        """Take `job` out, if it is in."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return
        keys = self._by_shape.get(entry.shape, [])
        index = bisect_left(keys, entry.key)
        if index < len(keys) and keys[index] == entry.key:
            del keys[index]
            if not keys:
                del self._by_shape[entry.shape]

    def due(self, now: float) -> None:
        """Let the jobs whose time has come join the others."""
        while self._delayed and self._delayed[0][0] <= now:
            at, job = heapq.heappop(self._delayed)
            entry = self._entries.get(job)
            if entry is not None and entry.not_before_s == at:
                entry.not_before_s = 0.0
                insort(self._by_shape.setdefault(entry.shape, []), entry.key)

    def next_due_s(self) -> float | None:
        """The earliest time at which a delayed job will be offered."""
        while self._delayed:
            at, job = self._delayed[0]
            entry = self._entries.get(job)
            if entry is not None and entry.not_before_s == at:
                return at
            heapq.heappop(self._delayed)
        return None

    def offers(self, skip: set[Shape]) -> Iterator[tuple[str, Shape]]:
        """Jobs in order, no shape of `skip`; the caller may add to `skip` and take offered jobs out meanwhile."""
        heads = [(keys[0], 0, n, shape) for n, (shape, keys) in enumerate(self._by_shape.items()) if shape not in skip]
        lists = {n: list(self._by_shape[shape]) for _, _, n, shape in heads}
        heapq.heapify(heads)
        while heads:
            key, index, n, shape = heapq.heappop(heads)
            if shape in skip:
                continue
            yield key[-1], shape
            if index + 1 < len(lists[n]):
                heapq.heappush(heads, (lists[n][index + 1], index + 1, n, shape))

    def position(self, job: str) -> int:
        """The job's place among all that wait, 1 for the next; 0 if it does not wait."""
        entry = self._entries.get(job)
        if entry is None:
            return 0
        ahead = sum(bisect_left(keys, entry.key) for keys in self._by_shape.values())
        return ahead + 1
