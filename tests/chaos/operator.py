"""What an operator would do during a run: give back to service what policies have put aside. It is counted.

Nothing here is evidence: no host is ever confirmed dead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from gpupool.client import AsyncClient
from gpupool.errors import GpupoolError
from gpupool.v1 import records_pb2


class Operator:
    """Looks every few seconds. `done` counts what was done."""

    def __init__(self, client: AsyncClient, done: Counter[str], *, every_s: float = 3.0) -> None:
        self._client = client
        self._done = done
        self._every_s = every_s

    async def run(self) -> None:
        while True:
            with contextlib.suppress(GpupoolError):
                await self._look()
            await asyncio.sleep(self._every_s)

    async def _look(self) -> None:
        for view in await self._client.units():
            if view.state == records_pb2.UNIT_STATE_QUARANTINED and view.current:
                self._done["retry-unit"] += 1
                await self._client.retry_unit(view.host, view.unit.id, "chaos", by="chaos")
