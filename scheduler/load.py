"""Rebuilding the cluster from everything that is stored: what every new leader begins with.

It must conclude nothing that a leader who saw it all happen would not have concluded, and touch nothing that it cannot
read.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress

from gpupool.store.keys import Kind
from gpupool.store.port import KeyValue, StoreError
from gpupool.v1 import brief_pb2, job_pb2, records_pb2

from .codec.decode import UNREADABLE, fact_of, failover_of, last_word, restore_cluster, restore_host, restore_shares
from .codec.decode_hosts import read_allocation
from .codec.decode_jobs import read_job, restore_status
from .codec.sound import contradiction, note_attempt
from .core.failover.ahead import bring_back
from .core.failover.brake import consider
from .core.failover.fence import intent_noted, lost_unseen, unwatched
from .core.state import events
from .core.state.books import Claim
from .core.state.cluster import Cluster
from .core.state.tables import JobState
from .core.step import step
from .mirror.records import Ids, Stored, by_kind

_log = logging.getLogger(__name__)

# Records between two looks at what else there is to do. An inventory takes as long as ten of others. To renew a lease
# takes several looks, and on a machine that others load each lasts many times the CPU time that these records take.
TURN = 50


class UnreadableDecisionError(StoreError):
    """A record that a leader wrote cannot be read, and without it nobody can say what is taken and what may run."""


# Facts in the order in which they can be told to a restored cluster: what others refer to comes first. What became of
# VMs comes before the inventory, which counts the hugepages that are left beside theirs. An attempt's end comes before
# the loss of its session, as it did in life; sessions before intents, as what an operator vouched for is weighed with
# them.
_ORDER = (
    Kind.QUEUE,
    Kind.JOB_SPEC,
    Kind.UNIT,
    Kind.JOB_CANCEL,
    Kind.VM,
    Kind.INVENTORY,
    Kind.SESSION,
    Kind.HOST_INTENT,
    Kind.JOB_INTENT,
)


async def load_in_turns(cluster: Cluster, items: Iterable[KeyValue] | Stored, now: float) -> None:
    """As `load`, letting others run in between: a leader must renew its lease while it reads a large cluster."""
    await in_turns(loading(cluster, items, now))


async def in_turns(work: Iterator[None]) -> None:
    """Do it, letting others run in between."""
    for done, _ in enumerate(work):
        if done % TURN == 0:
            await asyncio.sleep(0)


def load(cluster: Cluster, items: Iterable[KeyValue] | Stored, now: float) -> dict[str, str]:
    """Rebuild a fresh `cluster` from everything that is stored: first what the leader decided, then the facts.

    Raises UnreadableDecisionError for a host or an allocation that cannot be read. A job of which that is true, or
    whose record contradicts itself, is left alone: neither started again nor given up. Returns these, with what is
    wrong.
    """
    aside: dict[str, str] = {}
    deque(loading(cluster, items, now, aside), maxlen=0)
    return aside


def loading(
    cluster: Cluster, items: Iterable[KeyValue] | Stored, now: float, aside: dict[str, str] | None = None
) -> Iterator[None]:
    """As `load`, and yields after each record. `aside` is told which jobs are left alone."""
    stored = items if isinstance(items, dict) else by_kind(items)
    _know_intents(cluster, stored)
    fresh = yield from _load_decisions(cluster, stored, {} if aside is None else aside)
    bring_back(cluster, now)
    words = {ids[0]: last_word(kv) for ids, kv in stored.pop(Kind.GUARD, ())}
    for ids, kv in stored.get(Kind.SESSION, ()):
        host = cluster.hosts.get(ids[0])
        if host is not None and 0 != host.session != kv.create_revision:  # followed by another while nobody led
            unwatched(cluster, host, words.get(host.name))
    stored[Kind.JOB_SPEC] = fresh
    for kind in _ORDER:
        for ids, kv in stored.pop(kind, ()):
            event = fact_of(kind, ids, kv)
            if event is not None:
                step(cluster, event, now)
            yield
    for name in sorted(cluster.hosts):  # sessions that ended while nobody led
        host = cluster.hosts[name]
        if host.fact is None and host.session:
            lost_unseen(cluster, host, words.get(name), now)
            yield
    intent_noted(cluster)
    if cluster.brake is None:  # it may have been armed again, with much still lost, while nobody led
        consider(cluster, now)


def _know_intents(cluster: Cluster, stored: Stored) -> None:
    """What operators want, before anything is judged by it; nothing follows from it before the facts are known."""
    for kind in (Kind.CLUSTER_INTENT, Kind.HOST_INTENT):
        for ids, kv in stored.get(kind, ()):
            event = fact_of(kind, ids, kv)
            if isinstance(event, events.ClusterIntentChanged):
                cluster.intent = event.intent
            elif isinstance(event, events.HostIntentChanged):
                cluster.host(event.host).intent = event.intent


def _load_decisions(
    cluster: Cluster, stored: Stored, aside: dict[str, str]
) -> Generator[None, None, list[tuple[Ids, KeyValue]]]:
    """Restore hosts, jobs and allocations; returns the specs of jobs no leader has seen. `aside`: as above."""
    for ids, kv in stored.pop(Kind.HOST, ()):
        with _decision(kv.key):
            host = cluster.host(ids[0])
            restore_host(host, records_pb2.HostRecord.FromString(kv.value))
            cluster.note_alive(host)
            if host.lost_s:
                cluster.lately.add(host.name)
        yield
    for _, kv in stored.pop(Kind.CLUSTER, ()):
        with _decision(kv.key):
            restore_cluster(cluster, records_pb2.ClusterRecord.FromString(kv.value))
    for _, kv in stored.pop(Kind.SHARES, ()):
        with suppress(*UNREADABLE):  # they only order the queue
            restore_shares(cluster, records_pb2.Shares.FromString(kv.value))
    for _, kv in stored.pop(Kind.FAILOVER, ()):
        with _decision(kv.key):
            found = failover_of(records_pb2.FailoverRecord.FromString(kv.value))
            cluster.failovers[found.host, found.fence.session] = found
    specs: dict[Ids, KeyValue] = {}
    for ids, kv in stored.pop(Kind.JOB_SPEC, ()):
        specs[ids] = kv
        if len(specs) % TURN == 0:  # seldom: it is done at once
            yield
    attempts: dict[str, int] = {}  # the last that an allocation is of, by job
    for number, (ids, _) in enumerate(stored.get(Kind.ALLOCATION, ())):
        note_attempt(ids[1], attempts)
        if number % TURN == 0:
            yield
    for ids, kv in stored.pop(Kind.JOB_STATUS, ()):
        try:
            _load_job(cluster, ids[0], specs.pop(ids, None), kv, attempts.get(ids[0], 0))
        except UNREADABLE as exc:
            aside[ids[0]] = _why_alone(kv.key, exc)
            _log.error("leaving job %s alone: %s", ids[0], aside[ids[0]])
        yield
    for _, kv in stored.pop(Kind.ALLOCATION, ()):
        try:  # as `_decision`, which takes a tenth as long again
            _load_allocation(cluster, brief_pb2.AllocationBrief.FromString(kv.value))
        except UNREADABLE as exc:
            raise _unreadable(kv.key, exc) from None
        yield
    return list(specs.items())


@contextmanager
def _decision(key: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as exc:
        raise _unreadable(key, exc) from None


def _unreadable(key: str, exc: Exception) -> UnreadableDecisionError:
    return UnreadableDecisionError(
        f"cannot read {key} ({exc!r}): written by a newer gpupool, or damaged; run that version, or mend the key"
    )


class _ContradictionError(ValueError):
    """A record that can be read, and cannot be so."""


def _why_alone(key: str, exc: Exception) -> str:
    if isinstance(exc, _ContradictionError):
        said = f"{key} contradicts itself: {exc}; it was damaged, or written by hand"
        return (
            f"{said}. It is neither started nor given up, and what runs of it runs on; mend the key, then let "
            "another replica lead"
        )
    return f"its spec or status is unreadable: {key} ({exc!r})"


def _load_job(cluster: Cluster, job_id: str, spec: KeyValue | None, status: KeyValue, allocated: int) -> None:
    if spec is None:
        return
    job = read_job(job_id, spec.value, spec.create_revision)
    restore_status(job, job_pb2.JobStatus.FromString(status.value))
    if wrong := contradiction(job, allocated):
        raise _ContradictionError(wrong)
    if job.state is JobState.PENDING:  # its agent will read all of it
        records_pb2.JobRecord.FromString(spec.value)
    cluster.jobs[job.id] = job
    cluster.books.on_record(job)
    cluster.enqueue(job)


def _load_allocation(cluster: Cluster, wire: brief_pb2.AllocationBrief) -> None:
    job = cluster.jobs.get(wire.job)
    allocation = read_allocation(wire, job)
    cluster.reserve(allocation)
    if allocation.preempted_for:
        cluster.books.claims[allocation.preempted_for] = Claim(allocation.host)
    if job is None or job.cancel_reason is None or job.allocation_id != allocation.id:
        return  # what stops it, if anything does, is not that the user wants its end
    if allocation.stop_reason:
        job.cancel_reason = allocation.stop_reason
