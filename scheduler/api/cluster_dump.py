"""A dump of the cluster: the records that are stored, as of one revision, for whoever thinks about it elsewhere.

It must never give away what could be a secret: what a job runs and with which environment, how agents are reached, what
a session proves itself with. Finished jobs that matter to nobody are left out, as the leader's own decisions would be
the same without them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from gpupool.dumpfile import KINDS
from gpupool.store.keys import Kind, parse
from gpupool.store.port import KeyValue
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2, scheduler_pb2

from ..core.state.policy import Device, Policy
from ..policy_file import as_document

TURN = 200  # records between two looks at what else there is to do
PART_BYTES = 512 * 1024  # of values; gRPC takes 4 MiB in a message
_FINAL = frozenset((job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED))
M = TypeVar("M", job_pb2.JobStatus, records_pb2.JobRecord)
_OF_JOBS = frozenset({Kind.JOB_SPEC, Kind.JOB_CANCEL, Kind.JOB_STATUS, Kind.JOB_INTENT})


class Stored(Protocol):
    """What is committed: a mirror."""

    revision: int

    def stored(self) -> dict[str, KeyValue]:
        """A copy."""
        ...


class ClusterDump:
    """See the module docstring."""

    def __init__(self, mirror: Stored, policy: Policy, version: str, wall: Callable[[], float]) -> None:
        self._mirror = mirror
        self._policy = policy
        self._version = version
        self._wall = wall

    async def parts(self) -> AsyncGenerator[scheduler_pb2.DumpPart, None]:
        """The head, and then records by key, a few at a time."""
        stored = self._mirror.stored()
        yield scheduler_pb2.DumpPart(
            head=scheduler_pb2.DumpHead(
                at_s=self._wall(),
                revision=self._mirror.revision,
                version=self._version,
                policy=json.dumps(as_document(self._policy)),
                powered=sorted(self._policy.powered),
                machines={name: found.machine for name, found in self._policy.powered.items() if found.machine},
            )
        )
        over = await _over(stored)
        part, size = scheduler_pb2.DumpPart(), 0
        for number, key in enumerate(sorted(stored)):
            value = self._told(key, stored[key].value, over)
            if value is not None:
                part.records.add(key=key, created=stored[key].create_revision, value=value)
                size += len(value) + len(key)
            if size >= PART_BYTES:
                yield part
                part, size = scheduler_pb2.DumpPart(), 0
            if number % TURN == 0:
                await asyncio.sleep(0)
        yield part

    def _told(self, key: str, value: bytes, over: set[str]) -> bytes | None:
        parsed, plain = parse(key), _told(key, value, over)
        if plain is None or parsed is None or parsed[0] is not Kind.HOST:
            return plain
        return _unmarked(plain, self._policy.powered.get(parsed[1][0]))


def _unmarked(value: bytes, device: Device | None) -> bytes:
    """A host's record without marks of devices, which an address could be guessed from: what is left is of the present
    device, and its mark is "", as for whoever reads a dump.
    """
    record = records_pb2.HostRecord.FromString(value)
    kept = [each.machine for each in record.fence_devices if device is not None and each.mark == device.mark]
    record.ClearField("fence_devices")
    for machine in kept:
        record.fence_devices.add(machine=machine)
    return record.SerializeToString()


async def _over(stored: Mapping[str, KeyValue]) -> set[str]:
    """Finished jobs, without those that one which is not finished may still ask about."""
    over: set[str] = set()
    for number, key in enumerate(stored):
        if key.endswith("/status") and (parsed := parse(key)) is not None and parsed[0] is Kind.JOB_STATUS:
            status = _read(job_pb2.JobStatus, stored[key].value)
            if status is not None and status.state in _FINAL:
                over.add(parsed[1][0])
        if number % TURN == 0:
            await asyncio.sleep(0)
    wanted: set[str] = set()
    for number, key in enumerate(stored):
        if key.endswith("/spec") and (parsed := parse(key)) is not None and parsed[1][0] not in over:
            wanted.update(_asks_about(stored[key].value))
        if number % TURN == 0:
            await asyncio.sleep(0)
    return over - wanted


def _asks_about(value: bytes) -> Iterator[str]:
    record = _read(records_pb2.JobRecord, value)
    if record is not None:
        yield from (dependency.job for dependency in record.spec.dependencies)
        if record.spec.array.id:
            yield f"{record.spec.array.id}-0"
        if record.spec.gang.id:  # all of a gang counts
            yield from (f"{record.spec.gang.id}-{number}" for number in range(record.spec.gang.count))


def _read(kind: type[M], value: bytes) -> M | None:
    try:
        return kind.FromString(value)
    except DecodeError:  # the leader leaves it alone too
        return None


def _told(key: str, value: bytes, over: set[str]) -> bytes | None:
    """The value as it may be told; None: it is no part of a dump."""
    parsed = parse(key)
    if parsed is None or parsed[0] not in KINDS:
        return None
    kind, ids = parsed
    if kind in _OF_JOBS and ids[0] in over:
        return None
    try:
        return _plain(kind, value)
    except DecodeError:
        return None  # nobody can say what is in it


def _plain(kind: Kind, value: bytes) -> bytes:
    """Without secrets, and without what is large and nothing is decided by."""
    match kind:
        case Kind.JOB_SPEC:
            record = records_pb2.JobRecord.FromString(value)
            record.ClearField("idempotency_key")
            _bare(record.spec)
            return record.SerializeToString()
        case Kind.ALLOCATION:
            allocation = records_pb2.Allocation.FromString(value)
            allocation.ClearField("session_nonce")
            _bare(allocation.spec)
            return allocation.SerializeToString()
        case Kind.SESSION:
            session = records_pb2.Session.FromString(value)
            session.ClearField("nonce")
            session.ClearField("address")
            return session.SerializeToString()
        case Kind.GUARD:
            word = records_pb2.GuardRecord.FromString(value)
            word.ClearField("address")
            return word.SerializeToString()
        case Kind.INVENTORY:
            inventory = inventory_pb2.Inventory.FromString(value)
            for name in ("findings", "nics", "notes"):
                inventory.ClearField(name)
            return inventory.SerializeToString()
    return value


def _bare(spec: job_pb2.JobSpec) -> None:
    spec.ClearField("command")
    spec.ClearField("env")
    spec.ClearField("volumes")
    if spec.HasField("vm"):
        spec.vm.ClearField("user_data")
        spec.vm.ClearField("network")
