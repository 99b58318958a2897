"""QEMU's machine protocol: one command, one answer. Events are kept, oldest first, for whoever asks.

Source: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, Self

_LINE_BYTES = 4 * 1024 * 1024


class QmpError(Exception):
    """QEMU refused a command, or is gone. The message is its own."""


class Qmp:
    """A connection; QEMU serves one at a time. An async context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.events: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=_LINE_BYTES)
        except OSError as exc:
            raise QmpError(f"{self._socket}: {exc.strerror}; is the host running?") from exc
        await self._message()  # the greeting
        await self.execute("qmp_capabilities")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """The command's result. Raises QmpError. Underscores in names of arguments become hyphens."""
        assert self._writer is not None
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._writer.write(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        try:
            await self._writer.drain()
            while "event" in (answer := await self._message()):
                self.events.append(answer)
        except OSError as exc:
            raise QmpError(f"{command}: QEMU is gone ({exc})") from exc
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    async def event(self, name: str, within_s: float) -> dict[str, Any]:
        """The next event of this name, which may have come already. Raises TimeoutError, QmpError."""
        async with asyncio.timeout(within_s):
            while True:
                for found in self.events:
                    if found["event"] == name:
                        self.events.remove(found)
                        return found
                self.events.append(await self._message())

    async def _message(self) -> dict[str, Any]:
        assert self._reader is not None
        line = await self._reader.readline()
        if not line:
            raise QmpError("QEMU closed the connection")
        message: dict[str, Any] = json.loads(line)
        return message
