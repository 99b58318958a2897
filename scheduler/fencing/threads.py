"""Blocking calls in threads, at most so many, that hold up neither the loop nor the end of the program.

A call that hangs keeps its thread, and only that: whoever waits for it gives up by a time limit of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from .port import FenceError

T = TypeVar("T")


class Threads:
    """At most `most` calls at once; one more is refused, for to wait behind calls that hang would be to hang."""

    def __init__(self, most: int) -> None:
        self._free = threading.Semaphore(most)

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result. Raises FenceError if no thread is free, and what the call raises."""
        if not self._free.acquire(blocking=False):
            raise FenceError("too many calls to BMCs are under way or hang")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = call()
            except BaseException as exc:  # noqa: BLE001 - handed on to whoever waits
                self._free.release()
                _tell(loop, done, error=exc)
            else:
                self._free.release()
                _tell(loop, done, result)

        threading.Thread(target=work, name="power fencing", daemon=True).start()
        return await done


def _tell(
    loop: asyncio.AbstractEventLoop,
    done: asyncio.Future[T],
    result: T | None = None,
    error: BaseException | None = None,
) -> None:
    def settle() -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    if not loop.is_closed():
        loop.call_soon_threadsafe(settle)
