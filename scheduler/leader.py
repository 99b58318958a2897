"""The decision loop: drain facts, step, place, commit, act. Only the leading replica runs it.

It writes nothing that is not guarded by its term, and acts on nothing that is not committed. When the fate of a write
is unknown it throws its state away and reads everything again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from gpupool.store import keys
from gpupool.store.port import Created, Delete, Guard, Op, Put, Store, StoreError

from . import heap
from .codec import encode
from .codec.decode import FACTS, fact_of
from .core.failover.drain import drain
from .core.failover.power import PowerOff, next_power_s
from .core.gangs import together
from .core.invariants import checking
from .core.place import Placer, retract
from .core.queueing.preempt import Preempter
from .core.state.cluster import Cluster, Dirty
from .core.state.hosts import Allocation
from .core.state.policy import Policy
from .core.step import step
from .core.todo import EvidenceWanted, todo
from .election import Term, TermLostError
from .fencing.acting import Acting
from .fencing.port import FenceDevice
from .history import History
from .load import in_turns, load_in_turns
from .mirror.feed import Feed
from .mirror.mirror import Mirror
from .mirror.records import News
from .turns import in_pauses

_log = logging.getLogger(__name__)

IDLE_S = 5.0  # how often to look when nothing happens
ALARM_EVERY_S = 60.0
CONFLICT_S = 0.05
SENDING = 4  # turns of the event loop until a write is on its way
CHECK_LIMIT = 500  # up to this many jobs, every invariant is checked before every commit
COMMIT_BYTES = 1024 * 1024  # of values in one transaction: etcd takes 1.5 MiB by default
SPECS = 1000  # that are noted between two looks at what else there is to do
PLACED, AT_ONCE = 1000, 100  # jobs that are placed in one turn, and between two looks at what else there is to do


class InvariantBrokenError(Exception):
    """The core is about to commit nonsense; nothing is committed."""


class _Part(IntEnum):
    """What is written of a job, in this order."""

    RETIRED = 0
    JOB = 1
    ALLOCATION = 2
    DELETED = 3


@dataclass(slots=True)
class _Group:
    """Writes that must happen together, and the guards that are theirs alone."""

    ops: list[Op] = field(default_factory=list)
    guards: list[Guard] = field(default_factory=list)
    created: list[Allocation] = field(default_factory=list)
    deleted: dict[str, Allocation] = field(default_factory=dict)
    size: int = 0  # bytes of its values

    def put(self, key: str, value: bytes) -> Self:
        """Write this there too."""
        self.ops.append(Put(key, value))
        self.size += len(value)
        return self


class Leader:
    """One term's decision loop over one store."""

    def __init__(
        self,
        store: Store,
        term: Term,
        *,
        wall: Callable[[], float],
        policy: Policy,
        on_loaded: Callable[[], None] = lambda: None,
        power: Mapping[str, FenceDevice] | None = None,
        seen: int = 0,  # a revision of the store that was seen before the term began
        mirror: Mirror | None = None,  # of this replica; None: it has one of its own
    ) -> None:
        self.cluster = Cluster(policy=policy)
        self._store = store
        self._term = term
        self._wall = wall
        self._on_loaded = on_loaded
        self._placer = Placer()
        self._preempter = Preempter()
        self._mirror = mirror if mirror is not None else Mirror(store, wall)
        self._mirrors = mirror is None
        self._specs: dict[str, bytes] = {}  # job records as they are stored
        self._inbox: list[Sequence[News]] = []
        self._news = asyncio.Event()
        self._alarmed: dict[str, float] = {}
        self._more = False  # as many were placed in this turn as may be, so others may be in the next
        self._history = History(seen)
        self._power = Acting(power or {}, why_not=self._why_not_off, wall=wall, news=self._news)

    async def run(self) -> None:
        """Lead until cancelled. Raises StoreError or TermLostError when this state can no longer be trusted."""
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._mirrors:
                    tasks.create_task(self._mirror.run(), name="leader: mirror")
                with closing(await self._mirror.feed(self._term.revision, self._hear)) as feed:
                    tasks.create_task(feed.ended(), name="leader: feed")
                    await self._load(feed)
                    await self._decide()
        except* (StoreError, TermLostError) as errors:
            raise errors.exceptions[0] from None
        finally:
            await self._power.close()
            # At once: it is large, and this object is in cycles, which nobody collects in a large cluster (heap.py).
            self.cluster, self._placer, self._specs = Cluster(policy=self.cluster.policy), Placer(), {}

    async def _load(self, feed: Feed) -> None:
        """Everything, as this replica's mirror has it: as of this term's begin or later, so nobody else has decided."""
        self._history.seen(feed.revision)
        with heap.still():
            stored = feed.take()
            for number, (ids, kv) in enumerate(stored.get(keys.Kind.JOB_SPEC, ())):
                self._specs[ids[0]] = kv.value
                if number % SPECS == 0:
                    await asyncio.sleep(0)
            await load_in_turns(self.cluster, stored, self._wall())
            await in_turns(self._placer.begin(self.cluster))
        self._on_loaded()
        counts = len(self.cluster.hosts), len(self.cluster.jobs)
        _log.info("leading from revision %d: %d hosts, %d jobs", feed.revision, *counts)

    def _hear(self, news: Sequence[News]) -> None:
        self._inbox.append(news)
        self._news.set()

    async def _decide(self) -> None:
        """The loop of design section 4."""
        while True:
            self._news.clear()
            await self._drain()
            now = self._wall()
            await self._place(now)
            await asyncio.sleep(0)  # after much work the lease may be due; nothing else touches the cluster
            drain(self.cluster, self._placer, now)
            await in_pauses(self._preempter.preempting(self.cluster, now))
            together.look(self.cluster, now)
            self._log_transitions()
            await self._commit(now)
            self._act(now)
            if not self.cluster.dirty:
                await self._sleep(now)

    async def _place(self, now: float) -> None:
        """Up to PLACED jobs, a few at a time: others run in between, and nothing that they do reaches the cluster."""
        self._more = False
        for _ in range(PLACED // AT_ONCE):
            if await in_pauses(self._placer.placing(self.cluster, now, AT_ONCE)) < AT_ONCE:
                return
            await asyncio.sleep(0)
        self._more = True

    async def _drain(self) -> None:
        inbox, self._inbox = self._inbox, []
        now = self._wall()
        for told in inbox:
            await asyncio.sleep(0)
            for news in told:
                self._still_mine(news)
                if news.kind not in FACTS or news.unreadable:  # most are what this leader has written itself
                    continue
                event = fact_of(news.kind, news.ids, news.kv, news.record)
                if event is None:
                    continue
                if news.kind is keys.Kind.JOB_SPEC and news.kv is not None:
                    self._specs[news.ids[0]] = news.kv.value
                step(self.cluster, event, now)
        for result in self._power.take():
            step(self.cluster, result, now)

    def _still_mine(self, news: News) -> None:
        """A leader that has nothing to write must hear of its end too. Raises TermLostError."""
        if news.kind is not keys.Kind.LEADER:
            return
        if news.kv is None or news.kv.create_revision != self._term.revision:
            raise TermLostError("the leader key of this term is gone")

    async def _sleep(self, now: float) -> None:
        brake_s = self.cluster.brake.until_s if self.cluster.brake and self.cluster.brake.until_s else None
        dues = (
            self.cluster.pending.next_due_s(),
            self.cluster.books.timers.next_s(),
            self._preempter.due_s,
            self._placer.due_s,
            next_power_s(self.cluster, now),
            brake_s,
        )
        timeout_s = min((IDLE_S, *(max(0.0, due - now) for due in dues if due is not None)))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()

    def _log_transitions(self) -> None:
        """All of a turn at once, a line each: a record for each job takes longer than its placement."""
        told = self.cluster.take_log()
        loud = [transition for transition in told if transition.kind != "allocation"]
        if loud and _log.isEnabledFor(logging.INFO):
            _log.info("%s", "\n".join(map(str, loud)))
        if _log.isEnabledFor(logging.DEBUG):  # of allocations there are 100,000 when a new leader begins
            for transition in told:
                if transition.kind == "allocation":
                    _log.debug("%s", transition)

    def _act(self, now: float) -> None:
        owed = todo(self.cluster, now)
        self._power.begin([effect for effect in owed if isinstance(effect, PowerOff)])
        alarms = [effect for effect in owed if isinstance(effect, EvidenceWanted)]
        for wanted in alarms:
            if now - self._alarmed.get(wanted.host, -ALARM_EVERY_S) >= ALARM_EVERY_S:
                self._alarmed[wanted.host] = now
                _log.error(
                    "host %s: no evidence that the VMs of session %d are dead; %d jobs wait. %sLook at the host, then: "
                    "gpupool confirm-dead %s --reason ...",
                    wanted.host, wanted.session, len(wanted.jobs), wanted.power and f"Power fencing: {wanted.power}. ",
                    wanted.host,
                )  # fmt: skip
        self._alarmed = {w.host: self._alarmed[w.host] for w in alarms}

    async def _why_not_off(self, effect: PowerOff) -> str:
        """Why this host must not be switched off after all, by what the store says at this moment; "": it may."""
        try:
            await self._still_leading()
            session = await self._store.get(keys.session(effect.host))
        except (StoreError, TermLostError) as exc:
            return str(exc)
        host = self.cluster.hosts[effect.host]
        known = host.fact.session if host.fact is not None else 0
        if (session.create_revision if session is not None else 0) != known:
            return "news of its session is on the way"
        return "" if effect in todo(self.cluster, self._wall()) else "it is no longer to be switched off"

    # Committing

    async def _commit(self, now: float) -> None:
        """Write what changed: jobs with their allocations, then hosts, so that a half-done fence is found again."""
        if not self.cluster.dirty:
            return
        if len(self.cluster.jobs) <= CHECK_LIMIT and (broken := await in_pauses(checking(self.cluster))):
            raise InvariantBrokenError("; ".join(broken))
        dirty = self.cluster.take_dirty()
        if self._more:  # who waits for the next turn only is written with what that decides
            fresh = {job_id for job_id in dirty.jobs if (job := self.cluster.jobs.get(job_id)) and job.as_submitted}
            dirty.jobs -= fresh
            self.cluster.dirty.jobs |= fresh
        await self._write_all(self._batches(self._job_groups(dirty)), now)
        await self._write_all(self._batches(self._host_groups(dirty)), now)

    async def _write_all(self, batches: Iterator[list[_Group]], now: float) -> None:
        """One after the other, as the last write is a guard of the next. While one is under way, the next is encoded.

        That may be retracted meanwhile: a group holds all that a retraction of its own changes, and of no other group.
        """
        batch = next(batches, None)
        while batch is not None:
            writing = asyncio.create_task(self._write(batch, now), name="leader: write")
            try:
                for _ in range(SENDING):
                    await asyncio.sleep(0)
                batch = next(batches, None)
                await writing
            finally:
                writing.cancel()
                await asyncio.wait({writing})  # none is left behind

    def _job_groups(self, dirty: Dirty) -> Iterator[_Group]:
        """By job, or by gang where it starts as one; each is made when it is asked for, as all take long to encode."""
        together_with = together.as_one(self.cluster, dirty)
        wanted: dict[str, list[tuple[_Part, str]]] = {}
        for job_id in dirty.jobs | dirty.retired:
            name = job_id if job_id in dirty.retired else together_with.get(job_id, job_id)
            part = _Part.RETIRED if job_id in dirty.retired else _Part.JOB
            wanted.setdefault(name, []).append((part, job_id))
        for allocation_id in dirty.allocations:
            allocation = self.cluster.allocations.get(allocation_id)
            if allocation is not None:  # None: made and ended before it was ever written
                name = together_with.get(allocation.job, allocation.job)
                name = name if allocation_id in dirty.created else allocation.job
                wanted.setdefault(name, []).append((_Part.ALLOCATION, allocation_id))
        for allocation_id, gone in dirty.deleted.items():
            wanted.setdefault(gone.job, []).append((_Part.DELETED, allocation_id))
        for name in sorted(wanted):
            group = _Group()
            for part, subject in sorted(wanted[name]):
                self._write_into(group, part, subject, dirty)
            yield group

    def _write_into(self, group: _Group, part: _Part, subject: str, dirty: Dirty) -> None:
        if part is _Part.RETIRED:
            self._specs.pop(subject, None)
            group.ops += [Delete(key) for key in keys.of_job(subject)]
        elif part is _Part.JOB:
            group.put(keys.job_status(subject), encode.status(self.cluster.jobs[subject]).SerializeToString())
        elif part is _Part.DELETED:
            group.ops.append(Delete(keys.allocation(dirty.deleted[subject].host, subject)))
            group.deleted[subject] = dirty.deleted[subject]
        elif (allocation := self.cluster.allocations.get(subject)) is not None:
            value = encode.allocation(allocation, self.cluster.hosts[allocation.host], self._specs[allocation.job])
            group.put(keys.allocation(allocation.host, subject), value)
            if subject in dirty.created:
                group.guards.append(Created(keys.session(allocation.host), allocation.session))
                group.created.append(allocation)

    def _host_groups(self, dirty: Dirty) -> list[_Group]:
        hosts = [self.cluster.hosts[name] for name in sorted(dirty.hosts)]
        groups: list[_Group] = []
        if dirty.cluster:  # first: whoever finds hosts lost on record must find the brake that this put on
            groups.append(_Group().put(keys.CLUSTER, encode.cluster_record(self.cluster).SerializeToString()))
        groups += [_Group().put(keys.host(h.name), encode.host_record(h).SerializeToString()) for h in hosts]
        if dirty.shares:
            groups.append(_Group().put(keys.SHARES, encode.shares(self.cluster).SerializeToString(deterministic=True)))
        for host, session in sorted(dirty.failovers):
            key, found = keys.failover(host, session), self.cluster.failovers.get((host, session))
            value = encode.failover(found).SerializeToString() if found else None
            groups.append(_Group().put(key, value) if value is not None else _Group([Delete(key)]))
        return groups

    def _batches(self, groups: Iterable[_Group]) -> Iterator[list[_Group]]:
        """Pack groups into transactions as large as the store takes."""
        batch: list[_Group] = []
        ops = guards = size = 0
        for group in groups:
            ops, guards, size = ops + len(group.ops), guards + len(group.guards), size + group.size
            if batch and (max(ops, guards + 2) > self._store.max_ops or size > COMMIT_BYTES):
                yield batch
                batch = []
                ops, guards, size = len(group.ops), len(group.guards), group.size
            batch.append(group)
        if batch:
            yield batch

    async def _write(self, batch: list[_Group], now: float) -> None:
        if await self._try(batch):
            return
        await self._still_known()
        for group in batch:  # one of the guards failed: find out which
            if await self._try([group]):
                continue
            await self._still_known()
            self.cluster.dirty.deleted.update(group.deleted)
            for allocation in group.created:
                why = f"session {allocation.session} of {allocation.host} ended"
                retract(self.cluster, allocation, now, why if len(group.created) == 1 else "a host of its gang ended")
            await asyncio.sleep(CONFLICT_S)  # the news of that session is on its way

    async def _try(self, batch: list[_Group]) -> bool:
        guards = dict.fromkeys(guard for group in batch for guard in group.guards)
        ops = [op for group in batch for op in group.ops]
        done = await self._store.commit([self._term.guard, *self._history.guards(), *guards], ops)
        self._history.wrote(ops, done)
        return done.succeeded

    async def _still_leading(self) -> None:
        current = await self._store.get(keys.LEADER)
        if current is None or current.create_revision != self._term.revision:
            raise TermLostError("another replica leads")

    async def _still_known(self) -> None:
        """A guard failed: raise TermLostError or Restored, unless it was one of its own."""
        await self._still_leading()
        await self._history.check(self._store)
