"""An event loop on virtual time: it never sleeps, touches no socket and no thread, and runs in an order set by a seed.

Every callback belongs to the incarnation in its context (see nodes.py), so a node can be paused (SIGSTOP, a long
stall) or crashed (power cut: no `finally` runs) while the rest of the world goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import threading
from asyncio.base_events import BaseEventLoop
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context
from random import Random
from typing import Any, NoReturn, cast

from tests.sim.grave import bury
from tests.sim.nodes import (
    WORLD,
    DeadlockError,
    Incarnation,
    SimFuture,
    SimHandle,
    SimTask,
    SimulationError,
    State,
    node_var,
)

_STEPS_AT_ONE_TIME = 500_000
"""More callbacks than this without time moving is a livelock: a busy loop over sleep(0), say."""


class VirtualLoop(BaseEventLoop):
    """See the module's docstring. `jitter` shuffles ready callbacks of different nodes; one node's keep their order.

    `executor_delay_s`, if given, makes run_in_executor (and to_thread) take that long; the function runs at the end
    of it, on this thread. Without it the function runs inline, before run_in_executor returns.
    """

    _ready: deque[SimHandle]
    _closed: bool
    _stopping: bool
    _thread_id: int | None

    def __init__(self, *, jitter: Random | None = None, executor_delay_s: Callable[[], float] | None = None) -> None:
        super().__init__()
        self.set_debug(False)  # debug mode reads real clocks
        self.world = Incarnation(WORLD, 0)
        self.on_exit: Callable[[Incarnation, SystemExit], None] | None = None
        self._jitter = jitter
        self._executor_delay_s = executor_delay_s
        self._now = 0.0
        self._horizon: float | None = None
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._numbers = itertools.count(1)
        self._nodes: dict[str, Incarnation] = {WORLD: self.world}
        self._dead: list[SimTask] = []
        self._generators: dict[int, Incarnation] = {}  # by id: a dying generator's weak references are gone already
        self._failure: BaseException | None = None
        self._steps_now = 0

    # Nodes

    def begin(self, node: str) -> Incarnation:
        """A new life of `node`; the one before must have ended."""
        last = self._nodes.get(node)
        if last and last.alive:
            raise SimulationError(f"{node} runs already")
        self._nodes[node] = Incarnation(node, last.number + 1 if last else 1)
        return self._nodes[node]

    def incarnation(self, node: str) -> Incarnation | None:
        """The newest life of `node`, dead or not."""
        return self._nodes.get(node)

    def current(self) -> Incarnation:
        """Whose code is running."""
        return node_var.get(self.world)

    def start(self, owner: Incarnation, coro: Coroutine[Any, Any, Any], *, name: str | None = None) -> SimTask:
        """A task that belongs to `owner`, whoever calls."""
        return self.create_task(coro, name=name, context=owner.context())

    def call_in(self, owner: Incarnation, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        """Call `callback` soon as `owner`: held back while it is paused, dropped once it is dead."""
        return self.call_soon(callback, *args, context=owner.context())

    def pause(self, node: str) -> None:
        """Hold back everything that `node` would do, as SIGSTOP does. Time goes on."""
        if (found := self._nodes[node]).state is State.RUNNING:
            found.state = State.PAUSED

    def resume(self, node: str) -> None:
        """Let `node` run on: first what reached it, then the timers that it slept through, each in order."""
        if (found := self._nodes[node]).state is State.PAUSED:
            found.state = State.RUNNING
            self._ready.extend(found.held)
            self._ready.extend(found.overdue)
            found.held.clear()
            found.overdue.clear()

    def crash(self, node: str) -> None:
        """End `node` here and now: nothing of it ever runs again, no `except` and no `finally` either.

        Code that crashes its own node runs on to its next await.
        """
        found = self._nodes.get(node)
        if not found or not found.alive or found is self.world:
            return
        found.state = State.DEAD
        # Kept alive until the loop is closed: a coroutine that is collected would run its `finally` blocks.
        self._dead += [task for task in self.pending() if task.incarnation is found]
        found.held.clear()
        found.overdue.clear()
        for callback in list(found.on_crash):
            callback()
        found.on_crash.clear()

    def pending(self) -> list[SimTask]:
        """Tasks that are not done, in the order of their creation, those of dead nodes too."""
        return sorted(cast("set[SimTask]", asyncio.all_tasks(self)), key=lambda task: task.number)

    def fail(self, error: BaseException) -> None:
        """End the run with `error` after the current callback, even if the code under test catches everything."""
        self._failure = self._failure or error

    # Running

    def run_to(self, when: float) -> None:
        """Run everything due up to and including the virtual time `when`, and let time be `when`."""
        self._horizon = when
        try:
            self.run_forever()
        finally:
            self._horizon = None

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def _run_once(self) -> None:
        """As in asyncio, only that it goes on until somebody stops the loop: entering it anew for each step is slow."""
        self._step()
        while not self._stopping:
            self._step()

    def _step(self) -> None:
        """The hottest code of all: callbacks are run here and not one call down."""
        if self._failure:
            raise self._failure
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            self._advance()
        now = self._now
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers)[2])
        batch = list(ready)
        ready.clear()
        if len(batch) > 1 and self._jitter:
            batch = self._interleaved(batch)
        for handle in batch:
            if handle._cancelled:
                continue
            if handle.owner.state is not State.RUNNING:
                _hold_back(handle)
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except BaseException as exc:  # noqa: BLE001  (as asyncio does)
                self._raised(handle, exc)
            if self._failure:
                raise self._failure
        self._steps_now += len(batch)
        if self._steps_now > _STEPS_AT_ONE_TIME:
            raise SimulationError(f"livelock: {self._steps_now} callbacks at {self._now:.6f}\n{self._report()}")

    def _advance(self) -> None:
        """Jump to the next timer, or to the horizon if that is nearer."""
        timers = self._timers
        while timers and (timers[0][2]._cancelled or timers[0][2].owner.state is State.DEAD):
            heapq.heappop(timers)
        when = timers[0][0] if timers else None
        if self._horizon is not None and (when is None or when > self._horizon):
            self._now = max(self._now, self._horizon)
            self.stop()
        elif when is None:
            raise DeadlockError(f"nothing is ready and no timer is set at {self._now:.6f}\n{self._report()}")
        else:
            self._now = max(self._now, when)
        self._steps_now = 0

    def _raised(self, handle: SimHandle, exc: BaseException) -> None:
        """A callback did not return."""
        owner = handle.owner
        if isinstance(exc, KeyboardInterrupt) or (isinstance(exc, SystemExit) and owner is self.world):
            raise exc
        if isinstance(exc, SystemExit):
            self.crash(owner.name)
            if self.on_exit:
                self.on_exit(owner, exc)
        else:
            self.call_exception_handler({"message": "Exception in callback", "exception": exc, "handle": handle})

    def _interleaved(self, batch: list[SimHandle]) -> list[SimHandle]:
        owners = [handle.owner for handle in batch]
        if owners.count(owners[0]) == len(owners):
            return batch
        queues: dict[Incarnation, deque[SimHandle]] = {}
        for owner, handle in zip(owners, batch, strict=True):
            queues.setdefault(owner, deque()).append(handle)
        cast("Random", self._jitter).shuffle(owners)
        return [queues[owner].popleft() for owner in owners]

    def _report(self) -> str:
        tasks = [task for task in self.pending() if task.incarnation.alive]
        lines = [f"  {t.incarnation} ({t.incarnation.state.value}) {t.get_name()}: {t.where()}" for t in tasks]
        return "\n".join(lines) or "  no task is pending"

    # What asyncio calls

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        """As in asyncio."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        handle = SimHandle(None, callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        """As in asyncio."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> SimHandle:
        """As in asyncio; timers of the same time fire in the order in which they were set."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        timer = SimHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """As in asyncio."""
        future = SimFuture(loop=self)
        future.number = next(self._numbers)
        return future

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None, **_: Any) -> SimTask:
        """As in asyncio; the name is the same in every run."""
        self._check_closed()  # type: ignore[attr-defined]
        owner = context.get(node_var, self.world) if context else self.current()
        number = next(self._numbers)
        name = name or f"{getattr(coro, '__qualname__', 'task')}-{number}"
        return SimTask(coro, owner, number, loop=self, name=str(name), context=context or contextvars.copy_context())

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As call_soon; from another thread it is an error."""
        if self._thread_id not in (None, threading.get_ident()):
            self._real("call_soon_threadsafe from another thread")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """There are no threads: `func` runs on this one, inline or after the executor's delay."""
        future = self.create_future()
        if self._executor_delay_s:
            self.call_later(self._executor_delay_s(), _settle, future, func, args)
        else:
            _settle(future, func, args)
        return future

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        self._generators[id(agen)] = self.current()

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """An abandoned generator is closed by its own node, unless that is dead: then its code never runs again."""
        owner = self._generators.pop(id(agen), self.world)
        if not self.is_closed() and owner.alive:
            self.call_in(owner, self.create_task, agen.aclose())

    def close(self) -> None:
        """End the world. Cleanup code of tasks that still wait may run now, when it can reach nothing any more."""
        if not self.is_closed():
            tasks = dict.fromkeys(self._dead + self.pending())
            super().close()
            self._timers.clear()
            self._dead.clear()
            bury(list(tasks))

    def _real(self, what: str) -> NoReturn:
        error = SimulationError(f"{what}: the simulation has no real I/O and no threads ({self.current()})")
        self.fail(error)
        raise error


def _hold_back(handle: SimHandle) -> None:
    """Of a dead owner nothing runs; what a paused one would do waits."""
    owner = handle.owner
    if owner.state is State.PAUSED:
        (owner.held if handle._when is None else owner.overdue).append(handle)


def _settle(future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        result = func(*args)
    except Exception as exc:  # noqa: BLE001  (whatever it is belongs to the caller)
        future.set_exception(exc)
    else:
        with contextlib.suppress(asyncio.InvalidStateError):
            future.set_result(result)


def _forbidden(method: str) -> Callable[..., Any]:
    def refuse(self: VirtualLoop, *_: Any, **__: Any) -> NoReturn:
        self._real(f"loop.{method}")

    return refuse


_REAL = (
    *("add_", "remove_", "sock_", "connect_", "subprocess_", "getaddrinfo", "getnameinfo", "start_tls", "sendfile"),
    *("create_connection", "create_server", "create_datagram", "create_unix"),
)
for _method in dir(asyncio.AbstractEventLoop):
    if _method.startswith(_REAL):
        setattr(VirtualLoop, _method, _forbidden(_method))
