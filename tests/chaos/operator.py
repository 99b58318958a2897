"""What an operator would do during a run: give back to service what policies have put aside. It is counted.

Nothing here is evidence: no host is ever confirmed dead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from gpupool.client import AsyncClient
from gpupool.client.requests import finished
from gpupool.errors import GpupoolError
from gpupool.v1 import records_pb2


class Operator:
    """Looks every few seconds. `done` counts what was done."""

    def __init__(self, client: AsyncClient, done: Counter[str], *, every_s: float = 6.0) -> None:
        self._client = client
        self._done = done
        self._every_s = every_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            for look in (self._brake, self._hosts, self._jobs, self._units):
                with contextlib.suppress(GpupoolError):
                    await look()

    async def _brake(self) -> None:
        if (await self._client.cluster()).record.HasField("brake"):
            self._done["release-brake"] += 1
            await self._client.release_brake("chaos", by="chaos")

    async def _hosts(self) -> None:
        for host in await self._client.hosts():
            if host.record.held_out:
                self._done["uncordon"] += 1
                await self._client.uncordon(host.name, by="chaos")

    async def _jobs(self) -> None:
        async for job in self._client.list():
            if job.status.hold and not finished(job):
                self._done["release"] += 1
                await self._client.release(job.id, "chaos", by="chaos")

    async def _units(self) -> None:
        for view in await self._client.units():
            if view.state == records_pb2.UNIT_STATE_QUARANTINED and view.current:
                self._done["retry-unit"] += 1
                await self._client.retry_unit(view.host, view.unit.id, "chaos", by="chaos")
