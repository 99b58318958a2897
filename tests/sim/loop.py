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
from tests.sim.nodes import WORLD, DeadlockError, Incarnation, SimFuture, SimTask, SimulationError, State, node_var

_STEPS_AT_ONE_TIME = 500_000
"""More callbacks than this without time moving is a livelock: a busy loop over sleep(0), say."""


class VirtualLoop(BaseEventLoop):
    """See the module's docstring. `jitter` shuffles ready callbacks of different nodes; one node's keep their order.

    `executor_delay_s`, if given, makes run_in_executor (and to_thread) take that long; the function runs at the end
    of it, on this thread. Without it the function runs inline, before run_in_executor returns.
    """

    _ready: deque[asyncio.Handle]
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
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
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
        if self._failure:
            raise self._failure
        if not self._ready and not self._stopping:
            self._advance()
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[2])
        batch = list(self._ready)
        self._ready.clear()
        for handle in self._interleaved(batch) if self._jitter and len(batch) > 1 else batch:
            self._dispatch(handle)
        self._steps_now += len(batch)
        if self._steps_now > _STEPS_AT_ONE_TIME:
            raise SimulationError(f"livelock: {self._steps_now} callbacks at {self._now:.6f}\n{self._report()}")

    def _advance(self) -> None:
        """Jump to the next timer, or to the horizon if that is nearer."""
        while self._timers and (self._timers[0][2].cancelled() or not _owner(self._timers[0][2], self.world).alive):
            heapq.heappop(self._timers)
        when = self._timers[0][0] if self._timers else None
        if self._horizon is not None and (when is None or when > self._horizon):
            self._now = max(self._now, self._horizon)
            self.stop()
        elif when is None:
            raise DeadlockError(f"nothing is ready and no timer is set at {self._now:.6f}\n{self._report()}")
        else:
            self._now = max(self._now, when)
        self._steps_now = 0

    def _dispatch(self, handle: asyncio.Handle) -> None:
        owner = _owner(handle, self.world)
        if handle._cancelled:
            return
        if owner.state is not State.RUNNING:
            if owner.state is State.DEAD:
                return
            (owner.overdue if isinstance(handle, asyncio.TimerHandle) else owner.held).append(handle)
            return
        try:
            handle._run()
        except SystemExit as exc:
            if owner is self.world:
                raise
            self.crash(owner.name)
            if self.on_exit:
                self.on_exit(owner, exc)
        if self._failure:
            raise self._failure

    def _interleaved(self, batch: list[asyncio.Handle]) -> list[asyncio.Handle]:
        owners = [_owner(handle, self.world) for handle in batch]
        if owners.count(owners[0]) == len(owners):
            return batch
        queues: dict[Incarnation, deque[asyncio.Handle]] = {}
        for owner, handle in zip(owners, batch, strict=True):
            queues.setdefault(owner, deque()).append(handle)
        cast("Random", self._jitter).shuffle(owners)
        return [queues[owner].popleft() for owner in owners]

    def _report(self) -> str:
        tasks = [task for task in self.pending() if task.incarnation.alive]
        lines = [f"  {t.incarnation} ({t.incarnation.state.value}) {t.get_name()}: {t.where()}" for t in tasks]
        return "\n".join(lines) or "  no task is pending"

    # What asyncio calls

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As in asyncio; timers of the same time fire in the order in which they were set."""
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """As in asyncio."""
        return SimFuture(loop=self, number=next(self._numbers))

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


def _owner(handle: asyncio.Handle, world: Incarnation) -> Incarnation:
    owner: Incarnation = handle._context.get(node_var, world)  # type: ignore[attr-defined]
    return owner


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
