"""What the garbage collector looks at: not, again and again, the millions of objects that a large cluster is.

A full collection visits every object: at 10,000 hosts that stops everything for a second. Nearly all of what a
scheduler keeps is in no cycle and goes by itself. So a large heap is put aside (`gc.freeze`, which costs nothing) now
and then, and only what is new is looked at; a small one is collected as a whole. What is in a cycle and lives long
before it goes is never freed in a large cluster; exceptions and tasks, which make cycles, go young.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

LARGE = 20_000  # records: a full collection takes about 50 ms
THRESHOLDS = (5_000, 10, 1_000_000)  # new objects, and collections of the young, until the next; never a full one
EVERY_S = 5.0
ROUNDS = 20  # collections of the middle-aged, of up to 50,000 objects each, until the old are seen to
MANY = 100_000  # objects that a load has made, if it was a large one


def begin() -> None:
    """From now on nothing is collected as a whole but by `tend`."""
    gc.set_threshold(*THRESHOLDS)


def look(records: int) -> None:
    """See to the old objects, if there are many new ones; `records` says how large the heap is."""
    if gc.get_count()[2] < ROUNDS:
        return
    if records < LARGE:
        gc.collect()
    else:
        gc.collect(1)
        gc.freeze()


@contextmanager
def still() -> Iterator[None]:
    """Look at nothing while a great deal is made that will stay, and put it aside then."""
    gc.disable()
    try:
        yield
    except BaseException as exc:  # what was made is to go, and not to be kept by how it ended
        traceback.clear_frames(exc.__traceback__)
        raise
    finally:
        if gc.get_count()[0] > MANY:
            gc.freeze()
        gc.enable()


async def tend(records: Callable[[], int]) -> NoReturn:
    """Look now and then, until cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        look(records())
