"""What is committed, as one replica sees it: records by name, kept up by a watch, for the API and the leader to read.

It never decides. Every record is what somebody wrote; what is derived is derived when asked for. Each change of a state
becomes an Event in a bounded history, the same whichever replica tells it. The leader of this replica takes everything
over from here at one moment, and hears each change since then, in order and once (`feed`): nothing is read twice.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.message import DecodeError, Message

from gpupool.store import keys
from gpupool.store.follow import follow
from gpupool.store.keys import Kind
from gpupool.store.port import Change, KeyValue, Snapshot, Store
from gpupool.store.types import TYPES
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

from .. import heap
from ..api.view import View
from ..core.state.cluster import Cluster
from ..core.state.policy import Policy
from ..load import in_turns, loading
from . import wishes_told
from .feed import Feed
from .records import Ids, News, Record, Records, news_of, read
from .told import EVENTS_KEPT, TELLING, Changed, Told, dated

__all__ = ["EVENTS_KEPT", "FINAL", "Arrival", "Mirror"]

_log = logging.getLogger(__name__)

TURN = 200  # records between two looks at what else there is to do
FILLED = 1000  # the same, where nothing is known yet
FINAL = frozenset((job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED))
Arrival = tuple[int, str]  # the revision at which a job was written, and its id: the same order on every replica
Listener = Callable[[Kind, Ids], None]


class Mirror:
    """See the module docstring. `wall` gives Unix time, for the events."""

    def __init__(self, store: Store, wall: Callable[[], float]) -> None:
        self.revision = 0
        self.synced = asyncio.Event()
        self._store = store
        self._wall = wall
        self._records = Records()
        self._arrivals: list[Arrival] = []
        self._listeners: dict[Kind, list[Listener]] = {kind: [] for kind in TYPES}
        self._told = Told()
        self._moved = asyncio.Condition()
        self._whole = False  # not while everything is read, anew or for the first time
        self._feeds: list[Feed] = []
        self._view: View | None = None
        self._viewing = asyncio.Lock()
        self.on_restored: Callable[[], None] = lambda: None  # called while what is forgotten can still be read here

    async def run(self) -> None:
        """Keep up with the store until cancelled."""
        await follow(
            self._store,
            keys.ROOT,
            on_reset=self._reset,
            on_changes=self._changes,
            on_restored=self._restored,
            on_page=self._page,
        )

    # Reading

    @property
    def history(self) -> deque[scheduler_pb2.Event]:
        """The newest events, the oldest first."""
        return self._told.history

    def all(self, kind: Kind, of: type[Record]) -> dict[Ids, Record]:
        """Every record of a kind, by its ids: a copy, which takes time in proportion to them."""
        assert TYPES[kind] is of
        return dict(self._records.all(kind, of))

    def of_host(self, kind: Kind, of: type[Record], host: str) -> dict[Ids, Record]:
        """Every unit, or allocation, of a host, by its ids."""
        return self._records.of_host(kind, of, host)

    def ids(self, kind: Kind) -> list[Ids]:
        """The ids of every record of a kind."""
        return self._records.ids(kind)

    def get(self, kind: Kind, of: type[Record], *ids: str) -> Record | None:
        """One record: a copy."""
        assert TYPES[kind] is of
        return self._records.get(kind, of, ids)

    def value(self, kind: Kind, *ids: str) -> bytes | None:
        """One record as it is stored."""
        kv = self._records.kv(kind, ids)
        return kv.value if kv is not None else None

    def size(self) -> int:
        """How many records there are."""
        return sum(map(self._records.count, TYPES))

    def has(self, kind: Kind, *ids: str) -> bool:
        """Whether there is such a record."""
        return self._records.kv(kind, ids) is not None

    def stored(self) -> dict[str, KeyValue]:
        """All that is stored now, by key: a copy, so that it stays as of `revision`."""
        return {kv.key: kv for kv in self._records.kvs()}

    def session_id(self, host: str) -> int:
        """The id of the host's present session; 0 if it has none."""
        kv = self._records.kv(Kind.SESSION, (host,))
        return kv.create_revision if kv is not None else 0

    def jobs(self, after: Arrival = (0, "")) -> list[str]:
        """Job ids by order of arrival, from behind `after` on."""
        return [job_id for _, job_id in self._arrivals[bisect_right(self._arrivals, after) :]]

    def arrival(self, job_id: str) -> Arrival:
        """The place of a job that is known in the order of arrival."""
        kv = self._records.kv(Kind.JOB_SPEC, (job_id,))
        assert kv is not None
        return kv.create_revision, job_id

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
        shown.status.cancel_requested |= self.has(Kind.JOB_CANCEL, job_id)
        return shown

    def state_of(self, job_id: str) -> job_pb2.JobState.ValueType:
        """The state of a job that is known."""
        value = self.value(Kind.JOB_STATUS, job_id)
        return _state(value) if value is not None else job_pb2.JOB_STATE_PENDING

    def cluster(self, policy: Policy) -> Cluster:
        """The core's view of what is committed now, without finished jobs that matter to none.

        For whoever will change it; `view` is for whoever only looks.

        Costs time in proportion to the jobs that are not finished and to all hosts, in which nothing else runs.
        """
        cluster = Cluster(policy=policy)
        deque(self._loading(cluster), maxlen=0)
        return cluster

    async def cluster_in_turns(self, policy: Policy) -> Cluster:
        """As `cluster`, letting others run in between: with 10,000 hosts it takes many seconds, in which a leader that
        is asked for it must renew its lease, and decide.
        """
        cluster = Cluster(policy=policy)
        await in_turns(self._loading(cluster))
        return cluster

    def _loading(self, cluster: Cluster) -> Iterator[None]:
        """Fill it with what is stored now; whoever draws from this may pause in between."""
        stored = self._records.stored()
        over = {ids for ids, kv in stored[Kind.JOB_STATUS] if _state(kv.value) in FINAL}
        gangs: dict[str, int] = {}  # that are not finished, and how many members they have
        for ids, kv in stored[Kind.JOB_SPEC]:
            record = read(Kind.JOB_SPEC, kv) if ids not in over else None
            if isinstance(record, records_pb2.JobRecord):  # these others count, though finished
                over -= {(d.job,) for d in record.spec.dependencies}
                over -= {(f"{record.spec.array.id}-0",)} if record.spec.array.id else set()
                if (gang := record.spec.gang).id:
                    gangs[gang.id] = gang.count
            yield
        over -= {(f"{gang}-{n}",) for gang, count in gangs.items() for n in range(count)}  # all of a gang counts
        for kind in (Kind.JOB_SPEC, Kind.JOB_STATUS):
            stored[kind] = [item for item in stored[kind] if item[0] not in over]
        yield from loading(cluster, stored, self._wall())

    async def view_in_turns(self, policy: Policy) -> View:
        """As `view`, of the present revision or a later one, letting others run in between."""
        wanted = self.revision
        async with self._viewing:  # who asks meanwhile has the same one
            if self._view is None or self._view.policy != policy or self._view.revision < wanted:
                revision = self.revision
                self._view = View(revision, policy, await self.cluster_in_turns(policy))
            return self._view

    def view(self, policy: Policy) -> View:
        """As `cluster`, shared by all who ask at one revision, and not to be changed."""
        if self._view is None or (self._view.revision, self._view.policy) != (self.revision, policy):
            self._view = View(self.revision, policy, self.cluster(policy))
        return self._view

    async def reached(self, revision: int, timeout_s: float = 5.0) -> None:
        """Return once what was written at `revision` can be read here, or after `timeout_s`."""
        if self.revision >= revision:
            return
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.revision >= revision)
        except TimeoutError:
            _log.warning("the mirror is at revision %d, %d was wanted", self.revision, revision)

    async def feed(self, revision: int, hear: Callable[[Sequence[News]], None]) -> Feed:
        """Everything, as it is at `revision` or later, and from then on a call of `hear` for all that changes."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._whole and self.revision >= revision)
            feed = Feed(self._records.stored(), self.revision, hear, self._feeds)
            self._feeds.append(feed)
            return feed

    def listen(self, listener: Listener, *kinds: Kind) -> Callable[[], None]:
        """Call `listener` for each record, of these kinds if any are given, that changes; returns how to stop that."""
        for kind in kinds or TYPES:
            self._listeners[kind].append(listener)

        def stop() -> None:
            for kind in kinds or TYPES:
                self._listeners[kind].remove(listener)

        return stop

    @property
    def listening(self) -> tuple[int, int]:
        """How many want to hear of records, counted once for each kind, and of events."""
        return sum(map(len, self._listeners.values())), self._told.listening

    def listen_events(self, listener: Callable[[scheduler_pb2.Event], None]) -> Callable[[], None]:
        """Call `listener` for each new event; returns how to stop that."""
        return self._told.listen(listener)

    # Following

    def _restored(self) -> None:
        for feed in list(self._feeds):
            feed.end(forgotten=True)
        self.on_restored()

    async def _reset(self, snapshot: Snapshot) -> None:
        """Everything is read, for the first time or anew. In a large cluster that takes seconds: others run between."""
        for feed in list(self._feeds):
            feed.end()
        self._whole, self._view = False, None
        with heap.still():
            await (self._renew(snapshot) if self.synced.is_set() else self._arrive())
        self._whole = True
        await self._advance(snapshot.revision)
        self.synced.set()

    async def _page(self, before: int, items: Sequence[KeyValue]) -> None:
        """A part of what there is, while the store makes the next: taken in at once, if nothing is known yet."""
        if self.synced.is_set():
            return
        if not before:
            self._records = Records()
        for begin in range(0, len(items), FILLED):
            await asyncio.sleep(0)
            minded = [kind for kind, listeners in self._listeners.items() if listeners]
            for kind, ids, _ in self._records.fill(items[begin : begin + FILLED], minded):
                for listener in self._listeners[kind]:
                    listener(kind, ids)

    async def _arrive(self) -> None:
        """For the first time, when all pages were told of: in which order jobs came. What was there is no news."""
        arrived: dict[int, list[str]] = {}
        for number, (ids, kv) in enumerate(self._records.items(Kind.JOB_SPEC)):
            if number % FILLED == 0:
                await asyncio.sleep(0)
            arrived.setdefault(kv.create_revision, []).append(ids[0])
        self._arrivals = []
        for number, revision in enumerate(sorted(arrived)):
            if number % TURN == 0:
                await asyncio.sleep(0)
            self._arrivals += [(revision, job) for job in sorted(arrived[revision])]

    async def _renew(self, snapshot: Snapshot) -> None:
        """What is not as it was known here. Revisions come again in a store that was restored."""
        there: set[str] = set()
        changed: list[KeyValue] = []
        for number, kv in enumerate(snapshot.items):
            if number % TURN == 0:
                await asyncio.sleep(0)
            there.add(kv.key)
            parsed = keys.parse(kv.key)
            if parsed is not None and parsed[0] in TYPES and self._records.kv(*parsed) != kv:
                changed.append(kv)
        gone = [Change(kv.key, None, snapshot.revision) for kv in self._records.kvs() if kv.key not in there]
        changed.sort(key=lambda kv: kv.create_revision)
        for number, change in enumerate([*gone, *(Change(kv.key, kv, kv.mod_revision) for kv in changed)]):
            if number % TURN == 0:
                await asyncio.sleep(0)
            self._apply(change)

    async def _changes(self, changes: Sequence[Change]) -> None:
        news = [told for change in changes if (told := self._apply(change)) is not None]
        self.revision = changes[-1].revision  # at once: a feed must not begin with what it is told of again
        for feed in list(self._feeds):
            feed.tell(news)
        await self._advance(changes[-1].revision)

    async def _advance(self, revision: int) -> None:
        async with self._moved:
            self.revision = revision
            self._moved.notify_all()

    def _apply(self, change: Change) -> News | None:
        """Take one change in; None: it is none of ours."""
        news = news_of(change)
        if news is None or news.unreadable:
            return news
        kind, ids, kv, revision, _ = news
        before = self._records.put(kind, ids, kv)
        if kind is Kind.JOB_SPEC:
            self._note_arrival(ids[0], before, kv)
        if kind in TELLING:
            self._told.changed(Changed(kind, ids, before, kv, self._wall(), revision))
        if (kind is Kind.ALLOCATION and kv is None) or kind is Kind.HOST_INTENT:
            self._told.happened(dated(self._drained(ids[0], kind, before), self._wall(), revision))
        for listener in list(self._listeners[kind]):
            listener(kind, ids)
        return news

    def _drained(self, host: str, kind: Kind, before: KeyValue | None) -> Iterator[scheduler_pb2.Event]:
        intent = self.get(Kind.HOST_INTENT, records_pb2.HostIntent, host)
        if not _drains(intent) or (kind is Kind.HOST_INTENT and before is not None and _drains(read(kind, before))):
            return
        if not self._records.any_of_host(Kind.ALLOCATION, host):
            yield wishes_told.drained(host)

    def _note_arrival(self, job_id: str, old: KeyValue | None, new: KeyValue | None) -> None:
        if old is not None:
            del self._arrivals[bisect_right(self._arrivals, (old.create_revision, job_id)) - 1]
        if new is not None:
            insort(self._arrivals, (new.create_revision, job_id))


def _drains(intent: Message | None) -> bool:
    return isinstance(intent, records_pb2.HostIntent) and intent.HasField("drain") and not intent.drain.paused


def _state(status: bytes) -> job_pb2.JobState.ValueType:
    """The state in a stored JobStatus. It is its first field: to read all of a hundred thousand takes a second."""
    if len(status) > 1 and status[0] == _STATE_TAG and status[1] < _ONE_BYTE:
        return status[1]  # type: ignore[return-value]
    try:
        return job_pb2.JobStatus.FromString(status).state
    except DecodeError:
        return job_pb2.JOB_STATE_UNSPECIFIED


_STATE_TAG, _ONE_BYTE = 0x08, 0x80  # field 1, a varint; varints below this have one byte
