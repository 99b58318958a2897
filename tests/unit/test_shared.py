"""One call for all who ask before it begins, and for nobody who asks later."""

from __future__ import annotations

import asyncio

import pytest

from gpupool.store.shared import Shared


class Calls:
    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.go = asyncio.Event()
        self.shared = Shared(self.call)

    async def call(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.go.wait()
        finally:
            self.ended += 1
        return number


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_asks_at_once_shares_and_who_asks_later_does_not() -> None:
    calls = Calls()
    first = [asyncio.create_task(calls.shared.ask()) for _ in range(3)]
    await turns()
    later = asyncio.create_task(calls.shared.ask())  # the first call is under way: it may be about an earlier moment
    await turns()
    calls.go.set()
    assert await asyncio.gather(*first, later) == [1, 1, 1, 2]


async def test_one_who_leaves_takes_nobody_along_and_the_last_ends_the_call() -> None:
    calls = Calls()
    leaves, stays = (asyncio.create_task(calls.shared.ask()) for _ in range(2))
    await turns()
    leaves.cancel()
    await turns()
    assert not calls.ended
    stays.cancel()
    await turns()
    assert calls.ended
    early = asyncio.create_task(calls.shared.ask())
    await asyncio.sleep(0)
    early.cancel()  # before it began
    await turns()
    assert calls.begun == 1
    calls.go.set()
    assert await calls.shared.ask() == 2


async def test_a_failure_is_everybodys() -> None:
    async def fail() -> None:
        raise OSError("away")

    shared = Shared(fail)
    results = await asyncio.gather(shared.ask(), shared.ask(), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    with pytest.raises(OSError, match="away"):
        await shared.ask()
