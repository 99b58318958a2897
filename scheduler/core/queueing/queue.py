"""The pending queue: jobs in order, grouped by shape and lane, so that a shape which does not fit is asked about once.

A lane is whose limits and share a job has, and its limit of time: what else decides whether it may start. Order is a
total order of keys that end in the job's id, with the lane's share in between: (lost first, restart priority, priority,
share, arrival, id). Shares change at any time, so they are asked for when jobs are offered: they can only grow while
jobs are placed. A job that must wait for a time is not offered before it, and one that waits for something else (a time
of infinity) not at all.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

Key = tuple[int, int, int, int, str]  # ends in the job's id
Lane = tuple[str, str, int]  # queue, user, time limit
Share = Callable[[Lane], float]
Shape = TypeVar("Shape", bound=Hashable)

NO_LANE: Lane = ("", "", 0)
_BEFORE_SHARE = 3  # parts of a key that go before the share


def alike(lane: Lane) -> float:
    """The share of each lane where nobody minds shares."""
    del lane
    return 0.0


@dataclass(slots=True)
class _Entry(Generic[Shape]):
    group: tuple[Shape, Lane]
    key: Key
    not_before_s: float


@dataclass(slots=True)
class PendingQueue(Generic[Shape]):
    """See the module docstring."""

    _entries: dict[str, _Entry[Shape]] = field(default_factory=dict)
    _groups: dict[tuple[Shape, Lane], list[Key]] = field(default_factory=dict)
    _delayed: list[tuple[float, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """The ids of all that wait, in no order that matters."""
        return iter(self._entries)

    def add(self, job: str, shape: Shape, key: Key, not_before_s: float = 0.0, lane: Lane = NO_LANE) -> None:
        """Queue `job`; it is offered from `not_before_s` (Unix time) on."""
        self.discard(job)
        entry = self._entries[job] = _Entry((shape, lane), key, not_before_s)
        if not_before_s == inf:
            return
        if not_before_s > 0:
            heapq.heappush(self._delayed, (not_before_s, job))
        else:
            insort(self._groups.setdefault(entry.group, []), key)

    def parked(self, job: str) -> bool:
        """Whether the job waits for something other than a time, or its turn."""
        entry = self._entries.get(job)
        return entry is not None and entry.not_before_s == inf

    def discard(self, job: str) -> None:
        """Take `job` out, if it is in."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return
        keys = self._groups.get(entry.group, [])
        index = bisect_left(keys, entry.key)
        if index < len(keys) and keys[index] == entry.key:
            del keys[index]
            if not keys:
                del self._groups[entry.group]

    def due(self, now: float) -> None:
        """Let the jobs whose time has come join the others."""
        while self._delayed and self._delayed[0][0] <= now:
            at, job = heapq.heappop(self._delayed)
            entry = self._entries.get(job)
            if entry is not None and entry.not_before_s == at:
                entry.not_before_s = 0.0
                insort(self._groups.setdefault(entry.group, []), entry.key)

    def next_due_s(self) -> float | None:
        """The earliest time at which a delayed job will be offered."""
        while self._delayed:
            at, job = self._delayed[0]
            entry = self._entries.get(job)
            if entry is not None and entry.not_before_s == at:
                return at
            heapq.heappop(self._delayed)
        return None

    def offers(
        self, skip: set[Shape], share: Share = alike, shut: Collection[tuple[Shape, Lane]] = ()
    ) -> Iterator[tuple[str, Shape]]:
        """Jobs in order, no shape of `skip`, nor of `skip` in a lane of `shut`.

        The caller may add to both, take offered jobs out, and let shares grow meanwhile.
        """
        groups = [(keys, *group) for group, keys in self._groups.items() if group[0] not in skip]
        shares = {lane: share(lane) for lane in {lane for _, _, lane in groups}}
        heads = [(_rank(keys[0], shares[lane]), 0, n) for n, (keys, _, lane) in enumerate(groups)]
        heapq.heapify(heads)
        while heads:
            rank, index, n = heapq.heappop(heads)
            keys, shape, lane = groups[n]
            if shape in skip or (shape, lane) in shut:
                continue
            if (now := share(lane)) > rank[3]:
                heapq.heappush(heads, (_rank(keys[index], now), index, n))
                continue
            if index == 0:
                keys = list(keys)  # as they are before any of them is taken out
                groups[n] = keys, shape, lane
            if not heads:  # only these are left, and their keys order them
                for key in keys[index:]:
                    if shape in skip or (shape, lane) in shut:
                        return
                    yield key[-1], shape
                return
            yield rank[-1], shape
            if index + 1 < len(keys):
                heapq.heappush(heads, (_rank(keys[index + 1], share(lane)), index + 1, n))

    def position(self, job: str, share: Share = alike) -> int:
        """The job's place among all that wait, 1 for the next; 0 if it does not wait."""
        entry = self._entries.get(job)
        if entry is None:
            return 0
        head, mine = entry.key[:_BEFORE_SHARE], share(entry.group[1])
        ahead = 0
        for (_, lane), keys in self._groups.items():
            theirs = share(lane)
            if theirs == mine:
                ahead += bisect_left(keys, entry.key)
            else:  # all of the same priority, or none of them
                ahead += bisect_left(keys, (*head, inf) if theirs < mine else head)
        return ahead + 1


_Rank = tuple[int, int, int, float, int, str]


def _rank(key: Key, share: float) -> _Rank:
    """The key, with the share in its place."""
    return (key[0], key[1], key[2], share, key[3], key[4])
