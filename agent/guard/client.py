"""The agent's side of the guard: starts it or finds the one that runs, and moves its deadline on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from ..ports import GuardError
from .state import REFUSALS, GuardState, Word, boot_time_ns, open_state

ALIVE_WITHIN_NS = 1_000_000_000
_START_S = 10.0
_LOOK_S = 0.02


class ProcessGuard:
    """Implements ports.Guard with the process of guard.py, which outlives this one.

    `cgroup` holds every VM that runs, `pidfiles` names the processes of all. One of the two is needed. `watchdog` is
    the device of a hardware watchdog, and `watchdog_s` the timeout to ask of it; a guard that runs already keeps its
    own.
    """

    def __init__(
        self,
        state_file: Path,
        cgroup: Path | None,
        pidfiles: Path | None = None,
        *,
        watchdog: Path | None = None,
        watchdog_s: int = 0,
    ) -> None:
        self._file = state_file
        self._cgroup = cgroup
        self._pidfiles = pidfiles
        self._watchdog = watchdog
        self._watchdog_s = watchdog_s
        self._state: GuardState | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def extend(self, deadline_boot_s: float, limit_boot_s: float = 0.0) -> None:
        """See ports.Guard."""
        if self._state is None:
            raise GuardError("the guard was never started")
        limit_s = max(deadline_boot_s, limit_boot_s)
        for word, time_s in ((Word.LIMIT, limit_s), (Word.DEADLINE, deadline_boot_s)):
            self._state[word] = max(self._state[word], int(time_s * 1e9))

    @property
    def deadline(self) -> float:
        """See ports.Guard."""
        return self._state[Word.DEADLINE] / 1e9 if self._state else 0.0

    def watchdog_s(self) -> float:
        """See ports.Guard."""
        return self._state[Word.WATCHDOG] / 1e9 if self._state and self.alive() else 0.0

    def refused(self) -> str:
        """See ports.Guard."""
        bits = self._state[Word.REFUSED] if self._state else 0
        return ", ".join(text for number, text in enumerate(REFUSALS) if bits >> number & 1)

    def alive(self) -> bool:
        """See ports.Guard."""
        return self._state is not None and 0 <= boot_time_ns() - self._state[Word.HEARTBEAT] < ALIVE_WITHIN_NS

    async def ensure(self) -> None:
        """See ports.Guard."""
        self._state = self._state or open_state(self._file)
        self._state[Word.END] = 0
        self._state[Word.AGENT] = os.getpid()
        if self.alive():
            return
        self._remove_stuck()
        self._spawn()
        for _ in range(int(_START_S / _LOOK_S)):
            if self.alive():
                return
            if self._child and self._child.poll() is not None:
                raise GuardError(f"the guard ended at once (exit code {self._child.returncode}); see {self.log}")
            await asyncio.sleep(_LOOK_S)
        raise GuardError(f"the guard shows no sign of life after {_START_S:.0f} s; see {self.log}")

    def release(self) -> None:
        """Let the guard end once no VM lives; while one does, the guard stays. For a clean stop of the agent."""
        if self._state is not None:
            self._state[Word.END] = 1

    @property
    def kills(self) -> int:
        """How often the guard had to kill since its state was made."""
        return self._state[Word.KILLS] if self._state else 0

    @property
    def pid(self) -> int:
        """The guard's process; 0 before the first."""
        return self._state[Word.PID] if self._state else 0

    @property
    def log(self) -> Path:
        """What the guard has to say."""
        return self._file.with_suffix(".log")

    def _remove_stuck(self) -> None:
        """Kill a guard that has stopped looking: it still holds the claim, so no other could take its place."""
        try:
            handle = os.pidfd_open(self.pid) if self.pid else None
        except ProcessLookupError:
            return
        if handle is None:
            return
        try:
            if str(self._file).encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            pass  # gone meanwhile: what we wanted
        finally:
            os.close(handle)
        if self._child:
            self._child.wait(_START_S)

    def _spawn(self) -> None:
        package = __package__ or "agent.guard"
        root = Path(__file__).resolve().parents[package.count(".") + 1]
        # -S: no site-packages; the guard needs none, and every import is memory locked for good.
        command = [sys.executable, "-S", "-m", package, "--state", str(self._file)]
        command += ["--cgroup", str(self._cgroup)] if self._cgroup else []
        command += ["--pidfiles", str(self._pidfiles)] if self._pidfiles else []
        if self._watchdog:
            command += ["--watchdog", str(self._watchdog), "--watchdog-s", str(self._watchdog_s)]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
