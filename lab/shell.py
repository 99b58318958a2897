"""Runs a shell command in a lab host, through the daemon lab/l1/execd.py there, which says the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


class ShellError(Exception):
    """The host did not answer, or a command that was to succeed did not. The message has the end of its output."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: exit code (negative: the signal), both output streams as they came, seconds in the host."""

    code: int
    output: bytes
    took_s: float

    @property
    def text(self) -> str:
        """The output, without white space around it."""
        return self.output.decode(errors="replace").strip()


async def run(port: int, command: str, *, stdin: bytes = b"", timeout_s: float = 120.0, check: bool = True) -> Result:
    """Run `command` with bash, as root. A command that runs into the time limit is killed.

    Raises ShellError if the host does not answer or the limit is reached; with `check`, also if the exit code is not 0.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reply = await _exchange(port, {"command": command, "stdin": len(stdin)}, stdin)
    except TimeoutError:
        raise ShellError(f"`{command[:200]}` is not done after {timeout_s:g} s") from None
    except OSError as exc:
        raise ShellError(f"the host does not answer at port {port}: {exc}") from exc
    output, found, end = reply.rpartition(b"\0")
    if not found:
        raise ShellError(f"the host went away in the middle of `{command[:200]}`")
    ended = json.loads(end)
    result = Result(ended["code"], output, ended["took_s"])
    if check and result.code != 0:
        raise ShellError(f"`{command[:200]}` ended with {result.code}: {result.text[-2000:]}")
    return result


async def _exchange(port: int, request: dict[str, object], stdin: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(json.dumps(request).encode() + b"\n" + stdin)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
