"""Arrays: which of their elements may start now, if only some may run at once.

An element that may start keeps its ticket until it has ended; held or waiting for a job that it depends on, it gives it
back. Tickets go by index, first to those that have started before. Until the element with index 0 is known, which is
written last, nothing of an array starts: its submission may be half done. It decides nothing about hosts.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..state.tables import JobState

if TYPE_CHECKING:
    from ..state.jobs import Job

_Turn = tuple[bool, int, str]  # has never started, index, job


@dataclass(slots=True)
class _Array:
    parallel: int
    open: set[str] = field(default_factory=set)  # elements that are not finished
    tickets: set[str] = field(default_factory=set)
    live: set[str] = field(default_factory=set)  # that have an allocation
    waiting: dict[str, _Turn] = field(default_factory=dict)
    order: list[_Turn] = field(default_factory=list)  # a heap; what `waiting` does not have is out of date


@dataclass(slots=True)
class Arrays:
    """See the module docstring. Kept up by `note`."""

    _arrays: dict[str, _Array] = field(default_factory=dict)
    _complete: set[str] = field(default_factory=set)  # arrays whose element 0 is known
    _touched: set[str] = field(default_factory=set)

    def note(self, job: Job) -> None:
        """Something about the job has changed."""
        element = job.terms.element
        if element is None:
            return
        if element.index == 0:
            self._complete.add(element.array)
        if job.final and element.array not in self._arrays:
            return
        array = self._arrays.setdefault(element.array, _Array(element.parallel))
        self._touched.add(element.array)
        array.waiting.pop(job.id, None)
        (array.live.add if job.allocation_id else array.live.discard)(job.id)
        (array.open.discard if job.final else array.open.add)(job.id)
        if job.final or job.hold or job.depends:
            array.tickets.discard(job.id)
            if not array.open:
                del self._arrays[element.array]
        elif job.state is not JobState.PENDING:
            array.tickets.add(job.id)
        elif job.id not in array.tickets:
            turn = array.waiting[job.id] = (not job.attempt_count, element.index, job.id)
            heapq.heappush(array.order, turn)

    def gated(self, job: Job) -> bool:
        """Whether it has to wait for its array."""
        element = job.terms.element
        if element is None or job.state is not JobState.PENDING:
            return False
        array = self._arrays.get(element.array)
        return array is None or job.id not in array.tickets

    def let_in(self) -> list[str]:
        """Give out the tickets that are free; returns who has got one."""
        fresh = []
        for name in sorted(self._touched):
            array = self._arrays.get(name)
            while array is not None and name in self._complete and array.order:
                if 0 < array.parallel <= len(array.tickets):
                    break
                turn = heapq.heappop(array.order)
                if array.waiting.get(turn[-1]) == turn:
                    del array.waiting[turn[-1]]
                    array.tickets.add(turn[-1])
                    fresh.append(turn[-1])
        self._touched.clear()
        return fresh

    def needs(self, job: Job) -> bool:
        """Whether others of its array need to know of the job though it is finished."""
        element = job.terms.element
        return element is not None and element.index == 0 and element.array in self._arrays

    def forget(self, job: Job) -> None:
        """The job is kept no longer."""
        if job.terms.element is not None and job.terms.element.index == 0:
            self._complete.discard(job.terms.element.array)

    def crowded(self) -> dict[str, tuple[int, int]]:
        """Arrays of which more run than may, with both numbers."""
        pairs = ((name, len(a.live), a.parallel) for name, a in sorted(self._arrays.items()))
        return {name: (live, may) for name, live, may in pairs if 0 < may < live}

    def in_words(self, job: Job) -> str:
        """Why it waits for its array; "": it does not."""
        element = job.terms.element
        if element is None or not self.gated(job):
            return ""
        if element.array not in self._complete:
            return f"waits until its array {element.array} is submitted completely; submit it again with the same key"
        return f"waits for others of its array {element.array}, of which {element.parallel} may run at once"
