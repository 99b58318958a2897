"""Small durable records of this boot: they outlive the agent's process, and mean nothing after a reboot.

Kept in <state dir>/boots/<boot id>/records, a journal (journal.py) of one JSON line for each change: [kind, name,
record], without a record if it was removed. There is no fsync: a crash of the whole host is a reboot. Room for what
must still be said when the disk is full, that VMs ended and units are clean, is kept by a ballast that is dropped then;
nothing is begun before it is back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .journal import Journal, Write, write_all

FULL = (errno.ENOSPC, errno.EDQUOT)


class Records(Protocol):
    """Named records of some kinds ("vms", "units", "session")."""

    def load(self, kind: str) -> dict[str, dict[str, Any]]:
        """Every record of a kind, by name."""
        ...

    def save(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """Write or replace one record; it has reached its place when this returns."""
        ...

    def remove(self, kind: str, name: str) -> None:
        """Remove one record; a missing one is fine."""
        ...

    def no_room(self) -> str:
        """Why nothing new may be put on record here; "": it may."""
        ...


BALLAST_BYTES = 256 * 1024
LONG_BYTES = 512 * 1024  # of a journal: then it is written anew with what counts, if that is far less


class FileRecords:
    """Implements Records in `directory`; what other boots left there is removed. `write` is for tests of bad disks.

    Any thread may call it. One process at a time may have the directory.
    """

    def __init__(self, directory: Path, boot_id: str, *, write: Write = os.write) -> None:
        self._directory = directory
        boots = directory / "boots"
        self._root = boots / boot_id
        self._root.mkdir(parents=True, exist_ok=True)
        for other in boots.iterdir():
            if other != self._root:
                shutil.rmtree(other, ignore_errors=True)
        self._lock = threading.Lock()
        self._write = write
        self._journal = Journal(self._root / "records", write)
        self._lines: dict[tuple[str, str], bytes] = {}  # what counts, by kind and name
        self._long_bytes = LONG_BYTES
        for line in self._journal.lines():
            self._apply(line)
        self._take_over_files()
        self._ballast = self._root / "ballast"
        self.no_room()

    def load(self, kind: str) -> dict[str, dict[str, Any]]:
        """See Records."""
        with self._lock:
            found = {name: line for (of, name), line in sorted(self._lines.items()) if of == kind}
        return {name: json.loads(line)[2] for name, line in found.items()}

    def save(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """See Records."""
        line = json.dumps([kind, name, record]).encode()
        with self._lock:
            self._append(line)
            self._lines[kind, name] = line
            if self._journal.size > self._long_bytes:
                self._shorten()

    def remove(self, kind: str, name: str) -> None:
        """See Records."""
        with self._lock:
            if (kind, name) in self._lines:
                self._append(json.dumps([kind, name]).encode())
                del self._lines[kind, name]

    def no_room(self) -> str:
        """See Records. The ballast is put back if it can be."""
        if self._ballast.exists():
            return ""
        fresh = self._ballast.with_suffix(".new")
        try:
            with fresh.open("wb", buffering=0) as file:
                write_all(self._write, file.fileno(), bytes(BALLAST_BYTES))
            fresh.replace(self._ballast)
        except OSError as exc:
            fresh.unlink(missing_ok=True)
            return f"the state directory {self._directory} takes no new records: {exc.strerror or exc}"
        return ""

    def _append(self, line: bytes) -> None:
        try:
            self._journal.append(line)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self._ballast.unlink(missing_ok=True)
            self._shorten()
            self._journal.append(line)

    def _shorten(self) -> None:
        """Keep what counts, and nothing of what was before it."""
        counts = sum(len(line) for line in self._lines.values())
        with contextlib.suppress(OSError):  # all of it still stands where it is
            self._journal.replace(self._lines.values())
        self._long_bytes = max(LONG_BYTES, 4 * counts, self._journal.size + LONG_BYTES // 2)

    def _apply(self, line: bytes) -> None:
        kind, name, *record = json.loads(line)
        if record:
            self._lines[kind, name] = line
        else:
            self._lines.pop((kind, name), None)

    def _take_over_files(self) -> None:
        """An agent of an older version, on this boot, kept a file for each record."""
        for folder in sorted(path for path in self._root.iterdir() if path.is_dir()):
            for file in sorted(folder.glob("*.json")):
                self.save(folder.name, file.name.removesuffix(".json"), json.loads(file.read_text()))
            shutil.rmtree(folder, ignore_errors=True)
