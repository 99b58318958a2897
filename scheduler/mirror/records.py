"""What is stored, by kind and by the ids in its key, as the bytes that it is: read when somebody asks.

Parsed messages take several times the memory of their bytes, and most are never asked for. So a record is parsed each
time; who needs it often keeps what he needs of it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from gpupool.store.keys import Kind, parse
from gpupool.store.port import Change, KeyValue
from gpupool.store.types import TYPES

_log = logging.getLogger(__name__)

Ids = tuple[str, ...]
Items = Iterable[tuple[Ids, KeyValue]]
Stored = dict[Kind, Items]  # in the order of keys; a kind of which there is nothing may be missing
Record = TypeVar("Record", bound=Message)

# The leader's decisions, most of all that is written: read when somebody asks, not when they come.
_LATER = frozenset({Kind.JOB_STATUS, Kind.ALLOCATION})
_BY_HOST = (Kind.UNIT, Kind.ALLOCATION)  # what is looked up by host alone


class News(NamedTuple):
    """One change of a key that is ours. `record` is None when it was deleted, cannot be read, or is a decision."""

    kind: Kind
    ids: Ids
    kv: KeyValue | None
    revision: int
    record: Message | None

    @property
    def unreadable(self) -> bool:
        """Whether there is a value that says nothing."""
        return self.record is None and self.kv is not None and self.kind not in _LATER


def news_of(change: Change) -> News | None:
    """What the change says; None: the key is not ours."""
    parsed = parse(change.key)
    if parsed is None or parsed[0] not in TYPES:
        return None
    kind, ids = parsed
    record = read(kind, change.kv) if change.kv is not None and kind not in _LATER else None
    return News(kind, ids, change.kv, change.revision, record)


def read(kind: Kind, kv: KeyValue) -> Message | None:
    """The record; None, and a word in the log, if it cannot be read."""
    try:
        return TYPES[kind].FromString(kv.value)
    except DecodeError as exc:
        _log.error("ignoring %s: unreadable value (%s)", kv.key, exc)
        return None


def by_kind(items: Iterable[KeyValue]) -> Stored:
    """The items that are ours, as their keys name them, in their order."""
    found: dict[Kind, list[tuple[Ids, KeyValue]]] = {kind: [] for kind in Kind}
    for kv in items:
        parsed = parse(kv.key)
        if parsed is not None:
            found[parsed[0]].append((parsed[1], kv))
    return dict(found)


class Column:
    """All records of a kind. Two lists, as pairs of all would take a tenth of a second to make."""

    def __init__(self, ids: list[Ids], kvs: list[KeyValue]) -> None:
        self._ids = ids
        self._kvs = kvs

    def __iter__(self) -> Iterator[tuple[Ids, KeyValue]]:
        """In the order of keys, in which they mostly are."""
        if sorted(self._kvs) == self._kvs:
            yield from zip(self._ids, self._kvs, strict=True)
        else:
            for n in sorted(range(len(self._kvs)), key=self._kvs.__getitem__):
                yield self._ids[n], self._kvs[n]


class Records:
    """See the module docstring."""

    def __init__(self) -> None:
        self._kvs: dict[Kind, dict[Ids, KeyValue]] = {kind: {} for kind in TYPES}
        self._by_host: dict[Kind, dict[str, dict[Ids, None]]] = {kind: {} for kind in _BY_HOST}

    def fill(self, items: Iterable[KeyValue], minded: Collection[Kind]) -> Iterator[tuple[Kind, Ids, KeyValue]]:
        """Take in those that are ours, of which there is nothing yet; returns those of the kinds that are minded."""
        known, indexed = self._kvs, self._by_host
        for kv in items:
            parsed = parse(kv.key)
            if parsed is None or (kvs := known.get(parsed[0])) is None:
                continue
            kind, ids = parsed
            kvs[ids] = kv
            if kind in indexed:
                self._index(indexed[kind], ids, there=True)
            if kind in minded:
                yield kind, ids, kv

    def put(self, kind: Kind, ids: Ids, kv: KeyValue | None) -> KeyValue | None:
        """Store this there, or nothing; returns what was."""
        kvs = self._kvs[kind]
        before = kvs.get(ids)
        if kv is not None:
            kvs[ids] = kv
        else:
            kvs.pop(ids, None)
        if kind in self._by_host and (before is None) != (kv is None):
            self._index(self._by_host[kind], ids, there=kv is not None)
        return before

    @staticmethod
    def _index(hosts: dict[str, dict[Ids, None]], ids: Ids, *, there: bool) -> None:
        if there:
            if (found := hosts.get(ids[0])) is not None:
                found[ids] = None
            else:
                hosts[ids[0]] = {ids: None}
            return
        del hosts[ids[0]][ids]
        if not hosts[ids[0]]:
            del hosts[ids[0]]

    def kv(self, kind: Kind, ids: Ids) -> KeyValue | None:
        """As it is stored."""
        return self._kvs[kind].get(ids)

    def items(self, kind: Kind) -> Items:
        """Every record of a kind as it is stored. Nothing may change while it is drawn from."""
        return self._kvs[kind].items()

    def ids(self, kind: Kind) -> list[Ids]:
        """Of every record of a kind."""
        return list(self._kvs[kind])

    def count(self, kind: Kind) -> int:
        """How many there are of a kind."""
        return len(self._kvs[kind])

    def get(self, kind: Kind, of: type[Record], ids: Ids) -> Record | None:
        """One record; None: there is none, or it cannot be read."""
        kv = self._kvs[kind].get(ids)
        return self._read(kind, of, kv) if kv is not None else None

    @staticmethod
    def _read(kind: Kind, of: type[Record], kv: KeyValue) -> Record | None:
        found = read(kind, kv)
        assert found is None or isinstance(found, of)
        return found

    def all(self, kind: Kind, of: type[Record]) -> Iterator[tuple[Ids, Record]]:
        """Every record of a kind. Nothing may change while it is drawn from."""
        for ids, kv in self._kvs[kind].items():
            if (record := self._read(kind, of, kv)) is not None:
                yield ids, record

    def of_host(self, kind: Kind, of: type[Record], host: str) -> dict[Ids, Record]:
        """Those of a host."""
        found = ((ids, self.get(kind, of, ids)) for ids in self._by_host[kind].get(host, ()))
        return {ids: record for ids, record in found if record is not None}

    def any_of_host(self, kind: Kind, host: str) -> bool:
        """Whether the host has any."""
        return host in self._by_host[kind]

    def stored(self) -> Stored:
        """Everything as it is at this moment, by kind."""
        return {kind: Column(list(kvs), list(kvs.values())) for kind, kvs in self._kvs.items()}

    def kvs(self) -> Iterator[KeyValue]:
        """Everything that is stored."""
        for kvs in self._kvs.values():
            yield from kvs.values()
