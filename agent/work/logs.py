"""The guests' output: one file of JSON lines an allocation, [time, stream, text], readable while it is written."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from io import RawIOBase
from pathlib import Path
from typing import Protocol

from ..ports import Clock
from .records import FULL

_log = logging.getLogger(__name__)

LogLine = tuple[float, str, str]
"""Unix time, stream ("stdout", "stderr", "system"), text."""

CAP_BYTES = 16 * 1024 * 1024
KEEP_FILES = 500
CHUNK_LINES = 500


class LogSink(Protocol):
    """Where the worker puts the guests' output."""

    def append(self, allocation: str, lines: Iterable[tuple[str, str]]) -> None:
        """Add lines of (stream, text)."""
        ...

    def close(self, allocation: str) -> None:
        """Nothing more will come."""
        ...


class LogStore:
    """Implements LogSink in a directory. Beyond `cap_bytes` an allocation's output is dropped, and a line says so."""

    def __init__(self, directory: Path, clock: Clock, cap_bytes: int = CAP_BYTES) -> None:
        self._directory = directory
        self._clock = clock
        self._cap = cap_bytes
        self._open: dict[str, asyncio.Event] = {}  # allocations whose output may grow; set at each growth
        self._full: set[str] = set()
        self._lossy: set[str] = set()  # of which lines were lost, and told so
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, allocation: str, lines: Iterable[tuple[str, str]]) -> None:
        """See LogSink."""
        if allocation in self._full:
            return
        try:
            _append_whole(self._file(allocation), lambda size: self._entries(allocation, lines, self._cap - size))
        except OSError as exc:
            if allocation not in self._lossy:  # a guest that fills the disk with its output must not stop the agent
                _log.warning("output of %s is lost: %s", allocation, exc)
                self._lossy.add(allocation)
        self._grown(allocation)

    def _entries(self, allocation: str, lines: Iterable[tuple[str, str]], room: int) -> bytes:
        now = self._clock.wall()
        entries = []
        for stream, text in lines:
            entry = json.dumps([now, stream, text]) + "\n"
            room -= len(entry)
            if room < 0:
                note = f"output limit of {self._cap} bytes reached; the rest is dropped"
                entries.append(json.dumps([now, "system", note]) + "\n")
                self._full.add(allocation)
                break
            entries.append(entry)
        return "".join(entries).encode()

    def close(self, allocation: str) -> None:
        """See LogSink."""
        self._full.discard(allocation)
        self._lossy.discard(allocation)
        event = self._open.pop(allocation, None)
        if event:
            event.set()
        self._prune()

    def expect(self, allocation: str) -> None:
        """Output may come: readers that follow wait for it, until `close`."""
        self._open.setdefault(allocation, asyncio.Event())

    async def read(self, allocation: str, *, follow: bool = False, tail: int = 0) -> AsyncIterator[list[LogLine]]:
        """The lines so far (the last `tail` of them, 0: all), in chunks; with `follow` the later ones, until `close`.

        Raises FileNotFoundError for an allocation that this agent knows nothing of.
        """
        file = self._file(allocation)
        if not file.exists() and allocation not in self._open:
            raise FileNotFoundError(allocation)
        offset = 0
        if tail:
            last, offset = _last_lines(file, tail)
            yield last
        while True:
            event = self._open.get(allocation)
            lines, offset = _lines_from(file, offset)
            if lines:
                yield lines
            elif event is None or not follow:
                return
            else:
                await event.wait()

    def _grown(self, allocation: str) -> None:
        event = self._open.get(allocation)
        self._open[allocation] = asyncio.Event()
        if event:
            event.set()

    def _prune(self) -> None:
        files = sorted(self._directory.glob("*.log"), key=lambda file: (file.stat().st_mtime, file.name))
        for file in files[:-KEEP_FILES]:
            file.unlink(missing_ok=True)

    def _file(self, allocation: str) -> Path:
        if "/" in allocation or allocation in ("", ".", ".."):
            raise FileNotFoundError(allocation)
        return self._directory / f"{allocation}.log"


def _append_whole(file: Path, data: Callable[[int], bytes]) -> None:
    """Add what `data` gives for the file's present size: all of it, or nothing and an OSError."""
    with file.open("ab", buffering=0) as output:
        size = output.tell()
        wanted = data(size)
        if _write(output, wanted) != len(wanted):
            output.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(output: RawIOBase, data: bytes) -> int:
    """How many bytes were written before the disk was full."""
    try:
        return output.write(data) or 0
    except OSError as exc:
        if exc.errno not in FULL:
            raise
        return 0


def _lines_from(file: Path, offset: int) -> tuple[list[LogLine], int]:
    """At most CHUNK_LINES whole lines from `offset`, and where the next ones begin."""
    lines: list[LogLine] = []
    try:
        with file.open("rb") as source:
            source.seek(offset)
            for raw in source:
                if len(lines) == CHUNK_LINES or not raw.endswith(b"\n"):
                    break
                offset += len(raw)
                lines.append(_parse(raw))
    except FileNotFoundError:
        pass
    return lines, offset


def _last_lines(file: Path, count: int) -> tuple[list[LogLine], int]:
    """The last `count` lines, and where what follows them begins."""
    last: deque[LogLine] = deque(maxlen=count)
    offset = 0
    while True:
        lines, offset = _lines_from(file, offset)
        if not lines:
            return list(last), offset
        last.extend(lines)


def _parse(raw: bytes) -> LogLine:
    at_s, stream, text = json.loads(raw)
    return float(at_s), str(stream), str(text)
