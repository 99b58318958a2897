"""A BMC that lives on the event loop's time: for unit tests and the simulation.

`FakeDevice` is a `scheduler.fencing.port.FenceDevice`. Its faults are plain fields, to be set at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.fencing.port import FenceError, Power, SeenOff


@dataclass
class FakeDevice:
    """One host's BMC. `cut` and `restore` do to the host what the BMC was told; `powered` asks how it is."""

    powered: Callable[[], bool]
    cut: Callable[[], None]
    restore: Callable[[], None] = lambda: None
    kind: str = "fake"
    power_on: bool = False
    takes_s: float = 1.0  # each call
    limit_s: float = 20.0
    unreachable: bool = False  # calls end without proof at their limit
    hangs: bool = False  # calls never end by themselves
    deaf: bool = False  # it acknowledges the command and does nothing
    denies: bool = False  # wrong credentials
    loses_the_answer: bool = False  # it does as told, and nobody hears of it
    calls: list[str] = field(default_factory=list)

    async def off(self) -> SeenOff:
        await self._call("off")
        if not self.powered():
            return SeenOff(already=True)
        if not self.deaf:
            self.cut()
        if self.loses_the_answer:
            raise FenceError("connection reset")
        await asyncio.sleep(self.takes_s)
        if self.powered():
            raise FenceError("it was told to switch off, and its power is still on")
        return SeenOff()

    async def on(self) -> None:
        await self._call("on")
        if not self.powered():
            self.restore()

    async def status(self) -> Power:
        await self._call("status")
        return Power.ON if self.powered() else Power.OFF

    async def _call(self, what: str) -> None:
        self.calls.append(what)
        if self.hangs:
            await asyncio.Event().wait()
        if self.unreachable:
            await asyncio.sleep(self.limit_s)
            raise FenceError("no route to the BMC")
        await asyncio.sleep(self.takes_s)
        if self.denies:
            raise FenceError("the BMC refuses the credentials")


@dataclass
class Switch:
    """A host's power, for tests that need no more of a host."""

    on: bool = True
    times: int = 0  # that it was cut

    def device(self, **faults: object) -> FakeDevice:
        return FakeDevice(lambda: self.on, self.cut, self.restore, **faults)  # type: ignore[arg-type]

    def cut(self) -> None:
        self.on, self.times = False, self.times + 1

    def restore(self) -> None:
        self.on = True
