"""What operators want of queues: to make, change, suspend and delete them, and to see how they stand.

It writes `intents/queues/<q>`, which the leader turns into decisions; it never changes a state itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import inf

import grpc

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Created, Delete, Put, Store, Unmodified
from gpupool.v1 import records_pb2, scheduler_pb2

from ..codec.decode import amounts_of
from ..core.state.amounts import NOTHING, Amounts
from ..core.state.policy import Policy
from ..core.state.tables import JobState
from ..core.state.terms import DEFAULT_QUEUE
from ..mirror.mirror import Mirror
from ..submitting.queue_rules import settings
from ..submitting.validate import MAX_PRIORITY
from .intents import ApiError, change_intent

MAX_WEIGHT = 1_000_000
_OWN = ("at_s", "by", "suspended_by")  # the API's own to say


class QueueIntents:
    """See the module docstring."""

    def __init__(self, store: Store, mirror: Mirror, policy: Policy, wall: Callable[[], float]) -> None:
        self._store = store
        self._mirror = mirror
        self._policy = policy
        self._wall = wall

    async def all(self) -> list[scheduler_pb2.Queue]:
        """Every queue, by name, as it stands."""
        cluster = (await self._mirror.view_in_turns(self._policy)).cluster
        books, states = cluster.books, Counter[tuple[str, bool]]()
        for job in cluster.jobs.values():
            if not job.final:
                states[job.terms.queue, job.state is JobState.PENDING] += 1
        names = {DEFAULT_QUEUE, *(ids[0] for ids in self._mirror.ids(Kind.QUEUE))}
        return [
            scheduler_pb2.Queue(
                name=name,
                settings=settings(self._mirror, name),
                used=_wire(books.queues.used.get(name, NOTHING)),
                pending=states[name, True],
                running=states[name, False],
                share=books.shares.of(books.queues.tenant(name)),
            )
            for name in sorted(names)
        ]

    async def set(self, request: scheduler_pb2.SetQueueRequest) -> scheduler_pb2.Queue:
        """Create a queue, or change the named settings of one. ApiError INVALID_ARGUMENT with every fault."""
        wrong = list(_faults(request))
        if wrong:
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(wrong))
        if request.create:
            await self._create(request)
        else:
            await self._change(request)
        return await self._one(request.name)

    async def _one(self, name: str) -> scheduler_pb2.Queue:
        for queue in await self.all():
            if queue.name == name:
                return queue
        raise self._unknown(name)  # it has gone meanwhile

    async def _create(self, request: scheduler_pb2.SetQueueRequest) -> None:
        intent = records_pb2.QueueIntent()
        self._merge(intent, request)
        key = keys.queue(request.name)
        done = await self._store.commit([Created(key, 0)], [Put(key, intent.SerializeToString(deterministic=True))])
        if not done.succeeded:
            message = f"queue {request.name!r} is there already; `gpupool queue set` changes it"
            raise ApiError(grpc.StatusCode.ALREADY_EXISTS, message)
        await self._mirror.reached(done.revision)

    async def _change(self, request: scheduler_pb2.SetQueueRequest) -> None:
        self._must_know(request.name)

        def change(intent: records_pb2.QueueIntent) -> None:
            self._merge(intent, request)

        await change_intent(self._store, self._mirror, keys.queue(request.name), records_pb2.QueueIntent, change)

    def _merge(self, intent: records_pb2.QueueIntent, request: scheduler_pb2.SetQueueRequest) -> None:
        for name in request.fields:
            intent.ClearField(name)  # type: ignore[arg-type]
            if request.settings.DESCRIPTOR.fields_by_name[name].message_type is not None:
                if request.settings.HasField(name):  # type: ignore[arg-type]
                    getattr(intent, name).CopyFrom(getattr(request.settings, name))
            elif not intent.DESCRIPTOR.fields_by_name[name].has_presence or request.settings.HasField(name):  # type: ignore[arg-type]
                setattr(intent, name, getattr(request.settings, name))
        intent.by, intent.at_s = request.by or "operator", self._wall()
        intent.suspended_by = intent.by if intent.suspended else ""
        if not intent.suspended:
            intent.suspended_reason = ""

    async def delete(self, request: scheduler_pb2.DeleteQueueRequest) -> None:
        """Delete a queue that has no unfinished jobs; "default" becomes as it was at first."""
        self._must_know(request.name)
        queue = await self._one(request.name)
        if (jobs := queue.pending + queue.running) and request.name != DEFAULT_QUEUE:
            message = f"queue {request.name!r} has {jobs} jobs that are not finished; cancel them, or suspend it"
            raise ApiError(grpc.StatusCode.FAILED_PRECONDITION, message)
        key = keys.queue(request.name)
        kv = await self._store.get(key)
        if kv is None:
            return
        done = await self._store.commit([Unmodified(key, kv.mod_revision)], [Delete(key)])
        if not done.succeeded:
            raise ApiError(
                grpc.StatusCode.ABORTED, f"queue {request.name!r} was changed meanwhile; look, and try again"
            )
        await self._mirror.reached(done.revision)

    def _must_know(self, name: str) -> None:
        if settings(self._mirror, name) is None:
            raise self._unknown(name)

    def _unknown(self, name: str) -> ApiError:
        known = ", ".join(sorted({DEFAULT_QUEUE, *(ids[0] for ids in self._mirror.ids(Kind.QUEUE))}))
        return ApiError(grpc.StatusCode.NOT_FOUND, f"no queue {name!r}; known queues: {known}")


def _faults(request: scheduler_pb2.SetQueueRequest) -> Iterator[str]:
    wanted, fields = request.settings, request.settings.DESCRIPTOR.fields_by_name
    try:
        keys.check_name(request.name, "queue")
        keys.check_name(wanted.tenant or "x", "tenant")
    except ValueError as exc:
        yield str(exc)
    for name in request.fields:
        if name not in fields or name in _OWN:
            yield f"fields: {name!r} is no setting; they are {', '.join(n for n in fields if n not in _OWN)}"
    if wanted.weight > MAX_WEIGHT:
        yield f"weight is {wanted.weight}: it must be 1 to {MAX_WEIGHT}"
    for name in ("priority_min", "priority_max"):
        if not -MAX_PRIORITY <= getattr(wanted, name) <= MAX_PRIORITY:
            yield f"{name} is {getattr(wanted, name)}: priorities are {-MAX_PRIORITY} to {MAX_PRIORITY}"
    if (
        wanted.HasField("priority_min")
        and wanted.HasField("priority_max")
        and wanted.priority_min > wanted.priority_max
    ):
        yield f"priority_min is {wanted.priority_min}, more than priority_max, which is {wanted.priority_max}"
    most, sure = amounts_of(wanted.limit, inf), amounts_of(wanted.guaranteed, 0)
    if why := sure.beyond(most):
        yield f"guaranteed: {why} by limit"


def _wire(amounts: Amounts) -> records_pb2.Amounts:
    gpus, cpus, memory_mib = (int(amount) for amount in amounts)
    return records_pb2.Amounts(gpus=gpus, cpus=cpus, memory_mib=memory_mib)
