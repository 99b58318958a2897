"""When each of many is next to be looked at: the earliest first, ties by name. A time that was changed is forgotten."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timers:
    """One time for each name, in Unix seconds."""

    _times: dict[str, float] = field(default_factory=dict)
    _heap: list[tuple[float, str]] = field(default_factory=list)

    def set(self, name: str, at_s: float | None) -> None:
        """From now on this is the time for `name`; None: there is none."""
        if at_s is None:
            self._times.pop(name, None)
        elif self._times.get(name) != at_s:
            self._times[name] = at_s
            heapq.heappush(self._heap, (at_s, name))

    def due(self, now: float, limit: int) -> list[str]:
        """Names whose time has come, at most `limit`, the earliest first; each is told once."""
        found: list[str] = []
        while len(found) < limit and (at_s := self.next_s()) is not None and at_s <= now:
            name = heapq.heappop(self._heap)[1]
            del self._times[name]
            found.append(name)
        return found

    def next_s(self) -> float | None:
        """The earliest time; None if there is none."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
