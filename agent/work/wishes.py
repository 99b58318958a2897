"""What is wanted of this host: a mirror of its allocations and of its units' intents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NoReturn

from gpupool.store import keys
from gpupool.store.follow import follow
from gpupool.store.port import Change, Snapshot, Store
from gpupool.store.shared import Shared
from gpupool.v1.records_pb2 import Allocation, ClusterIntent, UnitIntent

Reset = Callable[[Snapshot], None]
News = Callable[[Sequence[Change]], None]


class Wishes:
    """`allocations` and `intents` by name; `known` is set once the allocations have been read.

    Before that nothing may be concluded from an allocation's absence. `changed` is called after each change,
    `withdrawn` with each allocation that is no more.
    """

    def __init__(
        self, store: Store, host: str, changed: Callable[[], None], withdrawn: Callable[[Allocation], None]
    ) -> None:
        self._store = store
        self._host = host
        self._changed = changed
        self._withdrawn = withdrawn
        self.allocations: dict[str, Allocation] = {}
        self.intents: dict[str, UnitIntent] = {}
        self.known = asyncio.Event()
        self.seen: Callable[[int], object] = lambda _: None  # is told the revision of each change
        self._again = asyncio.Event()
        self._stored = Shared(lambda: store.list(keys.allocation_prefix(host)))  # VMs are often begun several at once
        self.on_restored: Callable[[], object] = lambda: None  # the store's history went back
        self.on_cluster: Callable[[ClusterIntent], object] = lambda _: None  # what is wanted of all hosts together

    def again(self) -> None:
        """Read it all anew: the store may have another history now, in which a watch could wait for ever."""
        self.known.clear()
        self._again.set()

    async def still(self, want: Allocation) -> bool:
        """Whether the allocation stands in the store at this moment, as one to run. Raises StoreError."""
        key = keys.allocation(self._host, want.id)
        stored = next((kv.value for kv in (await self._stored.ask()).items if kv.key == key), b"")
        found = Allocation.FromString(stored)
        return (found.session, found.session_nonce, found.desired) == (want.session, want.session_nonce, want.desired)

    async def follow(self) -> NoReturn:
        """Keep up, until cancelled."""
        while True:
            self._again.clear()
            tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._again.wait())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            if isinstance(results[0], Exception):
                raise results[0]

    async def _follow(self) -> None:
        followed: tuple[tuple[str, Reset, News], ...] = (
            (keys.allocation_prefix(self._host), self._reset_allocations, self._change_allocations),
            (keys.CLUSTER_INTENT, self._reset_cluster, self._change_cluster),
            (f"{keys.INTENTS}units/{self._host}/", self._reset_intents, self._change_intents),
        )
        async with asyncio.TaskGroup() as group:
            for prefix, reset, news in followed:
                group.create_task(
                    follow(self._store, prefix, on_reset=reset, on_changes=news, on_restored=self._restored)
                )

    def _restored(self) -> None:
        self.on_restored()

    def _reset_allocations(self, snapshot: Snapshot) -> None:
        before = self.allocations
        self.allocations = {_name(kv.key): Allocation.FromString(kv.value) for kv in snapshot.items}
        for name in before.keys() - self.allocations.keys():
            self._withdrawn(before[name])
        self.known.set()
        self._changed()

    def _change_allocations(self, changes: Sequence[Change]) -> None:
        self.seen(changes[-1].revision)
        for change in changes:
            if change.kv is not None:
                self.allocations[_name(change.key)] = Allocation.FromString(change.kv.value)
            elif (gone := self.allocations.pop(_name(change.key), None)) is not None:
                self._withdrawn(gone)
        self._changed()

    def _reset_intents(self, snapshot: Snapshot) -> None:
        self.intents = {_name(kv.key): UnitIntent.FromString(kv.value) for kv in snapshot.items}
        self._changed()

    def _change_intents(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.kv is None:
                self.intents.pop(_name(change.key), None)
            else:
                self.intents[_name(change.key)] = UnitIntent.FromString(change.kv.value)
        self._changed()

    def _reset_cluster(self, snapshot: Snapshot) -> None:
        value = next((kv.value for kv in snapshot.items if kv.key == keys.CLUSTER_INTENT), b"")
        self.on_cluster(ClusterIntent.FromString(value))

    def _change_cluster(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.key == keys.CLUSTER_INTENT:
                self.on_cluster(ClusterIntent.FromString(change.kv.value if change.kv else b""))


def _name(key: str) -> str:
    return key.rpartition("/")[2]
