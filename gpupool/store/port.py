"""The store port: what gpupool needs of a strongly consistent key-value store, and nothing more.

Two implementations pass one contract suite (tests/contract/test_store.py): `gpupool.store.etcd` and
`gpupool.store.memory`. A store never interprets values and never retries a write whose fate is unknown: a
`Unavailable` raised by `commit` means "perhaps done", and the caller finds out by reading.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol


class StoreError(Exception):
    """The store could not do what was asked. Subclasses say whether to ask again."""


class Unavailable(StoreError):
    """No answer in time, no leader, or the connection broke. Ask again; a write may or may not have happened."""


class Compacted(StoreError):
    """The revision asked for is gone; list again and watch from the revision that the list names."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"revision compacted; the oldest kept is {compact_revision}")
        self.compact_revision = compact_revision


class Restored(Compacted):
    """The store has forgotten what we saw of it: it was restored from a backup. List again, and trust nothing known."""

    def __init__(self, why: str) -> None:
        Exception.__init__(self, f"the store's history went back, as if restored from a backup: {why}")
        self.compact_revision = 0


class LeaseNotFound(StoreError):
    """The lease has expired or was revoked; everything that hung on it is gone."""


class Refused(StoreError):
    """The store will never accept this request (too large, too many operations, not permitted)."""


class KeyValue(NamedTuple):
    """One key as stored. `create_revision` is unique to this life of the key: it changes only by delete and create.

    A tuple, as there are hundreds of thousands in a large cluster: it is made faster, and the garbage collector soon
    passes it over.
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value` under `key`; a non-zero `lease` deletes the key when the lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key`; absent is fine."""

    key: str


Op = Put | Delete


@dataclass(frozen=True, slots=True)
class Created:
    """Holds while `key` is still in the life that began at `create_revision`; 0 means that the key is absent."""

    key: str
    create_revision: int


@dataclass(frozen=True, slots=True)
class Unmodified:
    """Holds while `key` was last written at `mod_revision`; 0 means that the key is absent."""

    key: str
    mod_revision: int


Guard = Created | Unmodified


@dataclass(frozen=True, slots=True)
class Committed:
    """The outcome of a commit: `revision` is the store's revision at which it was decided."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every key under a prefix, sorted by key, all as of one `revision`."""

    revision: int
    items: tuple[KeyValue, ...]


Each = Callable[[int, Sequence[KeyValue]], Awaitable[None]]
"""Told of a page of a list: how many keys came before it, and its own."""


class Change(NamedTuple):
    """One change seen by a watch: `kv` is None when the key was deleted (or its lease ended)."""

    key: str
    kv: KeyValue | None
    revision: int


class Sight(Enum):
    """What a poll saw of one member of the store's cluster, at some time during the poll."""

    LEADER = "knows a leader"
    NO_LEADER = "knows no leader"
    NOT_RUNNING = "is not running"
    SILENT = "is silent"  # or answered in a way that proves nothing


@dataclass(frozen=True, slots=True)
class Poll:
    """What each member said for itself. `doubt` says why these may not be all members of the cluster; empty: they are.

    Members are named, sorted by name.
    """

    members: tuple[tuple[str, Sight], ...]
    doubt: str = ""


class Store(Protocol):
    """See the module docstring. Keys are str; prefixes match literally; every call has a bounded duration."""

    async def get(self, key: str) -> KeyValue | None:
        """The newest committed value of `key` (linearizable), or None."""
        ...

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        """All keys under `prefix` at one revision, read in pages.

        `each` is told of every page, in order, while the next is on its way. If no key came before it, the list begins,
        perhaps once more: what was told before is void, as it is when the call fails.
        """
        ...

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        """Apply all `ops` atomically if all `guards` hold, else nothing.

        Raises Refused beyond `max_ops` operations or guards, or a repeated key in `ops`; LeaseNotFound if a put names
        a lease that is gone.
        """
        ...

    def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        """Changes under `prefix` with revision > `after_revision`, in order, each exactly once, batched as they arrive.

        Never ends by itself: breaks in the connection are mended inside by resuming after the last revision that was
        handed out; a frozen or silent peer is noticed within seconds. Raises Compacted when it cannot resume; Restored
        when the store, at the beginning or after a break, is not as new as what was seen of it.
        Changes of one revision are never split over two batches. Who leaves the loop early by other means than
        cancellation wraps it in `contextlib.aclosing`, or the connection lives on until garbage collection.
        """
        ...

    async def grant(self, ttl_s: int) -> int:
        """A new lease (a positive id). The TTL counts from when the store handles the request."""
        ...

    async def renew(self, lease: int) -> int:
        """Restart the lease's TTL; returns the TTL in seconds. Raises LeaseNotFound when it has ended."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys; a lease that has ended already is fine."""
        ...

    async def learn_members(self) -> None:
        """Ask the cluster, linearizably, who its members are, for later polls. Raises StoreError; then nothing changed.

        To be called now and then while the store answers: a poll can only be as good as the list.
        """
        ...

    async def poll_members(self) -> Poll:
        """Ask every member at once whether it knows a leader; within about a second, and never raises StoreError.

        Whatever is said was true of that member at some time during the call. See docs/failover.md for what a caller
        may conclude.
        """
        ...

    async def close(self) -> None:
        """Release connections; watches end with Unavailable."""
        ...

    @property
    def max_ops(self) -> int:
        """The most operations (and guards) that one commit may carry."""
        ...
