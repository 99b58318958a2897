"""The cable between one host and etcd: a TCP relay that can be cut. What is cut is silent, as on a real network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOPBACK = "127.0.0.1"


class Cable:
    """Listens at `endpoint` once it is laid, and relays to what `target` says at each connection ("host:port")."""

    def __init__(self, target: Callable[[], str]) -> None:
        self.endpoint = ""
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def lay(self) -> None:
        """Begin to listen, at a free port."""
        self._server = await asyncio.start_server(self._connected, LOOPBACK, 0)
        self.endpoint = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    def cut(self) -> None:
        """Nothing gets through any more; connections stay open."""
        self._whole.clear()

    def mend(self) -> None:
        """What was held back gets through, and all that follows."""
        self._whole.set()

    async def remove(self) -> None:
        """Close it with all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._whole.wait()
            host, _, port = self._target().rpartition(":")
            there, back = await asyncio.open_connection(host, int(port))
            try:
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(self._relay(reader, back))
                    ways.create_task(self._relay(there, writer))
            finally:
                back.close()
        except (OSError, ExceptionGroup):
            pass  # either end has closed
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._whole.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError
