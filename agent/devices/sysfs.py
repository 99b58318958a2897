"""The machine's own sysfs. It only carries text to and fro: what a file means is the parsers' business."""

from __future__ import annotations

import os
from pathlib import Path

MAX_TEXT_BYTES = 65536  # no attribute is longer than a page; `resource` and `meminfo` are far below this


class RealSysfs:
    """A sysfs tree under `root`: the kernel's, or a copy of one in a test. Implements `ports.Sysfs`."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root

    def read(self, path: str) -> str | None:
        """The file's text, stripped, with bytes that are no UTF-8 replaced; None if it cannot be read."""
        raw = self.read_bytes(path, MAX_TEXT_BYTES)
        return None if raw is None else raw.decode("utf-8", errors="replace").strip()

    def read_bytes(self, path: str, limit: int = 4096) -> bytes | None:
        """The file's first `limit` bytes; None if it cannot be read.

        Opened unbuffered: a buffered reader may ask a config file for more than is wanted, which can wake a device.
        """
        try:
            with (self.root / path).open("rb", buffering=0) as file:
                return _read_up_to(file.fileno(), limit)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None

    def list(self, path: str) -> list[str]:
        """The directory's entries, sorted; empty if there is none."""
        try:
            return sorted(os.listdir(self.root / path))  # noqa: PTH208 - names, not paths
        except (OSError, ValueError):
            return []

    def link_name(self, path: str) -> str | None:
        """The last component of the link's target; None if there is no link."""
        try:
            name = (self.root / path).readlink().name
            return os.fsencode(name).decode("utf-8", errors="replace")
        except (OSError, ValueError):
            return None

    def write(self, path: str, text: str) -> None:
        """Hand `text` to the attribute in one write, as the kernel expects. Raises OSError as the kernel does."""
        file = os.open(self.root / path, os.O_WRONLY | os.O_CLOEXEC)  # no O_TRUNC, no O_CREAT: sysfs has neither
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def _read_up_to(file: int, limit: int) -> bytes:
    """Read until the end or `limit`: sysfs may answer a read of a large file in pieces."""
    pieces: list[bytes] = []
    left = limit
    while left > 0 and (piece := os.read(file, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
