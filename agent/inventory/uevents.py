"""The kernel's own news of devices: a netlink socket on which it says what was added, removed or changed.

Decides only what counts as news. Whoever hears of some reads the inventory again: an event never says what is true, and
events can be lost. Hugepages and links make no events, so reading now and then remains necessary.

Format: lib/kobject_uevent.c of Linux, "add@/devices/...", then KEY=value, each ended by a NUL; group 1 is the kernel's
(group 2 is udevd's, which repeats all when its rules have run).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable

NETLINK_KOBJECT_UEVENT = 15  # include/uapi/linux/netlink.h
KERNEL_GROUP, KERNEL_PORT = 1, 0
SUBSYSTEMS = frozenset({"pci", "memory", "cpu", "node"})
BUFFER_BYTES = 1 << 20  # a bus that is scanned again sends hundreds at once
MOST_BYTES = 8192  # UEVENT_BUFFER_SIZE is 2048 in include/linux/kobject.h, and the header comes on top
SETTLE_S, LONGEST_SETTLE_S = 0.3, 2.0

_log = logging.getLogger(__name__)


class Uevents:
    """News of `subsystems`, gathered while it keeps coming: one change to a machine makes many events."""

    def __init__(
        self,
        open_socket: Callable[[], socket.socket] | None = None,
        subsystems: frozenset[str] = SUBSYSTEMS,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._open = open_socket or kernel_socket
        self._subsystems = subsystems
        self._settle_s = settle_s

    async def changes(self) -> AsyncIterator[frozenset[str]]:
        """The subsystems that changed, each time that news has settled. All of them where the kernel dropped events.

        Ends at once, with one line in the log, where the kernel's news cannot be had, as in most containers.
        """
        try:
            source = self._open()
        except OSError as error:
            _log.warning("no news of hotplug from the kernel (%s): changes are found at the next reading", error)
            return
        with source:
            while True:
                changed = await self._next(source)
                if changed:
                    yield await self._settled(source, changed)

    async def _settled(self, source: socket.socket, first: frozenset[str]) -> frozenset[str]:
        """What changed from `first` on until nothing did for a moment, or for as long as we are ready to wait."""
        changed = set(first)
        try:
            async with asyncio.timeout(max(LONGEST_SETTLE_S, self._settle_s)):
                while True:
                    async with asyncio.timeout(self._settle_s):
                        more = await self._next(source)
                    changed |= more
        except TimeoutError:
            return frozenset(changed)

    async def _next(self, source: socket.socket) -> frozenset[str]:
        """The subsystem that the next message is about, if it is one of ours; all of ours where messages were lost."""
        try:
            message, sender = await asyncio.get_running_loop().sock_recvfrom(source, MOST_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return self._subsystems
        if isinstance(sender, tuple) and sender[0] != KERNEL_PORT:
            return frozenset()  # some program's, not the kernel's
        return self._subsystems & {subsystem_of(message)}


def subsystem_of(message: bytes) -> str:
    """The SUBSYSTEM of a kernel's message; empty if it has none, or is no such message."""
    head, *fields = message.split(b"\0")
    if b"@/" not in head:
        return ""
    found = [field.removeprefix(b"SUBSYSTEM=") for field in fields if field.startswith(b"SUBSYSTEM=")]
    return found[0].decode("utf-8", errors="replace") if found else ""


def kernel_socket() -> socket.socket:
    """A socket on which the kernel sends its events. Raises OSError."""
    source = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT
    )
    try:
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        source.bind((0, KERNEL_GROUP))
    except OSError:
        source.close()
        raise
    return source
