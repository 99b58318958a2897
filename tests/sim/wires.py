"""The connections by which a standby watches whether the leader's process is there, as kernels would make them.

A process that is paused still accepts, as its kernel does; one that is dead refuses; a cut link is silent. A death is
heard of once nothing is cut between the two. Whoever is declared gone must be: that is checked here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from scheduler import deathwatch
from scheduler.deathwatch import Place
from tests.sim.link import Link
from tests.sim.nodes import Incarnation
from tests.sim.world import InvariantError, World


@dataclass(frozen=True)
class _Wire:
    """A connection to one life of a process, over the links of both ends."""

    place: Place
    life: Incarnation
    links: tuple[Link, Link]

    async def closed(self) -> None:
        """See scheduler.deathwatch.Connection."""
        died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        broken = [link.broken() for link in self.links]

        def crashed() -> None:
            if not died.done():
                died.set_result(None)

        self.life.on_crash[crashed] = None
        try:
            if self.life.alive:
                await asyncio.wait([died, *broken], return_when=asyncio.FIRST_COMPLETED)
            for link in self.links:
                await link.healed()
        finally:
            self.life.on_crash.pop(crashed, None)
            for link, future in zip(self.links, broken, strict=True):
                link.forget(future)


@dataclass
class Wires:
    """What `caller` can connect to: the processes of a world, by name."""

    world: World
    caller: str
    reached: Incarnation | None = field(default=None, init=False)

    async def gone(self, address: str) -> None:
        """The real death watch, over these connections. Of a process that lives it must never return."""
        self.reached = None
        await deathwatch.gone(address, self._connect)
        if self.reached is None or self.reached.alive:
            self.world.loop.fail(InvariantError(f"{self.caller} takes {address} for dead, which lives"))

    async def _connect(self, place: Place) -> _Wire:
        links = self.world.link(self.caller), self.world.link(place[0])
        await asyncio.sleep(sum(link.delay_s() for link in links))
        if any(link.partitioned for link in links):
            await asyncio.get_running_loop().create_future()  # silence
        life = self.world.loop.incarnation(place[0])
        if life is None or not life.alive:
            raise ConnectionRefusedError(place)
        self.reached = life
        return _Wire(place, life, links)
