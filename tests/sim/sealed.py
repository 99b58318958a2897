"""While the simulation runs: the interpreter's clocks, randomness and threads are the simulation's, or an error.

Code under test should be given its clock and its randomness. What it reaches for by itself (logging, uuid4, a retry
library's jitter) must still be the same in every run, and what cannot be simulated must be loud. `from time import
time` made before the seal escapes it, and so does datetime.now().
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NoReturn

from tests.sim.loop import VirtualLoop

WALL_EPOCH_S = 1_750_000_000
"""Unix time at which every simulation begins."""


def _on_this_thread(simulated: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """The seal is the simulation's: a thread that another test left behind goes on in the real world."""
    here = threading.get_ident()

    def either(*args: Any, **options: Any) -> Any:
        return (simulated if threading.get_ident() == here else real)(*args, **options)

    return either


@contextlib.contextmanager
def sealed(loop: VirtualLoop, rng: Random) -> Iterator[None]:
    """Patch the interpreter for the length of a run; also hold the garbage collector, whose timing is not ours."""

    def refuse(what: str) -> Callable[..., NoReturn]:
        return lambda *_, **__: loop._real(what)

    def wall() -> float:
        return WALL_EPOCH_S + loop.time()

    patches: list[tuple[Any, str, Callable[..., Any]]] = [
        (time, "time", wall),
        (time, "time_ns", lambda: int(wall() * 1e9)),
        (time, "sleep", refuse("time.sleep")),
        (os, "urandom", rng.randbytes),
        (random, "_urandom", rng.randbytes),  # what secrets uses
        (threading.Thread, "start", refuse("Thread.start")),
        (socket.socket, "__init__", refuse("socket.socket")),
        (subprocess.Popen, "__init__", refuse("subprocess.Popen")),
    ]
    patches += [(time, name, loop.time) for name in ("monotonic", "perf_counter")]
    patches += [(time, f"{name}_ns", lambda: int(loop.time() * 1e9)) for name in ("monotonic", "perf_counter")]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    state, collecting = random.getstate(), gc.isenabled()
    for (owner, name, value), (_, _, original) in zip(patches, originals, strict=True):
        setattr(owner, name, _on_this_thread(value, original))
    random.seed(rng.random())
    gc.disable()
    try:
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)
        random.setstate(state)
        if collecting:
            gc.enable()
