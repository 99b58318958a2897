"""An event loop whose time jumps to the next timer, so that a test of minutes takes milliseconds."""

from __future__ import annotations

import asyncio
import functools
import heapq
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing is ready. No real I/O may be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_now = 1000.0

    def time(self) -> float:
        return self._virtual_now

    def _run_once(self) -> None:
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(scheduled)._scheduled = False
        if not self._ready:  # type: ignore[attr-defined]
            assert scheduled, "everything waits and nothing is due: a deadlock"
            self._virtual_now = max(self._virtual_now, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


async def until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait until `holds()`; fails after `within_s` seconds of the loop's time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not holds():
        assert loop.time() < end, f"not within {within_s} s"
        await asyncio.sleep(0.01)


async def eventually(holds: Callable[[], Awaitable[object]], within_s: float = 60.0) -> None:
    """As `until`, for what must be awaited."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while not await holds():
        assert loop.time() < end, f"not within {within_s} s"
        await asyncio.sleep(0.05)
