"""Whether the leader's process is gone: a standby holds a TCP connection to the API address that the leader advertises.

It decides when to believe it: the connection stood, it broke, and connecting again is refused, twice. Then no process
listens there any more. Silence (a partition, a frozen process, a machine without power) says nothing: that is what the
lease is for. It must never believe it of an address that it has not once reached: that may be one which only the leader
itself can reach, such as a loopback.

It may be wrong, where a firewall answers with resets. That costs one change of leader and no more: who leads is decided
by the store, and every commit is guarded by the term.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

_log = logging.getLogger(__name__)

CONNECT_S = 1.0
AGAIN_S = 0.1  # between two tries to connect to an address that was reached
UNREACHED_S = 1.0  # the same, for one that was not yet
REFUSALS = 2
KEEPALIVE = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 10}  # a connection may break while we are cut off

Gone = Callable[[str], Awaitable[None]]
"""Given an address, returns once the process that listened there is gone; else never."""


Place = tuple[str, str]  # host and port


class Connection(Protocol):
    """It stands. `place`: the very address that answered; a name may have several, and all must not be asked again."""

    @property
    def place(self) -> Place:
        """Host and port."""
        ...

    async def closed(self) -> None:
        """Return once it has broken; it is given up in any case."""
        ...


Connect = Callable[[Place], Awaitable[Connection]]
"""Raises ConnectionRefusedError where nobody listens, another OSError where that is not known."""


async def never(address: str) -> None:
    """No death is ever noticed: only the lease tells."""
    del address
    await asyncio.Event().wait()


async def gone(address: str, connect: Connect | None = None) -> None:
    """See the module docstring and `Gone`. `connect` makes connections, over TCP unless a simulation has its own."""
    host, _, port = address.rpartition(":")
    place, refused = (host.strip("[]"), port), 0
    reached = False
    while refused < REFUSALS:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await (connect or over_tcp)(place)
        except ConnectionRefusedError:
            refused += reached
        except (OSError, TimeoutError):
            refused = 0
        else:
            place, reached, refused = connection.place, True, 0
            await connection.closed()
        if refused < REFUSALS:
            await asyncio.sleep(AGAIN_S if reached else UNREACHED_S)
    _log.warning("nobody listens at %s any more: the leader's process is gone", address)


@dataclass(frozen=True, slots=True)
class _OverTcp:
    """A connection."""

    place: Place
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def closed(self) -> None:
        """See Connection."""
        try:
            with contextlib.suppress(OSError):
                while await self.reader.read(4096):
                    pass
        finally:
            self.writer.transport.abort()


async def over_tcp(place: Place) -> Connection:
    """See Connect."""
    reader, writer = await asyncio.open_connection(*place)
    _keep_alive(writer.get_extra_info("socket"))
    return _OverTcp(writer.get_extra_info("peername")[:2], reader, writer)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
