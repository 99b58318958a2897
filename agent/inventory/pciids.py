"""Names of vendors and devices from pci.ids, the file that lspci reads (https://pci-ids.ucw.cz).

Only what is asked for is kept: the whole database as objects would weigh more than the rest of the agent's data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from .attributes import Note
from .pci import Ids

# Debian's pci.ids and RHEL's hwdata; pciutils' own; what `update-pciids` downloads goes over one of these.
FILES = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"), Path("/usr/share/pci.ids"))
MOST_BYTES = 1 << 24  # the file has 1.4 MB
LONGEST_NAME, MOST_NAME_BYTES = 120, 480

_NEXT_ENTRY = re.compile(rb"\n[0-9A-Za-z]")
_NOTHING = ("", "")


class PciIds:
    """Looks names up in the first of `files` that can be read, and remembers them until the file changes."""

    def __init__(self, files: Sequence[Path] = FILES) -> None:
        self._files = tuple(files)
        self._read_from: tuple[str, int, int] | None = None
        self._known: dict[Ids, tuple[str, str]] = {}

    def names(self, wanted: Collection[Ids], note: Note) -> dict[Ids, tuple[str, str]]:
        """Vendor's and device's name for each pair of ids, empty where the file lacks it; noted if there is none."""
        stamp = self._stamp()
        if stamp != self._read_from:
            self._known, self._read_from = {}, stamp
        missing = set(wanted) - self._known.keys()
        if stamp is not None and missing:
            self._known |= look_up(_content(stamp[0]), missing)
        if stamp is None:
            places = ", ".join(str(file) for file in self._files)
            note(f"no names of PCI devices: none of {places} can be read; install pci.ids (Debian) or hwdata (RHEL)")
        return {ids: self._known.get(ids, _NOTHING) for ids in wanted}

    def _stamp(self) -> tuple[str, int, int] | None:
        """Which file is to be read, when it changed last (ns), and its size; None if there is none."""
        for file in self._files:
            try:
                seen = file.stat()
            except OSError:
                continue
            if os.access(file, os.R_OK) and file.is_file():
                return str(file), seen.st_mtime_ns, seen.st_size
        return None


def look_up(content: bytes, wanted: Collection[Ids]) -> dict[Ids, tuple[str, str]]:
    """Vendor's and device's name for each pair of ids, as the text of a pci.ids has them; empty: it has none."""
    found = {}
    lines = b"\n" + content
    for vendor_id, device_id in wanted:
        start = lines.find(b"\n%04x " % vendor_id)
        if start < 0:
            found[vendor_id, device_id] = _NOTHING
            continue
        end = _NEXT_ENTRY.search(lines, start + 1)
        block = lines[start + 1 : end.start() if end else None]
        found[vendor_id, device_id] = _name(block, b"%04x " % vendor_id), _name(block, b"\n\t%04x " % device_id)
    return found


def _name(block: bytes, prefix: bytes) -> str:
    """The rest of the line that begins with `prefix`; empty if there is none such."""
    start = block.find(prefix)
    if start < 0:
        return ""
    line = block[start + len(prefix) : start + MOST_NAME_BYTES].partition(b"\n")[0]
    return line.decode("utf-8", errors="replace").strip()[:LONGEST_NAME]


def _content(file: str) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(MOST_BYTES)
    except OSError:
        return b""
