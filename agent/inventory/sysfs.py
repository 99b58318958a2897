"""The machine's own sysfs. It only carries text to and fro: what a file means is the parsers' business."""

from __future__ import annotations

import os
from pathlib import Path

MAX_TEXT_BYTES = 65536  # no attribute is longer than a page; `resource` and `meminfo` are far below this
PAGE_BYTES = 4096  # sysfs answers in pages, of this size or larger
# A copy of a tree may hold anything: opening a pipe must not wait for somebody to write to it.
_OPEN_TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class RealSysfs:
    """A sysfs tree under `root`: the kernel's, or a copy of one in a test. Implements `ports.Sysfs`."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root
        self._prefix = f"{root}/"  # an inventory reads thousands of files: joining Paths would cost more than reading

    def read(self, path: str) -> str | None:
        """The file's text, stripped, with bytes that are no UTF-8 replaced; None if it cannot be read."""
        raw = self.read_bytes(path, MAX_TEXT_BYTES)
        return None if raw is None else raw.decode("utf-8", errors="replace").strip()

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        """Up to `limit` bytes of the file from `offset` on, fewer where it ends; None if it cannot be read.

        Asks for exactly that: reading more of a config file can wake a device, and undefined parts of it lock some up
        (drivers/pci/pci-sysfs.c, pci_read_config).
        """
        try:
            file = os.open(self._prefix + path, _OPEN_TO_READ)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            return None
        try:
            return _read_up_to(file, limit, offset)
        except OSError:
            return None
        finally:
            os.close(file)

    def list(self, path: str) -> list[str]:
        """The directory's entries, sorted; empty if there is none."""
        try:
            return sorted(os.listdir(self._prefix + path))  # noqa: PTH208 - names, not paths
        except (OSError, ValueError):
            return []

    def link_name(self, path: str) -> str | None:
        """The last component of the link's target; None if there is no link."""
        target = self.link_target(path)
        return None if target is None else target.rstrip("/").rpartition("/")[2]

    def link_target(self, path: str) -> str | None:
        """The link's target as it is written, relative or not; None if there is no link."""
        try:
            target = os.readlink(self._prefix + path)  # noqa: PTH115 - as above
        except (OSError, ValueError):
            return None
        return os.fsencode(target).decode("utf-8", errors="replace")

    def write(self, path: str, text: str) -> None:
        """Hand `text` to the attribute in one write, as the kernel expects. Raises OSError as the kernel does."""
        file = os.open(self.root / path, os.O_WRONLY | os.O_CLOEXEC)  # no O_TRUNC, no O_CREAT: sysfs has neither
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def told(name: str) -> str:
    """A name as it can be told: what `list` gives may have bytes that are no UTF-8, which no message takes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_up_to(file: int, limit: int, offset: int) -> bytes:
    """Read until the end or `limit`, a page at a time, as sysfs answers; less than a page is the end."""
    if offset:
        os.lseek(file, offset, os.SEEK_SET)
    piece = os.read(file, min(limit, PAGE_BYTES))
    if len(piece) < PAGE_BYTES:
        return piece
    pieces = [piece]
    left = limit - len(piece)
    while left > 0 and (piece := os.read(file, min(left, PAGE_BYTES))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
