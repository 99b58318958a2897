"""What is committed, as one replica sees it: typed records by name, kept up by a watch, for the API to read.

It never decides. Every record is what somebody wrote; what is derived is derived when asked for. Each change of a state
becomes an Event in a bounded history, the same whichever replica tells it.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from gpupool.store import keys
from gpupool.store.follow import follow
from gpupool.store.keys import Kind
from gpupool.store.port import Change, KeyValue, Snapshot, Store
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2

from . import states_told, wishes_told
from .core.model import Cluster
from .core.policy import Policy
from .load import load
from .view import View

_log = logging.getLogger(__name__)

EVENTS_KEPT = 10_000
FINAL = frozenset((job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED))
Ids = tuple[str, ...]
Arrival = tuple[int, str]  # the revision at which a job was written, and its id: the same order on every replica
Record = TypeVar("Record", bound=Message)

_TYPES: dict[Kind, type[Message]] = {
    Kind.SESSION: records_pb2.Session,
    Kind.INVENTORY: inventory_pb2.Inventory,
    Kind.VM: records_pb2.VmReport,
    Kind.UNIT: records_pb2.UnitReport,
    Kind.JOB_SPEC: records_pb2.JobRecord,
    Kind.JOB_CANCEL: records_pb2.CancelRecord,
    Kind.JOB_STATUS: job_pb2.JobStatus,
    Kind.ALLOCATION: records_pb2.Allocation,
    Kind.HOST: records_pb2.HostRecord,
    Kind.HOST_INTENT: records_pb2.HostIntent,
    Kind.JOB_INTENT: records_pb2.JobIntent,
    Kind.CLUSTER_INTENT: records_pb2.ClusterIntent,
    Kind.CLUSTER: records_pb2.ClusterRecord,
    Kind.FAILOVER: records_pb2.FailoverRecord,
    Kind.LEADER: records_pb2.Leader,
    Kind.QUEUE: records_pb2.QueueIntent,
    Kind.SHARES: records_pb2.Shares,
}


class Mirror:
    """See the module docstring. `wall` gives Unix time, for the events."""

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self.revision = 0
        self.history: deque[scheduler_pb2.Event] = deque(maxlen=EVENTS_KEPT)
        self.synced = asyncio.Event()
        self._store = store
        self._wall = wall
        self._records: dict[Kind, dict[Ids, Message]] = {kind: {} for kind in _TYPES}
        self._raw: dict[str, KeyValue] = {}
        self._arrivals: list[Arrival] = []
        self._listeners: list[Callable[[Kind, Ids], None]] = []
        self._event_listeners: list[Callable[[scheduler_pb2.Event], None]] = []
        self._moved = asyncio.Condition()
        self._view: View | None = None
        self.on_restored: Callable[[], None] = lambda: None  # called while what is forgotten can still be read here

    async def run(self) -> None:
        """Keep up with the store until cancelled."""
        await follow(
            self._store,
            keys.ROOT,
            on_reset=self._reset,
            on_changes=self._changes,
            on_restored=self._restored,
        )

    # Reading

    def all(self, kind: Kind, of: type[Record]) -> dict[Ids, Record]:
        """Every record of a kind, by its ids. Not to be changed."""
        assert _TYPES[kind] is of
        return self._records[kind]  # type: ignore[return-value]

    def ids(self, kind: Kind) -> list[Ids]:
        """The ids of every record of a kind."""
        return list(self._records[kind])

    def get(self, kind: Kind, of: type[Record], *ids: str) -> Record | None:
        """One record. Not to be changed."""
        return self.all(kind, of).get(ids)

    def stored(self) -> dict[str, KeyValue]:
        """All that is stored now, by key: a copy, so that it stays as of `revision`."""
        return dict(self._raw)

    def session_id(self, host: str) -> int:
        """The id of the host's present session; 0 if it has none."""
        kv = self._raw.get(keys.session(host))
        return kv.create_revision if kv is not None else 0

    def jobs(self, after: Arrival = (0, "")) -> list[str]:
        """Job ids by order of arrival, from behind `after` on."""
        return [job_id for _, job_id in self._arrivals[bisect_right(self._arrivals, after) :]]

    def arrival(self, job_id: str) -> Arrival:
        """The place of a job that is known in the order of arrival."""
        return self._raw[keys.job_spec(job_id)].create_revision, job_id

    def job(self, job_id: str) -> job_pb2.Job | None:
        """The job as the API shows it; a job that no leader has seen yet is pending."""
        record = self.get(Kind.JOB_SPEC, records_pb2.JobRecord, job_id)
        if record is None:
            return None
        status = self.get(Kind.JOB_STATUS, job_pb2.JobStatus, job_id)
        shown = job_pb2.Job(id=job_id, spec=record.spec)
        if status is not None:
            shown.status.CopyFrom(status)
        else:
            shown.status.state = job_pb2.JOB_STATE_PENDING
            shown.status.submitted_s = record.submitted_s
            shown.status.message = "submitted"
        shown.status.cancel_requested |= self.get(Kind.JOB_CANCEL, records_pb2.CancelRecord, job_id) is not None
        return shown

    def cluster(self, policy: Policy) -> Cluster:
        """The core's view of what is committed now, without finished jobs that matter to none.

        For whoever will change it; `view` is for whoever only looks.

        Costs time in proportion to the jobs that are not finished and to all hosts.
        """
        statuses = self.all(Kind.JOB_STATUS, job_pb2.JobStatus)
        over = {keys.job_status(*ids) for ids, status in statuses.items() if status.state in FINAL}
        over |= {keys.job_spec(*ids) for ids, status in statuses.items() if status.state in FINAL}
        for (job_id,), record in self.all(Kind.JOB_SPEC, records_pb2.JobRecord).items():
            if record.spec.dependencies and keys.job_spec(job_id) not in over:  # these others count, though finished
                over -= {key(d.job) for d in record.spec.dependencies for key in (keys.job_spec, keys.job_status)}
            if record.spec.array.id and keys.job_spec(job_id) not in over:
                over -= {key(f"{record.spec.array.id}-0") for key in (keys.job_spec, keys.job_status)}
        cluster = Cluster(policy=policy)
        load(cluster, (kv for key, kv in self._raw.items() if key not in over), self._wall())
        return cluster

    def view(self, policy: Policy) -> View:
        """As `cluster`, shared by all who ask at one revision, and not to be changed."""
        if self._view is None or (self._view.revision, self._view.policy) != (self.revision, policy):
            self._view = View(self.revision, policy, self.cluster(policy))
        return self._view

    async def reached(self, revision: int, timeout_s: float = 5.0) -> None:
        """Return once what was written at `revision` can be read here, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.revision >= revision)
        except TimeoutError:
            _log.warning("the mirror is at revision %d, %d was wanted", self.revision, revision)

    def listen(self, listener: Callable[[Kind, Ids], None]) -> Callable[[], None]:
        """Call `listener` for each record that changes; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def listen_events(self, listener: Callable[[scheduler_pb2.Event], None]) -> Callable[[], None]:
        """Call `listener` for each new event; returns how to stop that."""
        self._event_listeners.append(listener)
        return lambda: self._event_listeners.remove(listener)

    # Following

    def _restored(self) -> None:
        self.on_restored()

    async def _reset(self, snapshot: Snapshot) -> None:
        fresh = {kv.key for kv in snapshot.items}
        for key in [k for k in self._raw if k not in fresh]:
            self._apply(Change(key, None, snapshot.revision))
        for kv in sorted(snapshot.items, key=lambda kv: kv.create_revision):
            known = self._raw.get(kv.key)
            if known != kv:  # revisions come again in a store that was restored
                self._apply(Change(kv.key, kv, kv.mod_revision), quiet=not self.synced.is_set())
        await self._advance(snapshot.revision)
        self.synced.set()

    async def _changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._apply(change)
        await self._advance(changes[-1].revision)

    async def _advance(self, revision: int) -> None:
        async with self._moved:
            self.revision = revision
            self._moved.notify_all()

    def _apply(self, change: Change, *, quiet: bool = False) -> None:
        parsed = keys.parse(change.key)
        if parsed is None or parsed[0] not in _TYPES:
            return
        kind, ids = parsed
        before = self._records[kind].get(ids)
        try:
            after = _TYPES[kind].FromString(change.kv.value) if change.kv is not None else None
        except DecodeError as exc:
            _log.error("ignoring %s: unreadable value (%s)", change.key, exc)
            return
        old = self._raw.pop(change.key, None)
        if change.kv is None or after is None:
            self._records[kind].pop(ids, None)
        else:
            self._raw[change.key] = change.kv
            self._records[kind][ids] = after
        if kind is Kind.JOB_SPEC:
            self._note_arrival(ids[0], old, change.kv)
        if not quiet:
            for event in self._happened(kind, ids, before, after):
                event.at_s, event.revision = self._wall(), change.revision
                self.history.append(event)
                for tell in list(self._event_listeners):
                    tell(event)
        for listener in list(self._listeners):
            listener(kind, ids)

    def _happened(
        self, kind: Kind, ids: Ids, before: Message | None, after: Message | None
    ) -> Iterator[scheduler_pb2.Event]:
        yield from states_told.told(kind, ids, before, after)
        yield from wishes_told.told(ids, before, after)
        if (kind is Kind.ALLOCATION and after is None) or kind is Kind.HOST_INTENT:
            yield from self._drained(ids[0], before)

    def _drained(self, host: str, before: Message | None) -> Iterator[scheduler_pb2.Event]:
        intent = self.get(Kind.HOST_INTENT, records_pb2.HostIntent, host)
        if not _drains(intent) or _drains(before):
            return
        if not any(ids[0] == host for ids in self._records[Kind.ALLOCATION]):
            yield wishes_told.drained(host)

    def _note_arrival(self, job_id: str, old: KeyValue | None, new: KeyValue | None) -> None:
        if old is not None:
            del self._arrivals[bisect_right(self._arrivals, (old.create_revision, job_id)) - 1]
        if new is not None:
            insort(self._arrivals, (new.create_revision, job_id))


def _drains(intent: Message | None) -> bool:
    return isinstance(intent, records_pb2.HostIntent) and intent.HasField("drain") and not intent.drain.paused
