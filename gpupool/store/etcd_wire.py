"""Between the port's types and etcd's messages, and from gRPC's errors to the port's. Pure: no connection in here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import grpc
from aetcd.rpc import kv_pb2, rpc_pb2

from gpupool.store.port import (
    Change,
    Created,
    Guard,
    KeyValue,
    LeaseNotFound,
    Op,
    Put,
    Refused,
    StoreError,
    Unavailable,
)

_Code = grpc.StatusCode

# The request was not looked at: etcd wants a newer token (rpctypes.ErrGRPCInvalidAuthToken, ErrGRPCAuthOldRevision).
# The second comes with a code that varies with the version, so the text decides.
_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")

# Codes of final refusals that etcd also uses for states that pass (rpctypes/error.go of 3.4 to 3.6).
_PASSING = (
    "too many requests",
    "database space exceeded",
    "not leader",
    "no leader",
    "leader changed",
    "unhealthy cluster",
    "corrupt",
)
_FINAL_CODES = frozenset(
    {
        _Code.INVALID_ARGUMENT,
        _Code.FAILED_PRECONDITION,
        _Code.PERMISSION_DENIED,
        _Code.UNAUTHENTICATED,
        _Code.RESOURCE_EXHAUSTED,
        _Code.OUT_OF_RANGE,
        _Code.UNIMPLEMENTED,
        _Code.NOT_FOUND,
    }
)


def encode_key(key: str) -> bytes:
    """The bytes of a key. Surrogates stand for the bytes of a foreign key that is not UTF-8."""
    return key.encode("utf-8", "surrogateescape")


def decode_key(key: bytes) -> str:
    """The reverse of `encode_key`; total, so that one foreign key cannot stop every reader of a prefix."""
    return key.decode("utf-8", "surrogateescape")


NO_END = b"\0"  # as the end of a range: all keys that follow


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """First key and end (exclusive) of the range of keys that begin with `prefix`."""
    first = encode_key(prefix)
    stem = first.rstrip(b"\xff")
    return first or b"\0", stem[:-1] + bytes([stem[-1] + 1]) if stem else NO_END


def decode_kv(kv: kv_pb2.KeyValue) -> KeyValue:
    """A stored key."""
    return KeyValue(decode_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def decode_kvs(kvs: Iterable[kv_pb2.KeyValue]) -> list[KeyValue]:
    """As `decode_kv`, of many; without the calls, which take as long as all else."""
    new = tuple.__new__
    return [new(KeyValue, (decode_key(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.lease)) for kv in kvs]


def decode_event(event: kv_pb2.Event) -> Change:
    """One event of a watch; a deletion's mod_revision is the revision of the deletion."""
    kv = event.kv  # looked up once, as each look makes an object
    key, revision = decode_key(kv.key), kv.mod_revision
    if event.type == kv_pb2.Event.DELETE:
        return Change(key, None, revision)
    return Change(key, KeyValue(key, kv.value, kv.create_revision, revision, kv.lease), revision)


def encode_txn(guards: Sequence[Guard], ops: Sequence[Op]) -> rpc_pb2.TxnRequest:
    """One transaction: all guards, then all operations, and nothing in the other branch."""
    txn = rpc_pb2.TxnRequest(compare=[_compare(guard) for guard in guards])
    for op in ops:
        # Filled in place: a message built first and then copied into its parent takes two and a half times as long.
        if isinstance(op, Put):
            put = txn.success.add().request_put
            put.key, put.value, put.lease = encode_key(op.key), op.value, op.lease
        else:
            txn.success.add().request_delete_range.key = encode_key(op.key)
    return txn


def _compare(guard: Guard) -> rpc_pb2.Compare:
    # An absent key compares as revision 0 in etcd too, so 0 needs no case of its own.
    key = encode_key(guard.key)
    if isinstance(guard, Created):
        return rpc_pb2.Compare(
            key=key,
            result=rpc_pb2.Compare.EQUAL,
            target=rpc_pb2.Compare.CREATE,
            create_revision=guard.create_revision,
        )
    return rpc_pb2.Compare(
        key=key, result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.MOD, mod_revision=guard.mod_revision
    )


def is_stale_token(text: str) -> bool:
    """The error says that the request was not looked at because the auth token is no longer known."""
    return any(part in text for part in _STALE_TOKEN)


def is_compacted(error: grpc.aio.AioRpcError) -> bool:
    """A read asked for a revision that is gone."""
    return error.code() == _Code.OUT_OF_RANGE and "compacted" in details(error)


def is_future(error: grpc.aio.AioRpcError) -> bool:
    """A read asked for a revision that is yet to come."""
    return error.code() == _Code.OUT_OF_RANGE and "future revision" in details(error)


def details(error: grpc.aio.AioRpcError) -> str:
    """What the server, or gRPC itself, says."""
    return str(error.details() or "")


def store_error(error: grpc.aio.AioRpcError, endpoint: str) -> StoreError:
    """The port's error for gRPC's. Whatever is not surely final is Unavailable: the caller finds out by reading."""
    text = details(error)
    message = f"{endpoint}: {error.code().name.lower()}: {text}"
    if error.code() == _Code.NOT_FOUND and "lease not found" in text:
        return LeaseNotFound(message)
    if error.code() in _FINAL_CODES and not any(part in text for part in _PASSING):
        return Refused(message)
    return Unavailable(message)
