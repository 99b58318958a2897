"""Blocking calls, kept off the event loop and off each other, and which functions they are busy with.

A call costs a thread, so what follows each other is one call of several steps; but none that was given up goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
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


class GivenUpError(Exception):
    """Nobody waits for the steps any more; no one is there to hear it either."""


async def in_steps(run_blocking: RunBlocking, steps: Generator[None, None, T]) -> T:
    """What `steps` return, all in one blocking call.

    Each yield is a place to stop: when the wait ended meanwhile (a time limit, a cancellation), nothing after it is
    done. So what hung, and comes back one day, does no more than what it was at.
    """
    given_up = threading.Event()

    def work() -> T:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if given_up.is_set():
                steps.close()
                raise GivenUpError

    try:
        return await run_blocking(work)
    finally:
        given_up.set()


class InFlight:
    """Which functions have a call under way, one that hangs and that nobody waits for any more included."""

    def __init__(self, run_blocking: RunBlocking = in_own_thread) -> None:
        self._run = run_blocking
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}

    def on(self, addresses: Iterable[str]) -> RunBlocking:
        """A RunBlocking whose calls count as under way on `addresses`."""
        functions = tuple(addresses)

        def run(call: Callable[[], T], /) -> Awaitable[T]:
            def counted() -> T:
                try:
                    return call()
                finally:
                    self._count(functions, -1)

            self._count(functions, 1)
            return self._run(counted)

        return run

    def functions(self) -> frozenset[str]:
        """Addresses with at least one call under way."""
        with self._lock:
            return frozenset(self._calls)

    def _count(self, functions: Sequence[str], more: int) -> None:
        with self._lock:
            for address in functions:
                if calls := self._calls.get(address, 0) + more:
                    self._calls[address] = calls
                else:
                    del self._calls[address]
