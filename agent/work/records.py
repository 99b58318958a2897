"""Small durable records of this boot: they outlive the agent's process, and mean nothing after a reboot.

Kept as one JSON file a record under <state dir>/<boot id>/<kind>/, replaced by rename, so that a crash leaves the old
record or the new one. There is no fsync: a crash of the whole host is a reboot. Room for what must still be said when
the disk is full, that VMs ended and units are clean, is kept by a ballast that is dropped then; nothing is begun before
it is back.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

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


class FileRecords:
    """Implements Records in `directory`; what other boots left there is removed. `write` is for tests of bad disks."""

    def __init__(
        self, directory: Path, boot_id: str, *, write: Callable[[Path, bytes], object] = Path.write_bytes
    ) -> None:
        self._directory = directory
        self._write = write
        boots = directory / "boots"
        self._root = boots / boot_id
        self._root.mkdir(parents=True, exist_ok=True)
        for other in boots.iterdir():
            if other != self._root:
                shutil.rmtree(other, ignore_errors=True)
        self._ballast = self._root / "ballast"
        self.no_room()

    def load(self, kind: str) -> dict[str, dict[str, Any]]:
        """See Records."""
        files = sorted((self._root / kind).glob("*.json"))
        return {file.name.removesuffix(".json"): json.loads(file.read_text()) for file in files}

    def save(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """See Records."""
        folder = self._root / kind
        folder.mkdir(exist_ok=True)
        fresh = folder / f"{name}.new"
        data = json.dumps(record, sort_keys=True).encode()
        try:
            self._write(fresh, data)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self._ballast.unlink(missing_ok=True)
            self._write(fresh, data)
        fresh.replace(folder / f"{name}.json")

    def remove(self, kind: str, name: str) -> None:
        """See Records."""
        (self._root / kind / f"{name}.json").unlink(missing_ok=True)

    def no_room(self) -> str:
        """See Records. The ballast is put back if it can be."""
        if self._ballast.exists():
            return ""
        fresh = self._ballast.with_suffix(".new")
        try:
            self._write(fresh, bytes(BALLAST_BYTES))
            fresh.replace(self._ballast)
        except OSError as exc:
            fresh.unlink(missing_ok=True)
            return f"the state directory {self._directory} takes no new records: {exc.strerror or exc}"
        return ""
