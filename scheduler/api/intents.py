"""Writing down what an operator wants, so that two operators at once lose nothing of each other's.

An intent is a wish: it is read, changed and written back only if nobody wrote it meanwhile. It never is a state, and
whoever acts on it looks at what is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from gpupool.store.port import Put, Store, Unmodified

from ..mirror.mirror import Mirror

WRITE_TRIES = 5
Intent = TypeVar("Intent", bound=Message)


class ApiError(Exception):
    """A request that was not carried out. `message` is for people."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def change_intent(
    store: Store, mirror: Mirror, key: str, of: type[Intent], change: Callable[[Intent], None]
) -> None:
    """Change one intent, keeping what others wrote meanwhile; it can be read from `mirror` afterwards.

    Raises ApiError ABORTED if others keep changing it.
    """
    for _ in range(WRITE_TRIES):
        kv = await store.get(key)
        intent = of.FromString(kv.value) if kv is not None else of()
        change(intent)
        guard = Unmodified(key, kv.mod_revision if kv is not None else 0)
        done = await store.commit([guard], [Put(key, intent.SerializeToString())])
        if done.succeeded:
            await mirror.reached(done.revision)
            return
    raise ApiError(grpc.StatusCode.ABORTED, f"{key} kept changing; try again")


def need(text: str, message: str) -> str:
    """`text`, or ApiError INVALID_ARGUMENT where it is empty."""
    if not text.strip():
        raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, message)
    return text
