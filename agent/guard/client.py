"""The agent's side of the guard: starts it or finds the one that runs, and moves its deadline on.

There are never two guards: a guard holds a lock on its state for as long as its process lives. So one that stands still
has to be killed before another can take its place, and until that one looks nobody holds the deadline: a guard that is
only slow, as on a host that is starved or emulated, is given time first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from ..ports import GuardError
from .state import REFUSALS, GuardState, Word, boot_time_ns, open_state

ALIVE_WITHIN_NS = 1_000_000_000
_START_S = 10.0
_END_S = 10.0  # of a killed one; longer only if it hangs in the kernel
_LOOK_S = 0.02
_NEVER_NS = 1 << 63
_log = logging.getLogger(__name__)


class ProcessGuard:
    """Implements ports.Guard with the process of guard.py, which outlives this one.

    `cgroup` holds every VM that runs, `pidfiles` names the processes of all. One of the two is needed. `watchdog` is
    the device of a hardware watchdog, and `watchdog_s` the timeout to ask of it; a guard that runs already keeps its
    own. A guard whose process lives is replaced once it has shown no life for `patience_s`.
    """

    def __init__(
        self,
        state_file: Path,
        cgroup: Path | None,
        pidfiles: Path | None = None,
        *,
        watchdog: Path | None = None,
        watchdog_s: int = 0,
        patience_s: float = 1.0,
    ) -> None:
        self._file = state_file
        self._cgroup = cgroup
        self._pidfiles = pidfiles
        self._watchdog = watchdog
        self._watchdog_s = watchdog_s
        self._patience_ns = int(patience_s * 1e9)
        self._state: GuardState | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._ensuring = asyncio.Lock()

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
        return self._silent_ns() < ALIVE_WITHIN_NS

    async def ensure(self) -> None:
        """See ports.Guard."""
        async with self._ensuring:
            await self._ensure()

    async def _ensure(self) -> None:
        self._state = self._state or open_state(self._file)
        self._state[Word.END] = 0
        self._state[Word.AGENT] = os.getpid()
        if await self._answers():
            return
        if self.pid:
            silent_s = self._silent_ns() / 1e9
            said = "the guard does not answer; starting another (process %d showed no life for %.1f s)"
            _log.error(said, self.pid, silent_s)
        await self._remove_stuck()
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

    def _silent_ns(self) -> int:
        """For how long the guard has shown no life.

        Its word is read before the clock: the other way round, a beat between the two would be one of the future.
        """
        if self._state is None:
            return _NEVER_NS
        beat = self._state[Word.HEARTBEAT]
        silent = boot_time_ns() - beat
        return silent if silent >= 0 else _NEVER_NS

    async def _answers(self) -> bool:
        """Whether there is a guard that looks; one that lives is waited for, within reason."""
        while not self.alive():
            if self._silent_ns() >= self._patience_ns or not self._runs():
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def _runs(self) -> bool:
        """Whether the guard's process lives, and is no other by now. A zombie has no command line."""
        try:
            return bool(self.pid) and str(self._file).encode() in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return False

    async def _remove_stuck(self) -> None:
        """Kill a guard that has stopped looking: it still holds the claim, so no other could take its place.

        Raises GuardError if it does not go.
        """
        try:
            handle = os.pidfd_open(self.pid) if self.pid else None
        except ProcessLookupError:
            return
        if handle is None:
            return
        try:
            if self._runs():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            pass  # gone meanwhile: what we wanted
        finally:
            os.close(handle)
        for _ in range(int(_END_S / _LOOK_S)):
            if self._child:
                self._child.poll()  # or it stays a zombie
            if not self._runs():
                return
            await asyncio.sleep(_LOOK_S)
        raise GuardError(f"guard {self.pid} was killed and is still there after {_END_S:.0f} s: it hangs in the kernel")

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
