"""The memory that agent and guard share: a small mapped file of 64-bit words, each written by one side only.

The agent writes the deadline, the limit, its process and its wish that the guard ends; the guard writes the rest. Words
are aligned, so that a reader sees the old value or the new one, never half of each. Times are CLOCK_BOOTTIME ns.
The file carries the boot that it was made in: the boot clock starts anew, so a deadline of another boot means nothing.
Words are only ever added at the end, and a file of an older agent grows: a guard of that agent, which watches over VMs
that run, goes on with the words that it knows.
Standard library only: the guard must start and run whatever is installed.
"""

from __future__ import annotations

import fcntl
import mmap
import sys
import time
import uuid
from enum import IntEnum
from pathlib import Path

MAGIC = 0x32_44_52_47_50_55_50_47  # "GPUPGRD2"; the digit is the layout's version
_FIRST_BYTES = 8 * 9  # of the first agents' files
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


class Word(IntEnum):
    """Where each word lies."""

    MAGIC = 0
    BOOT_HIGH = 1
    BOOT_LOW = 2
    DEADLINE = 3  # by the agent; 0: nothing may live
    END = 4  # by the agent; 1: the guard may end once no VM lives
    HEARTBEAT = 5  # by the guard
    KILLS = 6  # by the guard: how often it had to kill
    PID = 7  # by the guard
    AGENT = 8  # by the agent: its process
    LIMIT = 9  # by the agent: at this time no VM may live, even if the guard is frozen; not before DEADLINE
    WATCHDOG = 10  # by the guard: timeout, in nanoseconds, of the hardware watchdog that it has armed; 0: none
    EMPTY = 11  # by the guard: since when, the deadline having passed, it sees that no VM lives; 0: not so
    REFUSED = 12  # by the guard: what the system refused it, a bit of REFUSALS each


REFUSALS = ("to be locked in memory", "real-time priority", "to be spared when out of memory")


def boot_time_ns() -> int:
    """Nanoseconds since boot, suspend included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_words() -> tuple[int, int]:
    """The id of this boot as two words."""
    number = uuid.UUID(BOOT_ID_FILE.read_text().strip()).int
    return number >> 64, number & (2**64 - 1)


class GuardState:
    """The mapped file. Raises ValueError for a file that is not of this layout or of another boot."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b")
        if _FIRST_BYTES <= path.stat().st_size < 8 * len(Word):
            self._file.truncate(8 * len(Word))
        try:
            self._map = mmap.mmap(self._file.fileno(), 8 * len(Word))
        except ValueError:
            self._file.close()
            raise
        self._words = memoryview(self._map).cast("Q")
        if (self[Word.MAGIC], self[Word.BOOT_HIGH], self[Word.BOOT_LOW]) != (MAGIC, *boot_words()):
            self.close()
            raise ValueError(f"{path} is not a guard's state of this boot")

    def __getitem__(self, word: Word) -> int:
        return self._words[word]

    def __setitem__(self, word: Word, value: int) -> None:
        self._words[word] = value

    def lock(self) -> bool:
        """Claim to be the one guard of this file, for as long as the process lives; False if another one is."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of the file."""
        self._words.release()
        self._map.close()
        self._file.close()


def open_state(path: Path) -> GuardState:
    """The state at `path`, made anew (deadline 0: nothing may live) if there is none of this boot and layout."""
    try:
        return GuardState(path)
    except (FileNotFoundError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        words = [MAGIC, *boot_words(), *[0] * (len(Word) - 3)]
        fresh.write_bytes(b"".join(word.to_bytes(8, sys.byteorder) for word in words))
        fresh.replace(path)
        return GuardState(path)
