"""Blocking calls, kept off the event loop and off each other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a blocking call somewhere else and returns its result, or raises what it raised."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        """Start `call`; awaiting gives its result. Cancelling the wait need not stop the call."""
        ...


async def in_own_thread(call: Callable[[], T], /) -> T:
    """Run `call` in a daemon thread of its own. A call that never returns costs one thread and no executor's slot."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001 - carried to whoever awaits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="gpupool-device", daemon=True).start()
    return await done
