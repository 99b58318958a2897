"""Drains hosts and waits for it, telling what changes. It decides nothing that the scheduler does not know.

Whoever interrupts it leaves the drains as they are; the same command again goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gpupool.client import AsyncClient
from gpupool.client.policy import Deadline
from gpupool.errors import Conflict, DeadlineExceeded, NotFound
from gpupool.v1 import scheduler_pb2

from . import planned_views
from .settings import me

POLL_S = 2.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """How hosts are drained; see `AsyncClient.drain`."""

    reason: str = ""
    grace_s: int = 0
    at_once: int = 0
    wait: bool = False


@dataclass(slots=True)
class Watched:
    """Hosts as they are now, asked for once however many wait for them."""

    client: AsyncClient
    _known: dict[str, scheduler_pb2.Host] = field(default_factory=dict)
    _at_s: float = float("-inf")
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def changed(self) -> None:
        """Something was asked for: what was seen before is old."""
        self._at_s = float("-inf")

    async def look(self, name: str) -> scheduler_pb2.Host:
        """One host, not older than half a pause. Raises NotFound."""
        return (await self.all([name]))[0]

    async def all(self, names: Iterable[str]) -> list[scheduler_pb2.Host]:
        """These hosts, in this order. Raises NotFound."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._at_s >= POLL_S / 2:
                self._known = {host.name: host for host in await self.client.hosts()}
                self._at_s = now_s
        wanted = list(dict.fromkeys(names))
        missing = sorted(set(wanted) - self._known.keys())
        if missing:
            raise NotFound(f"no host {', '.join(missing)}; known hosts: {', '.join(sorted(self._known)) or 'none'}")
        return [self._known[name] for name in wanted]


async def begin(client: AsyncClient, name: str, wish: Wish, *, paused: bool = False) -> None:
    """Ask for a host's drain."""
    await client.drain(
        name, wish.reason, grace_s=wish.grace_s, at_once=wish.at_once, wait=wish.wait, paused=paused, by=me()
    )


async def drain_all(
    client: AsyncClient, names: Sequence[str], wish: Wish, *, hosts_at_once: int, deadline: Deadline, say: Say
) -> None:
    """Drain hosts, so many at a time (0: all), until all are. Raises DeadlineExceeded, and Conflict for a drain that
    somebody calls off. A host that waits for its turn takes nothing new meanwhile: it would have to leave again.
    """
    watched = Watched(client)
    hosts = await watched.all(names)
    busy = [host.name for host in hosts if host.intent.HasField("drain") and not host.intent.drain.paused]
    ordered = [*busy, *(host.name for host in hosts if host.name not in busy)]  # what is under way comes first
    size = hosts_at_once or len(ordered)
    for name in ordered[size:]:
        await begin(client, name, wish, paused=True)
    turns = asyncio.Semaphore(size)

    async def one(name: str) -> None:
        async with turns:
            await begin(client, name, wish)
            watched.changed()
            await drained(watched, name, deadline=deadline, say=say)

    for found in await asyncio.gather(*map(one, ordered), return_exceptions=True):
        if isinstance(found, BaseException):
            raise found


async def drained(watched: Watched, name: str, *, deadline: Deadline, say: Say) -> None:
    """Return once the host has had no VM at two looks in a row: the first may come before a placement that was decided
    when the drain was not known yet.
    """
    told, began, clear = "", False, 0
    while True:
        host = await watched.look(name)
        draining = host.intent.HasField("drain")
        if began and not draining:
            raise Conflict(f"the drain of {name} was called off; what was asked to stop stops all the same")
        began |= draining
        clear = 0 if host.vms else clear + 1
        text = planned_views.progress(host)
        if text != told and (host.vms or clear > 1):
            told = text
            say(f"{name}: {text}")
        if clear > 1:
            return
        if deadline.passed():
            raise DeadlineExceeded(f"{name} is not drained in time ({text}); {goes_on([name])}")
        left_s = deadline.left_s()
        await asyncio.sleep(POLL_S if left_s is None else min(POLL_S, left_s))


def goes_on(names: Sequence[str]) -> str:
    """What to tell somebody who waits no longer."""
    hosts = " ".join(names)
    return f"the drain goes on; wait again with `gpupool drain {hosts}`, or end it: `gpupool undrain {hosts}`"


@contextlib.contextmanager
def telling_what_goes_on(names: Sequence[str], say: Say) -> Iterator[None]:
    """Ctrl-C says how things stand."""
    try:
        yield
    except asyncio.CancelledError:
        say(goes_on(names))
        raise
