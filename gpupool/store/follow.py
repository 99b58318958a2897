"""Keeping a local mirror of a prefix: one full snapshot, then every change after it, until cancelled."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import NoReturn

from gpupool.store.backoff import Backoff
from gpupool.store.port import Change, Compacted, Each, Restored, Snapshot, Store, Unavailable

_log = logging.getLogger(__name__)


async def follow(
    store: Store,
    prefix: str,
    *,
    on_reset: Callable[[Snapshot], Awaitable[None] | None],
    on_changes: Callable[[Sequence[Change]], Awaitable[None] | None],
    on_restored: Callable[[], None] = lambda: None,
    on_page: Each | None = None,
    backoff: Backoff | None = None,
) -> NoReturn:
    """Hand out the state under `prefix` and then its changes, in order, each exactly once; runs until cancelled.

    `on_reset` gets everything under the prefix and replaces what the caller knew: at the start, and again whenever the
    store has forgotten the changes in between. Both may be coroutine functions; the next call waits for them.
    `on_restored` comes before such a reset if the store's history went back, while the caller still has the old state.
    `on_page` is told of what a reset will bring, as `Store.list` does.
    An unavailable store is asked again and again, with a pause. Raises what the callbacks raise, and Refused.
    """
    async with aclosing(events(store, prefix, backoff=backoff, on_restored=on_restored, on_page=on_page)) as stream:
        async for event in stream:
            result = on_reset(event) if isinstance(event, Snapshot) else on_changes(event)
            if inspect.isawaitable(result):
                await result
    raise AssertionError("events() ended")


async def events(
    store: Store,
    prefix: str,
    *,
    backoff: Backoff | None = None,
    on_restored: Callable[[], None] = lambda: None,
    on_page: Each | None = None,
) -> AsyncGenerator[Snapshot | Sequence[Change], None]:
    """As `follow`, as a stream: a Snapshot replaces what came before it, a sequence of changes adds to it."""
    backoff = backoff or Backoff()
    revision: int | None = None  # the last one handed out; None: list first
    while True:
        try:
            if revision is None:
                snapshot = await store.list(prefix, on_page)
                revision = snapshot.revision
                yield snapshot
            async with aclosing(store.watch(prefix, after_revision=revision)) as batches:
                async for batch in batches:
                    backoff.reset()
                    revision = batch[-1].revision
                    yield batch
        except Compacted as exc:
            restored = isinstance(exc, Restored)
            _log.log(logging.ERROR if restored else logging.INFO, "%s: %s; listing again", prefix, exc)
            if restored:
                on_restored()
            revision = None
            # Writers so fast that every list is compacted before its watch begins must not make us spin.
            await backoff.sleep()
        except Unavailable as exc:
            _log.warning("%s: store unavailable: %s", prefix, exc)
            await backoff.sleep()
