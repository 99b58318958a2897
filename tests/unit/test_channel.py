"""The guest's channel, with a guest made of a unix socket that may break, talk nonsense or not be there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.ports import GuestCheckpointed, GuestExited, GuestLog, GuestStarted, VmEvent
from agent.vms.channel import MAX_LINE_BYTES, GuestChannel, Lines

RUN = {"type": "run", "argv": ["true"], "env": {}, "volumes": []}
PATIENCE_S = 10.0


class FakeGuest:
    """QEMU's end of the socket, with one host at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hosts: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._hosts.put((reader, writer))

    async def connected(self) -> None:
        self._reader, self.writer = await asyncio.wait_for(self._hosts.get(), PATIENCE_S)

    async def say(self, *messages: dict[str, Any] | bytes) -> None:
        for message in messages:
            self.writer.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        await self.writer.drain()

    async def heard(self) -> Any:
        line = await asyncio.wait_for(self._reader.readline(), PATIENCE_S)
        return json.loads(line) if line.strip() else line

    def hang_up(self) -> None:
        self.writer.close()

    async def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
        if self._server is not None:
            self._server.close()


class Events(list[VmEvent]):
    """A sink that can be waited on."""

    def of(self, kind: type[VmEvent]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
async def guest() -> AsyncIterator[FakeGuest]:
    with tempfile.TemporaryDirectory() as folder:
        guest = FakeGuest(Path(folder) / "channel")
        yield guest
        await guest.close()


@contextlib.asynccontextmanager
async def attached(guest: FakeGuest, events: Events, *, adopted: bool = False) -> AsyncIterator[GuestChannel]:
    channel = GuestChannel("a1", str(guest.path), RUN, events.append, adopted=adopted)
    yield channel
    await channel.close()


GPUS = [{"address": "0000:00:10.0", "id": "1af4:1050"}]


async def test_one_life(guest: FakeGuest) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events):
        await guest.connected()
        await guest.say({"type": "hello", "version": 1})
        assert await guest.heard() == RUN
        await guest.say(
            {"type": "started", "pid": 2},
            {"type": "devices", "gpus": GPUS},
            {"type": "heartbeat", "uptime_s": 1.0},
            {"type": "log", "stream": "stdout", "line": "out"},
            {"type": "log", "stream": "stderr", "line": "err"},
            {"type": "exit", "code": 3},
        )
        assert await guest.heard() == {"type": "bye"}
    assert events == [
        GuestStarted("a1", ("0000:00:10.0 1af4:1050",)),
        GuestLog("a1", (("stdout", "out"), ("stderr", "err"))),
        GuestExited("a1", 3),
    ]


async def test_waits_for_a_guest_that_is_not_there_yet(guest: FakeGuest) -> None:
    async with attached(guest, Events()):
        await asyncio.sleep(0.1)
        await guest.listen()
        await guest.connected()
        await guest.say({"type": "hello"})
        assert await guest.heard() == RUN


async def test_after_a_break_an_empty_line_and_run_again(guest: FakeGuest) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events):
        await guest.connected()
        await guest.say({"type": "log", "stream": "stdout", "line": "one"}, b'{"type": "log", "stre')
        guest.hang_up()
        await guest.connected()
        assert [await guest.heard(), await guest.heard()] == [b"\n", RUN]
        await guest.say(b"\n", {"type": "started"}, {"type": "log", "stream": "stdout", "line": "two"})
        await events.until(lambda: len(events) == 3)
    assert [event.lines[0][1] for event in events.of(GuestLog)] == ["one", "two"]


async def test_adoption_begins_with_an_empty_line_and_tells_of_a_job_that_runs(guest: FakeGuest) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events, adopted=True):
        await guest.connected()
        assert [await guest.heard(), await guest.heard()] == [b"\n", RUN]
        await guest.say({"type": "started"}, {"type": "heartbeat"})
        await events.until(lambda: events == [GuestStarted("a1", ())])


async def test_an_exit_said_again_is_one_event_and_two_byes(guest: FakeGuest) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events):
        await guest.connected()
        await guest.say({"type": "exit", "code": 0}, {"type": "exit", "code": 0})
        assert [await guest.heard(), await guest.heard()] == [{"type": "bye"}, {"type": "bye"}]
    assert events == [GuestExited("a1", 0)]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b"{}\n",
        b"[" * 30_000 + b"\n",
        b'{"type": "log", "stream": 1, "line": "x"}\n',
        b'{"type": "exit", "code": "0"}\n',
        b'{"type": "exit", "code": 4711}\n',
        b'{"type": "log", "stream": "stdout", "line": "' + b"x" * MAX_LINE_BYTES + b'"}\n',
    ],
)
async def test_nonsense_is_skipped(guest: FakeGuest, nonsense: bytes) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events):
        await guest.connected()
        await guest.say(nonsense, {"type": "checkpointed"})
        await events.until(lambda: events)
    assert events == [GuestCheckpointed("a1")]


async def test_text_that_utf8_cannot_carry_is_replaced(guest: FakeGuest) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events):
        await guest.connected()
        await guest.say(b'{"type": "log", "stream": "odd", "line": "a\\ud800b"}\n')
        await events.until(lambda: events)
    assert events == [GuestLog("a1", (("stdout", "a?b"),))]


async def test_what_is_to_be_said_waits_for_the_guest(guest: FakeGuest) -> None:
    async with attached(guest, Events()) as channel:
        channel.send("checkpoint", grace_s=7)
        await guest.listen()
        await guest.connected()
        assert await guest.heard() == {"type": "checkpoint", "grace_s": 7}


async def test_last_words_are_taken_after_the_end(guest: FakeGuest) -> None:
    events = Events()
    await guest.listen()
    async with attached(guest, events) as channel:
        await guest.connected()
        await guest.say({"type": "log", "stream": "stdout", "line": "last"}, {"type": "exit", "code": 9})
        await guest.close()
        await channel.finish(PATIENCE_S)
    assert events == [GuestLog("a1", (("stdout", "last"),)), GuestExited("a1", 9)]


async def test_a_sink_that_fails_is_told_again(guest: FakeGuest) -> None:
    events, failures = Events(), iter([OSError("disk full")])

    def sink(event: VmEvent) -> None:
        for failure in failures:
            raise failure
        events.append(event)

    await guest.listen()
    channel = GuestChannel("a1", str(guest.path), RUN, sink)
    await guest.connected()
    await guest.say({"type": "exit", "code": 5})
    await guest.connected()  # it hung up and came back, and asks for the state
    await guest.say({"type": "exit", "code": 5})
    await events.until(lambda: events == [GuestExited("a1", 5)])
    await channel.close()


def test_lines_are_whole_whatever_the_pieces() -> None:
    lines = Lines()
    assert [*lines.feed(b"a\nb"), *lines.feed(b"c"), *lines.feed(b"\n\nd\n")] == [b"a", b"bc", b"", b"d"]


def test_a_line_without_end_is_forgotten() -> None:
    lines = Lines()
    for _ in range(4):
        assert list(lines.feed(b"x" * MAX_LINE_BYTES)) == []
    assert list(lines.feed(b"x\nok\n")) == [b"ok"]
