"""Who a piece of running code belongs to: every task and timer is of one incarnation of one node."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

WORLD = "world"
"""The node of everything that is no simulated process: the network, the store, the hardware. It never fails."""


class SimulationError(RuntimeError):
    """The run cannot go on: a deadlock, a livelock, real I/O, or a mistake in the simulation itself."""


class DeadlockError(SimulationError):
    """Nothing is ready, no timer is set, and somebody still waits."""


class State(Enum):
    """What an incarnation does with the handles that are due."""

    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class Incarnation:
    """One life of a node's process, from `VirtualLoop.begin` until its crash."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.state = State.RUNNING
        self.held: list[SimHandle] = []  # callbacks that came while paused
        self.overdue: list[SimHandle] = []  # timers that fired while paused
        self.on_crash: dict[Callable[[], object], None] = {}  # what the outside does at the death: connections break
        self._context = contextvars.Context()
        self._context.run(node_var.set, self)
        self.shared = self._context.copy()  # for callbacks that set no variable of their own

    def context(self) -> contextvars.Context:
        """A fresh context in which code belongs to this incarnation."""
        return self._context.copy()

    @property
    def alive(self) -> bool:
        """Running or paused."""
        return self.state is not State.DEAD

    def __str__(self) -> str:
        return self.name if self.name == WORLD else f"{self.name}#{self.number}"


node_var: contextvars.ContextVar[Incarnation] = contextvars.ContextVar("node")


class SimFuture(asyncio.Future[Any]):
    """A future whose hash is a number: asyncio keeps futures in sets, and addresses would order them at random."""

    number: int  # set at once by the loop: an __init__ of ours would double what one costs
    __slots__ = ("number",)

    def __hash__(self) -> int:
        return self.number


class SimHandle(asyncio.TimerHandle):
    """A callback, soon (`when` is None) or at a time, that knows its owner. Lean: asyncio's asks for the debug mode."""

    __slots__ = ("owner",)

    def __init__(  # as the base's, which it must not call
        self,
        when: float | None,
        callback: Callable[..., object],
        args: Sequence[Any],
        loop: Any,
        context: contextvars.Context | None,
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._cancelled = self._scheduled = False
        self._loop = loop
        self._source_traceback = self._repr = None
        self._context = contextvars.copy_context() if context is None else context
        self.owner: Incarnation = self._context.get(node_var, loop.world)

    def cancel(self) -> None:
        """As in asyncio."""
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]


class SimTask(asyncio.Task[Any]):
    """A task that knows its incarnation; hashed by number, as SimFuture (a TaskGroup cancels in order of a set)."""

    __slots__ = ("incarnation", "number")

    def __init__(self, coro: Any, incarnation: Incarnation, number: int, **options: Any) -> None:
        self.number = number
        self.incarnation = incarnation
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number

    def where(self) -> str:
        """The line that the task waits at, innermost."""
        awaited: Any = self.get_coro()
        line = "?"
        while (frame := getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)) is not None:
            line = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
        return line
