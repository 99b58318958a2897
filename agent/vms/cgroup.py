"""The cgroup in which the guard finds every VM: putting one there, and asking whether the kernel ran out of memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .errors import RuntimeUnavailableError


class VmCgroup:
    """The guard's directory, or none (`path` is None) where no cgroup v2 can be had."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._ooms = 0

    def make(self) -> None:
        """Make the directory. Raises RuntimeUnavailableError."""
        if self._path is None:
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise RuntimeUnavailableError(f"cannot make the VMs' cgroup {self._path}: {exc.strerror}") from exc
        self._ooms = self._oom_kills()

    def enclose(self, pid: int) -> None:
        """Put the process, with all its threads, where the guard's kill reaches it. Raises OSError.

        Its threads keep their CPUs: a move between cgroups with a cpuset gives each thread all the CPUs of the new one
        (kernel/cgroup/cpuset.c, cpuset_attach_task; since 6.2 only where no affinity was asked for), which would undo
        libvirt's pinning.
        """
        if self._path is None:
            return
        threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
        wanted = {thread: os.sched_getaffinity(thread) for thread in threads}
        (self._path / "cgroup.procs").write_text(str(pid))
        for thread, cpus in wanted.items():
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getaffinity(thread) != cpus:
                    os.sched_setaffinity(thread, cpus)

    def claim_oom(self) -> bool:
        """Whether the OOM killer has struck here once more than was claimed before."""
        if self._oom_kills() <= self._ooms:
            return False
        self._ooms += 1
        return True

    def _oom_kills(self) -> int:
        """See memory.events in cgroup-v2.rst; 0 where the memory controller is not on."""
        if self._path is None:
            return 0
        try:
            words = (self._path / "memory.events").read_text().split()
        except OSError:
            return 0
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
