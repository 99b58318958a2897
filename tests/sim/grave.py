"""Getting rid of tasks that must never run again.

A suspended coroutine cannot be dropped without its `finally` blocks running: Python closes it when it is collected. So
the loop keeps the tasks of crashed nodes until the world has ended and then closes them here, where the loop is closed
and the trace is sealed: what they still do reaches nothing. (Asynchronous generators are kinder: the loop's finalizer
hook may simply do nothing.)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

_ATTEMPTS = 20
"""A coroutine that awaits inside a `finally` survives close(); each further close() gets it one await further."""


def bury(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Close the tasks' coroutines in silence."""
    with _silence():
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro = cast("Any", task.get_coro())
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(BaseException):
                    coro.close()
                if not inspect.iscoroutine(coro) or inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED:
                    break


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    old = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = old


def collect() -> None:
    """Collect garbage now, in silence, so that what an old world leaves behind cannot stir in a new one."""
    with _silence():
        gc.collect()
