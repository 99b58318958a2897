"""What each long answer asks for, and how it goes on after a break without saying anything twice. No I/O.

A stream has `request()`, asked for at the first opening and at each later one, and `fresh(item)`: what of an item is
new, or None. `endless` says that an orderly end by the server is a break too.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from gpupool.errors import Unreachable
from gpupool.v1 import job_pb2, scheduler_pb2

Q_co = TypeVar("Q_co", covariant=True)
R = TypeVar("R")


class Resumable(Protocol[Q_co, R]):
    """See the module docstring."""

    @property
    def endless(self) -> bool:
        """Whether the server never ends this stream in good order."""
        ...

    def request(self) -> Q_co:
        """The request that opens the stream, for the first time or again."""
        ...

    def fresh(self, item: R) -> R | None:
        """What of `item` was not handed out before."""
        ...


class Cursor:
    """Drops what a resumed stream says again. Positions rise; several items may share one, in a fixed order."""

    def __init__(self) -> None:
        self._last: Any = None
        self._count = 0  # items handed out at the position _last
        self._again: int | None = None  # of those, said again since the stream was resumed; None: caught up

    def resumed(self) -> bool:
        """The stream is opened; it may repeat what was handed out. Returns whether anything was."""
        self._again = None if self._last is None else 0
        return self._last is not None

    def fresh(self, position: Any) -> bool:
        """Whether the item at `position` was not handed out before; it then counts as handed out."""
        if self._again is not None:
            if position < self._last:
                return False
            if position == self._last and self._again < self._count:
                self._again += 1
                return False
            self._again = None
        self._count = self._count + 1 if position == self._last else 1
        self._last = position
        return True


class JobChanges:
    """WatchJobs: a new stream begins with every job as it is, so a job that did not change meanwhile is dropped."""

    endless = True

    def __init__(self, selection: scheduler_pb2.JobFilter | None) -> None:
        self._request = scheduler_pb2.WatchJobsRequest(filter=selection)
        self._seen: dict[str, int] = {}

    def request(self) -> scheduler_pb2.WatchJobsRequest:
        """The same each time."""
        return self._request

    def fresh(self, item: job_pb2.Job) -> job_pb2.Job | None:
        """The job, if anything about it is new."""
        digest = hash(item.SerializeToString(deterministic=True))  # 64 bits: the jobs themselves would fill memory
        known = self._seen.get(item.id)
        self._seen[item.id] = digest
        return None if known == digest else item


class LogLines:
    """JobLogs: a new stream begins with the oldest line kept; lines are told apart by attempt and time of arrival."""

    endless = False

    def __init__(self, job: str, attempt: int, *, follow: bool, tail: int) -> None:
        self._first = scheduler_pb2.JobLogsRequest(id=job, attempt=attempt, follow=follow, tail_lines=tail)
        self._cursor = Cursor()

    def request(self) -> scheduler_pb2.JobLogsRequest:
        """The tail as asked for at first; later all lines, since more than the tail may have come meanwhile."""
        request = scheduler_pb2.JobLogsRequest()
        request.CopyFrom(self._first)
        if self._cursor.resumed():
            request.tail_lines = 0
        return request

    def fresh(self, item: scheduler_pb2.LogChunk) -> scheduler_pb2.LogChunk | None:
        """The chunk's new lines."""
        lines = [line for line in item.lines if self._cursor.fresh((item.attempt, line.at_s))]
        return scheduler_pb2.LogChunk(attempt=item.attempt, lines=lines) if lines else None


class Events:
    """WatchEvents: events are told apart by the store's revision, which all replicas share."""

    def __init__(self, *, follow: bool, last: int) -> None:
        self.endless = follow
        self._first = scheduler_pb2.WatchEventsRequest(follow=follow, last=last)
        self._cursor = Cursor()

    def request(self) -> scheduler_pb2.WatchEventsRequest:
        """The last ones as asked for at first; later all that are kept."""
        again = self._cursor.resumed()
        return scheduler_pb2.WatchEventsRequest(follow=self._first.follow, last=0 if again else self._first.last)

    def fresh(self, item: scheduler_pb2.Event) -> scheduler_pb2.Event | None:
        """The event, if it is new."""
        return item if self._cursor.fresh(item.revision) else None


class Dump:
    """DumpCluster: all of it is of one moment, so what breaks in the middle cannot go on."""

    endless = False

    def __init__(self) -> None:
        self._begun = False

    def request(self) -> scheduler_pb2.DumpClusterRequest:
        """Once; again only if nothing was handed out. Raises Unreachable."""
        if self._begun:
            raise Unreachable("the scheduler broke off in the middle of its dump; ask for another")
        return scheduler_pb2.DumpClusterRequest()

    def fresh(self, item: scheduler_pb2.DumpPart) -> scheduler_pb2.DumpPart | None:
        """All of it."""
        self._begun = True
        return item
