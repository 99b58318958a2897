"""A file of lines that is appended to, and now and then written anew: a small record costs one write to an open file.

A line is there whole or not at all. One that the end of this process cut short is dropped when the file is read again;
one that the disk took in part is taken back before anything else is written. What a line means is not its business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

Write = Callable[[int, bytes], int]


class Journal:
    """The lines of `file`, which is made if it is missing. Raises OSError. For one thread at a time."""

    def __init__(self, file: Path, write: Write = os.write) -> None:
        self._file = file
        self._write = write
        self.size = 0  # bytes of the lines that count
        self._torn = False
        self._fd = self._open()

    def lines(self) -> list[bytes]:
        """All of them; call it before anything is appended."""
        whole, newline, _ = self._file.read_bytes().rpartition(b"\n")
        self.size = len(whole) + len(newline)
        self._torn = True  # there may be more than that
        return whole.split(b"\n") if newline else []

    def append(self, line: bytes) -> None:
        """It is there when this returns, and is not if this raises."""
        if self._torn:
            os.ftruncate(self._fd, self.size)
        self._torn = True
        write_all(self._write, self._fd, line + b"\n")
        self._torn = False
        self.size += len(line) + 1

    def replace(self, lines: Iterable[bytes]) -> None:
        """These lines instead of all that are there; if it raises, those stay."""
        data = b"".join(line + b"\n" for line in lines)
        fresh = self._file.with_name(f"{self._file.name}.new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(self._write, file, data)
            fresh.replace(self._file)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        os.close(self._fd)
        self._fd, self.size, self._torn = self._open(), len(data), False

    def _open(self) -> int:
        return os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def write_all(write: Write, file: int, data: bytes) -> None:
    """All of it, or OSError: a disk that is nearly full takes a part first."""
    while data:
        data = data[write(file, data) :]
