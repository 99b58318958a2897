"""The guests' output: one file of JSON lines an allocation, [time, stream, text], readable while it is written."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

from ..ports import Clock

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
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, allocation: str, lines: Iterable[tuple[str, str]]) -> None:
        """See LogSink."""
        if allocation in self._full:
            return
        now = self._clock.wall()
        file = self._file(allocation)
        with file.open("a") as output:
            room = self._cap - output.tell()
            for stream, text in lines:
                entry = json.dumps([now, stream, text]) + "\n"
                room -= len(entry)
                if room < 0:
                    note = f"output limit of {self._cap} bytes reached; the rest is dropped"
                    output.write(json.dumps([now, "system", note]) + "\n")
                    self._full.add(allocation)
                    break
                output.write(entry)
        self._grown(allocation)

    def close(self, allocation: str) -> None:
        """See LogSink."""
        self._full.discard(allocation)
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
