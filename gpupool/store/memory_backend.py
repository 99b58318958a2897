"""The state behind the memory store: keys, revisions, history, leases. `gpupool.store.memory` is the door to it.

Synchronous, so every operation is atomic by itself. Deterministic: no thread, no wall clock, no randomness.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpupool.store.port import (
    Change,
    Committed,
    Compacted,
    Created,
    Guard,
    KeyValue,
    LeaseNotFound,
    Op,
    Put,
    Refused,
    Sight,
    Snapshot,
)


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expires_at: float
    keys: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Watcher:
    """Who waits for a change under `prefix`. `first`: the revision of the first one since it began to wait; 0: none."""

    prefix: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    first: int = 0

    def rest(self) -> int:
        """Begin to wait anew; returns the revision up to which nothing has changed since the last time."""
        self.wake.clear()
        first, self.first = self.first, 0
        return max(0, first - 1)


class MemoryBackend:
    """The shared state: keys, their history since the last compaction, leases, revision.

    `clock` counts seconds and never goes back; by default it is the running loop's time, so a virtual-time loop works.
    `keep_revisions` bounds the history: older revisions are compacted away as new ones are written.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None, keep_revisions: int | None = None) -> None:
        self._clock = clock
        self._keep_revisions = keep_revisions
        self._items: dict[str, KeyValue] = {}
        self._history: list[tuple[int, tuple[Change, ...]]] = []
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._compacted = 0
        self._watchers: dict[int, Watcher] = {}  # a dict, as a set would wake them in no fixed order
        self._timer: asyncio.TimerHandle | None = None
        self.members = {"memory": Sight.LEADER}  # what a poll sees; a test may say otherwise
        self.revision = 1  # as an empty etcd counts

    def get(self, key: str) -> KeyValue | None:
        """What `key` holds now."""
        self.expire()
        return self._items.get(key)

    def list(self, prefix: str) -> Snapshot:
        """Everything under `prefix` now."""
        self.expire()
        keys = sorted(key for key in self._items if key.startswith(prefix))
        return Snapshot(self.revision, tuple(self._items[key] for key in keys))

    def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        """See Store.commit. A dead lease is noticed only when the guards hold, as in etcd."""
        self.expire()
        if not all(self._holds(guard) for guard in guards):
            return Committed(succeeded=False, revision=self.revision)
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseNotFound(f"lease {op.lease} has ended; {op.key!r} cannot hang on it")
        self._apply(ops)
        return Committed(succeeded=True, revision=self.revision)

    def _holds(self, guard: Guard) -> bool:
        kv = self._items.get(guard.key)
        if isinstance(guard, Created):
            return guard.create_revision == (kv.create_revision if kv else 0)
        return guard.mod_revision == (kv.mod_revision if kv else 0)

    def _apply(self, ops: Sequence[Op]) -> None:
        revision = self.revision + 1
        changes = [self._put(op, revision) if isinstance(op, Put) else self._delete(op.key, revision) for op in ops]
        self._record(tuple(change for change in changes if change))

    def _record(self, changes: tuple[Change, ...]) -> None:
        """Make one revision of `changes`; nothing to write (absent keys deleted) makes none."""
        if not changes:
            return
        self.revision += 1
        self._history.append((self.revision, changes))
        if self._keep_revisions and self.revision - self._keep_revisions > self._compacted:
            self.compact(self.revision - self._keep_revisions)
        for watcher in self._watchers.values():
            if any(change.key.startswith(watcher.prefix) for change in changes):
                watcher.first = watcher.first or self.revision
                watcher.wake.set()

    def _put(self, op: Put, revision: int) -> Change:
        old = self._items.get(op.key)
        if old:
            self._detach(old)
        created = old.create_revision if old else revision
        kv = KeyValue(op.key, op.value, created, revision, op.lease)
        self._items[op.key] = kv
        if op.lease:
            self._leases[op.lease].keys.add(op.key)
        return Change(op.key, kv, revision)

    def _delete(self, key: str, revision: int) -> Change | None:
        if key not in self._items:
            return None
        self._detach(self._items.pop(key))
        return Change(key, None, revision)

    def _detach(self, kv: KeyValue) -> None:
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(kv.key)

    def grant(self, ttl_s: int) -> int:
        """A new lease; the ids count up from 1."""
        self.expire()
        self._last_lease += 1
        self._leases[self._last_lease] = _Lease(ttl_s, self.now() + ttl_s)
        self._schedule()
        return self._last_lease

    def renew(self, lease: int) -> int:
        """Start the TTL of `lease` again, now."""
        self.expire()
        if lease not in self._leases:
            raise LeaseNotFound(f"lease {lease} has ended")
        found = self._leases[lease]
        found.expires_at = self.now() + found.ttl_s
        self._schedule()
        return found.ttl_s

    def revoke(self, lease: int) -> None:
        """End `lease` and delete its keys in one revision."""
        self.expire()
        if lease in self._leases:
            self._end_lease(lease)

    def _end_lease(self, lease: int) -> None:
        keys = sorted(self._leases.pop(lease).keys)
        self._record(tuple(change for key in keys if (change := self._delete(key, self.revision + 1))))

    def expire(self) -> None:
        """End the leases whose time has come, in order of time, then id. Called by every operation and by a timer."""
        now = self.now()
        due = sorted((lease.expires_at, key) for key, lease in self._leases.items() if lease.expires_at <= now)
        for _, lease in due:
            if lease in self._leases:  # whoever was told of the last one's end may have looked here meanwhile
                self._end_lease(lease)

    def _schedule(self) -> None:
        """See to it that a lease ends, and watchers hear of it, though nobody calls."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._leases:
            wait_s = min(lease.expires_at for lease in self._leases.values()) - self.now()
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._on_timer)

    def _on_timer(self) -> None:
        self.expire()
        self._schedule()

    def now(self) -> float:
        """The backend's time in seconds."""
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def compact(self, revision: int) -> None:
        """Forget the changes before `revision`. Raises Refused for a revision yet to come, Compacted for one gone."""
        if revision > self.revision:
            raise Refused(f"revision {revision} is in the future; the newest is {self.revision}")
        if revision <= self._compacted:
            raise Compacted(self._compacted)
        self._compacted = revision
        del self._history[: bisect.bisect_left(self._history, revision, key=lambda entry: entry[0])]

    def changes(self, prefix: str, after_revision: int) -> tuple[Change, ...]:
        """The changes under `prefix` after a revision; Compacted when some of them may be gone."""
        self.expire()
        if after_revision + 1 < self._compacted:
            raise Compacted(self._compacted)
        start = bisect.bisect_right(self._history, after_revision, key=lambda entry: entry[0])
        entries = self._history[start:]
        return tuple(change for _, made in entries for change in made if change.key.startswith(prefix))

    def remembers(self, change: Change) -> bool:
        """Whether that change is in the history, as far back as that is kept."""
        if change.revision < self._compacted:
            return True
        at = bisect.bisect_left(self._history, change.revision, key=lambda entry: entry[0])
        return at < len(self._history) and change in self._history[at][1]

    def subscribe(self, prefix: str) -> Watcher:
        """Whose event is set at every write under `prefix`, until `unsubscribe`."""
        watcher = Watcher(prefix)
        self._watchers[id(watcher)] = watcher
        return watcher

    def unsubscribe(self, watcher: Watcher) -> None:
        """Drop what `subscribe` made."""
        self._watchers.pop(id(watcher), None)

    def break_watches(self) -> None:
        """As a restart of etcd does: each looks again."""
        for watcher in self._watchers.values():
            watcher.wake.set()

    @property
    def watchers(self) -> int:
        """How many watches are open: tests see leaks here."""
        return len(self._watchers)
