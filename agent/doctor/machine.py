"""The living machine behind the `Machine` port. Runs a program or asks the kernel; decides nothing."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence

COMMAND_S = 5.0
# linux/timex.h, struct timex with 64-bit longs: modes (u32, padded), four longs, then `status`.
_TIMEX_BYTES, _STATUS_OFFSET = 208, 40
_STA_UNSYNC = 0x0040


class LiveMachine:
    """The machine that this runs on. Implements `facts.Machine`."""

    def run(self, command: Sequence[str]) -> str | None:
        """See the port."""
        try:
            done = subprocess.run(
                list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace")

    def writable(self, path: str) -> bool | None:
        """See the port."""
        return os.access(path, os.W_OK)

    def clock_synchronised(self) -> bool | None:
        """Whether STA_UNSYNC is off in what adjtimex(2) says, asked without changing anything."""
        if sys.maxsize <= 2**32:
            return None
        timex = ctypes.create_string_buffer(_TIMEX_BYTES)
        try:
            state = ctypes.CDLL(None).adjtimex(timex)
        except (OSError, AttributeError):
            return None
        status = int.from_bytes(timex.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], sys.byteorder)
        return None if state < 0 else not status & _STA_UNSYNC


class NoMachine:
    """Nothing but files: for a tree that was copied from elsewhere. Implements `facts.Machine`."""

    def run(self, command: Sequence[str]) -> str | None:  # noqa: ARG002
        """Nobody knows."""
        return None

    def writable(self, path: str) -> bool | None:  # noqa: ARG002
        """Nobody knows."""
        return None

    def clock_synchronised(self) -> bool | None:
        """Nobody knows."""
        return None
