"""Small durable records of this boot: they outlive the agent's process, and mean nothing after a reboot.

Kept as one JSON file a record under <state dir>/<boot id>/<kind>/, replaced by rename, so that a crash leaves the old
record or the new one. There is no fsync: a crash of the whole host is a reboot.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


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


class FileRecords:
    """Implements Records in `directory`; what other boots left there is removed."""

    def __init__(self, directory: Path, boot_id: str) -> None:
        boots = directory / "boots"
        self._root = boots / boot_id
        self._root.mkdir(parents=True, exist_ok=True)
        for other in boots.iterdir():
            if other != self._root:
                shutil.rmtree(other, ignore_errors=True)

    def load(self, kind: str) -> dict[str, dict[str, Any]]:
        """See Records."""
        files = sorted((self._root / kind).glob("*.json"))
        return {file.name.removesuffix(".json"): json.loads(file.read_text()) for file in files}

    def save(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """See Records."""
        file = self._root / kind / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(record, sort_keys=True))
        fresh.replace(file)

    def remove(self, kind: str, name: str) -> None:
        """See Records."""
        (self._root / kind / f"{name}.json").unlink(missing_ok=True)
