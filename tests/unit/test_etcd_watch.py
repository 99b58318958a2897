"""A watch that is cancelled ends, whatever happens at the same moment."""

from __future__ import annotations

import asyncio
import time

import pytest
from aetcd.rpc import rpc_pb2

from gpupool.store.etcd_watch import _write


class Call:
    def __init__(self) -> None:
        self.written = asyncio.get_running_loop().create_future()

    async def write(self, request: rpc_pb2.WatchRequest) -> None:
        await self.written


async def test_a_cancellation_is_not_lost_in_a_write_that_succeeds() -> None:
    """A leader that was frozen wakes up: its ping is answered and its term is over, both at once."""
    call = Call()
    task = asyncio.create_task(_write(call, rpc_pb2.WatchRequest(), 5.0))
    await asyncio.sleep(0)
    call.written.set_result(None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_pause_of_this_process_is_not_the_peers_silence() -> None:
    call = Call()
    task = asyncio.create_task(_write(call, rpc_pb2.WatchRequest(), 0.4))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, call.written.set_result, None)
    time.sleep(0.5)  # noqa: ASYNC251 - a stopped process, or one without CPU time
    await task
