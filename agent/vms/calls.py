"""Blocking calls with a time limit, each in a thread that has no other.

A thread cannot be stopped, so a call that never answers keeps one. There is no pool that such calls could fill: only
their number is limited, and beyond it new calls fail at once rather than add to the heap. A thread whose call has come
back waits a while for another. The threads are daemons, so none keeps the agent from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from .errors import HypervisorError

T = TypeVar("T")
MAX_STUCK = 16
IDLE_S = 10.0


class Calls:
    """Makes calls. Use it on one event loop."""

    def __init__(self, max_stuck: int = MAX_STUCK) -> None:
        self._max_stuck = max_stuck
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Callable[[], None]]] = []  # of threads that wait for a call
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

        self._hand(work)
        try:
            await asyncio.wait({future}, timeout=limit_s)
        finally:
            if not future.done():
                given_up = True
                self.stuck += 1
        if given_up:
            raise HypervisorError(f"libvirt has not answered for {limit_s:g} s ({what})")
        return future.result()

    def _hand(self, work: Callable[[], None]) -> None:
        """To a thread that has nothing to do, else to a new one."""
        with self._lock:
            works = self._idle.pop() if self._idle else None
        if works is None:
            works = SimpleQueue()
            threading.Thread(target=self._serve, args=(works,), name="gpupool-vm", daemon=True).start()
        works.put(work)

    def _serve(self, works: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                work = works.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if works in self._idle:
                        self._idle.remove(works)
                        return
                continue  # one is on its way
            work()
            with self._lock:
                self._idle.append(works)
