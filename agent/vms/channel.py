"""The host's end of a guest's channel: JSON lines over the unix socket that QEMU keeps (see gpupool_guest.py).

It decides what is said to the guest and turns what the guest says into events. The guest is not trusted: lines too
long, of no JSON or of the wrong form are skipped, and nothing it sends can make this side keep more than a line and a
batch of log lines. It knows nothing of libvirt or of the VM's process, and never concludes that a VM is gone.

After a break the first bytes are an empty line, so that a line cut in half spoils nothing, and then `run` again: a
guest that runs the job, or has ended it, only answers with its present state.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..ports import GuestCheckpointed, GuestExited, GuestLog, GuestStarted, VmEvent

_log = logging.getLogger(__name__)
Message = dict[str, Any]
Sink = Callable[[VmEvent], None]

MAX_LINE_BYTES = 64 * 1024  # the guest cuts output at 4 KiB, which JSON may write six times as long
MAX_WAITING = 16  # messages to the guest
MAX_GPUS = 128
BATCH_LINES = 500
BATCH_S = 0.1
_RETRY_S, _MAX_RETRY_S = 0.05, 1.0
_CHUNK = 64 * 1024


class Lines:
    """Cuts a stream of bytes into lines, and forgets lines that are too long."""

    def __init__(self) -> None:
        self._rest = b""
        self._skip = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Lines that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self._skip and len(line) <= MAX_LINE_BYTES:
                yield line
            self._skip = False
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._skip = b"", True


class GuestChannel:
    """One guest's channel. `run` is the message that starts the job; None if it is lost, then it is never sent.

    `adopted`: the guest is older than this object. Make and use it on the event loop's thread.
    """

    def __init__(self, allocation: str, path: str, run: Message | None, sink: Sink, *, adopted: bool = False) -> None:
        self._allocation = allocation
        self._path = path
        self._run = run
        self._sink = sink
        self._resume = adopted
        self._started = False  # GuestStarted was given out
        self._devices_due = False  # `started` was heard; `devices` is next, or never comes
        self.exited = False
        self._log: list[tuple[str, str]] = []
        self._flush: asyncio.TimerHandle | None = None
        self._outbox: deque[Message] = deque(maxlen=MAX_WAITING)
        self._ready = asyncio.Event()
        self._ending = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"channel {allocation}")

    def send(self, kind: str, **fields: Any) -> None:
        """Say something to the guest, now or once it can be reached."""
        self._outbox.append({"type": kind} | fields)
        self._ready.set()

    async def finish(self, limit_s: float) -> None:
        """The guest's process is gone: take what it said last, then end."""
        self._ending.set()
        await asyncio.wait({self._task}, timeout=limit_s)
        await self.close()

    async def close(self) -> None:
        """Hang up. The guest goes on, and may be called again."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._flush_log()

    # The line

    async def _serve(self) -> None:
        wait_s = _RETRY_S
        while True:
            try:
                await self._call()
                wait_s = _RETRY_S
            except OSError:
                wait_s = min(2 * wait_s, _MAX_RETRY_S)
            except Exception:  # noqa: BLE001 - the sink may raise anything; the guest repeats what matters
                _log.exception("channel of %s", self._allocation)
                wait_s = _MAX_RETRY_S
            if self._ending.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ending.wait()

    async def _call(self) -> None:
        """One connection, until the other side closes it. Raises OSError if there is nobody."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as line:
            line.setblocking(False)
            await loop.sock_connect(line, self._path)
            speaker = loop.create_task(self._speak(line))
            try:
                await self._listen(line)
            finally:
                speaker.cancel()
                await asyncio.gather(speaker, return_exceptions=True)

    async def _listen(self, line: socket.socket) -> None:
        loop, lines = asyncio.get_running_loop(), Lines()
        # What the guest said before it was cut off can be read to its end, even when speaking fails.
        while data := await self._receive(loop, line):
            for message in filter(None, map(_decode, lines.feed(data))):
                self._take(message)
            await asyncio.sleep(0)  # a guest that writes without end must not keep the event loop

    async def _receive(self, loop: asyncio.AbstractEventLoop, line: socket.socket) -> bytes:
        try:
            return await loop.sock_recv(line, _CHUNK)
        except ConnectionError:
            return b""

    async def _speak(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if self._resume:
            await loop.sock_sendall(line, b"\n" + (_encode(self._run) if self._run else b""))
        self._resume = True
        while True:
            while self._outbox:
                message = self._outbox[0]
                await loop.sock_sendall(line, _encode(message))
                if self._outbox and self._outbox[0] is message:  # a full outbox drops its oldest
                    self._outbox.popleft()
            self._ready.clear()
            await self._ready.wait()

    # What the guest says

    def _take(self, message: Message) -> None:
        if self._devices_due and message.get("type") != "devices":
            self._start(())
        match message:
            case {"type": "hello"}:
                self._say_run()
            case {"type": "started"}:
                self._devices_due = not self._started
            case {"type": "devices", "gpus": list(gpus)}:
                self._start(tuple(text for gpu in gpus[:MAX_GPUS] if (text := _gpu(gpu))))
            case {"type": "log", "stream": str(stream), "line": str(line)}:
                self._add_log("stderr" if stream == "stderr" else "stdout", _clean(line))
            case {"type": "exit", "code": int(code)} if 0 <= code <= 255:
                self._exit(code)
            case {"type": "checkpointed"}:
                self._emit(GuestCheckpointed(self._allocation))

    def _say_run(self) -> None:
        waiting = any(message["type"] == "run" for message in self._outbox)
        if self._run is not None and not waiting:
            self._outbox.appendleft(self._run)
            self._ready.set()

    def _start(self, gpus: tuple[str, ...]) -> None:
        self._devices_due = False
        if not self._started:
            self._emit(GuestStarted(self._allocation, gpus))
            self._started = True

    def _exit(self, code: int) -> None:
        if not self.exited:
            self._emit(GuestExited(self._allocation, code))
            self.exited = True
        self.send("bye")  # only now: the code is on record

    def _add_log(self, stream: str, line: str) -> None:
        self._log.append((stream, line))
        if len(self._log) >= BATCH_LINES:
            self._flush_log()
        elif self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(BATCH_S, self._flush_log)

    def _flush_log(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        lines, self._log = tuple(self._log), []
        if lines:
            self._sink(GuestLog(self._allocation, lines))

    def _emit(self, event: VmEvent) -> None:
        self._flush_log()  # events keep the order in which the guest spoke
        self._sink(event)


def _encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _decode(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # nesting without end is a cheap trick
        return None
    return message if isinstance(message, dict) else None


def _gpu(entry: object) -> str:
    match entry:
        case {"address": str(address), "id": str(ids)} if len(address) + len(ids) <= 64:
            return _clean(f"{address} {ids}")
    return ""


def _clean(text: str) -> str:
    """Text that UTF-8 can carry: JSON may hold halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()
