"""Reaps daemonised QEMUs, for an agent that is libvirt's host process itself (qemu:///embed).

libvirt takes a process for dead when its pid is gone, so a zombie holds up every start and every end. A daemonised
QEMU's zombie belongs to PID 1, which in a container may be slow to reap or not do it at all; so this process becomes
the subreaper of its descendants and reaps them at once. It must never reap a child that somebody here waits for: only
processes that are called QEMU and have a session of their own are taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOOK_S = 0.05
_ANY_END = os.WEXITED | os.WNOWAIT
_started = threading.Lock()


def start() -> None:
    """Become subreaper and reap from a daemon thread, for the life of this process. Further calls do nothing.

    Raises OSError if the kernel refuses.
    """
    if not _started.acquire(blocking=False):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        _started.release()
        raise OSError(ctypes.get_errno(), "cannot become the subreaper of VM processes")
    threading.Thread(target=_reap_forever, name="gpupool-reaper", daemon=True).start()


def _reap_forever() -> None:
    while True:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_ALL, 0, _ANY_END)  # sleeps until some child has ended, and leaves it as it is
        reap()
        # Somebody else's zombie would end the sleep at once, again and again.
        time.sleep(_LOOK_S)


def reap() -> list[int]:
    """Reap the daemonised QEMUs that have ended; their pids."""
    reaped = []
    for pid in _children():
        if _is_dead_qemu(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
                reaped.append(pid)
    return reaped


def _children() -> list[int]:
    found: list[int] = []
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread ended meanwhile
            found += map(int, listing.read_text().split())
    return found


def _is_dead_qemu(pid: int) -> bool:
    try:
        # proc(5): pid (comm) state ppid pgrp session; comm may hold anything, so it ends at the last bracket.
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    state, _, _, session = tail.split()[:4]
    return state == "Z" and "(qemu-" in head and int(session) != os.getsid(0)
