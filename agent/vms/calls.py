"""Blocking calls with a time limit, each in a thread of its own.

A thread cannot be stopped, so a call that never answers keeps one. There is no pool that such calls could fill: only
their number is limited, and beyond it new calls fail at once rather than add to the heap. The threads are daemons, so
none keeps the agent from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from .errors import HypervisorError

T = TypeVar("T")
MAX_STUCK = 16


class Calls:
    """Makes calls. Use it on one event loop."""

    def __init__(self, max_stuck: int = MAX_STUCK) -> None:
        self._max_stuck = max_stuck
        self.stuck = 0  # calls that were given up and have not returned

    async def run(
        self, what: str, call: Callable[[], T], limit_s: float, *, late: Callable[[T], None] | None = None
    ) -> T:
        """The call's result, or what it raises. Raises HypervisorError if it does not answer in time.

        `late` is called on the event loop with the result of a call that was given up (also by cancellation) and came
        back after all.
        """
        if self.stuck >= self._max_stuck:
            raise HypervisorError(f"libvirt has left {self.stuck} calls unanswered, no more are made; restart libvirtd")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        given_up = False

        def settle(result: T | None, error: BaseException | None) -> None:
            if given_up:
                self.stuck -= 1
                if late is not None and error is None:
                    late(result)  # type: ignore[arg-type]
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = call()
            except Exception as exc:  # noqa: BLE001 - it is raised where the call is waited for
                error = exc
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, name=f"gpupool-vm {what}", daemon=True).start()
        try:
            await asyncio.wait({future}, timeout=limit_s)
        finally:
            if not future.done():
                given_up = True
                self.stuck += 1
        if given_up:
            raise HypervisorError(f"libvirt has not answered for {limit_s:g} s ({what})")
        return future.result()
