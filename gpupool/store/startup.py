"""Waiting for etcd at a daemon's start: a while, and then a sentence that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gpupool.store.keys import LEADER
from gpupool.store.port import Store, StoreError

PATIENCE_S = 10.0
RETRY_S = 0.3


async def answers(store: Store, endpoints: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Return once the store answers. Raises StoreError naming the endpoints when it has not after `patience_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        try:
            await store.get(LEADER)
        except StoreError as exc:
            if loop.time() > deadline:
                raise StoreError(
                    f"etcd at {','.join(endpoints)} does not answer ({exc}); start it, or name another with --etcd"
                ) from None
            await asyncio.sleep(RETRY_S)
        else:
            return
