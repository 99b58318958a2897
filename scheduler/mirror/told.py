"""The history of events: what changed is kept as it was stored, and put into words once somebody asks.

Most events are never read, and putting one into words takes as long as all else that is done with a change. It decides
nothing, and keeps the newest only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gpupool.store.keys import Kind
from gpupool.store.port import KeyValue
from gpupool.v1 import scheduler_pb2

from . import states_told, wishes_told
from .records import Ids, read

EVENTS_KEPT = 10_000
CHANGES_KEPT = 2 * EVENTS_KEPT  # not in words yet; some of them are no events at all
TELLING = frozenset(  # kinds whose changes may be events
    {Kind.HOST, Kind.UNIT, Kind.VM, Kind.JOB_STATUS, Kind.HOST_INTENT, Kind.CLUSTER_INTENT, Kind.CLUSTER}
)


class Changed(NamedTuple):
    """A record before and after a change."""

    kind: Kind
    ids: Ids
    before: KeyValue | None
    after: KeyValue | None
    at_s: float
    revision: int

    def events(self) -> Iterator[scheduler_pb2.Event]:
        """What it says has happened."""
        before = read(self.kind, self.before) if self.before is not None else None
        after = read(self.kind, self.after) if self.after is not None else None
        if after is None and self.after is not None:
            return  # it says nothing
        yield from dated(states_told.told(self.kind, self.ids, before, after), self.at_s, self.revision)
        yield from dated(wishes_told.told(self.ids, before, after), self.at_s, self.revision)


def dated(events: Iterable[scheduler_pb2.Event], at_s: float, revision: int) -> Iterator[scheduler_pb2.Event]:
    """The events, with when they happened."""
    for event in events:
        event.at_s, event.revision = at_s, revision
        yield event


class Told:
    """See the module docstring."""

    def __init__(self) -> None:
        self._changes: deque[Changed | scheduler_pb2.Event] = deque(maxlen=CHANGES_KEPT)
        self._events: deque[scheduler_pb2.Event] = deque(maxlen=EVENTS_KEPT)
        self._listeners: list[Callable[[scheduler_pb2.Event], None]] = []

    @property
    def history(self) -> deque[scheduler_pb2.Event]:
        """The newest events, the oldest first."""
        while self._changes:
            change = self._changes.popleft()
            self._events.extend(change.events() if isinstance(change, Changed) else [change])
        return self._events

    @property
    def listening(self) -> int:
        """How many want to hear of events."""
        return len(self._listeners)

    def listen(self, listener: Callable[[scheduler_pb2.Event], None]) -> Callable[[], None]:
        """Call `listener` for each new event; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def changed(self, change: Changed) -> None:
        """A record has changed."""
        if self._listeners:
            self.happened(change.events())
        else:
            self._changes.append(change)

    def happened(self, events: Iterable[scheduler_pb2.Event]) -> None:
        """Tell of these."""
        for event in events:
            self.history.append(event)
            for tell in list(self._listeners):
                tell(event)
