"""The hardware watchdog behind the guard: if the guard stands still, the machine is reset before the limit.

A watchdog resets the machine W seconds after it was last petted. It is petted only while now + W <= LIMIT, the time at
which no VM may live any more. So a guard that is frozen, stopped or killed, or a kernel that hangs, ends every VM by
then, with the machine. While VMs run, nothing here ever stops the watchdog: not the guard's death, not an error.

Once the deadline has passed and it is certain that no VM lives, the watchdog is stopped, or the machine would be reset
for nothing; it is armed again when the deadline has been moved on. A driver that cannot be stopped ("nowayout") is then
petted for as long as nothing lives, and the guard never ends. Word.WATCHDOG tells the agent whether it is armed: the
agent moves the deadline on first and looks at the word after that, the guard clears the word first and looks at the
deadline after that, so a VM that starts and a watchdog that stops always see each other.

Standard library only.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .state import Word, boot_time_ns

PET_EVERY_NS = 250_000_000
TRY_EVERY_NS = 200_000_000
_SLACK_NS = 1_000_000_000  # a device may round the timeout up by that

# linux/watchdog.h
_GETSUPPORT, _SETTIMEOUT, _GETTIMEOUT = 0x80285700, 0xC0045706, 0x80045707
_MAGICCLOSE = 0x0100
_SOFTDOG = "Software Watchdog"
_LEGACY = os.makedev(10, 130)  # /dev/watchdog is the first one's old name


class Words(Protocol):
    """The words shared with the agent."""

    def __getitem__(self, word: Word) -> int: ...

    def __setitem__(self, word: Word, value: int) -> None: ...


class Device(Protocol):
    """A watchdog. `closable` and `hardware` are known once it has been opened."""

    closable: bool  # the driver can be stopped
    hardware: bool  # it does not need the kernel to fire
    name: str

    def open(self, ask_s: int) -> int:
        """Arm it; its timeout in seconds, which may differ from what was asked. Raises OSError; then it is not open."""
        ...

    def pet(self) -> None:
        """Start its countdown anew. Raises OSError."""
        ...

    def close(self) -> None:
        """Stop it, if `closable`, and let go of it. Raises OSError."""
        ...


class NoDevice:
    """Implements Device where none is wanted."""

    closable, hardware, name = True, False, ""

    def open(self, ask_s: int) -> int:
        """See Device."""
        raise AssertionError(ask_s)

    def pet(self) -> None:
        """See Device."""

    def close(self) -> None:
        """See Device."""


class WatchdogDevice:
    """Implements Device with the kernel's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self.closable = self.hardware = False
        self.name = str(path)

    def open(self, ask_s: int) -> int:
        """See Device."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            timeout_s = self._ask(fd, ask_s)
        except OSError:
            os.write(fd, b"V")
            os.close(fd)
            raise
        self._fd = fd
        return timeout_s

    def pet(self) -> None:
        """See Device."""
        os.write(self._fd, b"\0")

    def close(self) -> None:
        """See Device."""
        os.write(self._fd, b"V")
        os.close(self._fd)
        self._fd = -1

    def _ask(self, fd: int, ask_s: int) -> int:
        support = fcntl.ioctl(fd, _GETSUPPORT, bytes(40))
        options, _, identity = struct.unpack("II32s", support)
        self.name = f"{self._path} ({identity.rstrip(bytes(1)).decode(errors='replace')})"
        self.hardware = _SOFTDOG not in self.name
        self.closable = bool(options & _MAGICCLOSE) and self._nowayout(fd) != "1"
        timeout = array.array("i", [ask_s])
        with contextlib.suppress(OSError):  # it has one timeout only, or not this one: the next answer counts
            fcntl.ioctl(fd, _SETTIMEOUT, timeout)
        fcntl.ioctl(fd, _GETTIMEOUT, timeout)
        os.write(fd, b"\0")
        return timeout[0]

    def _nowayout(self, fd: int) -> str:
        """What sysfs says; "" if it says nothing."""
        number = os.fstat(fd).st_rdev
        first = Path("/sys/class/watchdog/watchdog0")
        here = first if number == _LEGACY else Path(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}")
        try:
            return (here / "nowayout").read_text().strip()
        except OSError:
            return ""


class Watchdog:
    """When to arm, pet and stop `device`. It must never pet while VMs may live and now + W > LIMIT."""

    def __init__(
        self,
        device: Device,
        ask_s: int,
        state: Words,
        note: Callable[[str], None],
        clock: Callable[[], int] = boot_time_ns,
    ) -> None:
        self._device = device
        self._ask_s = ask_s
        self._note = note
        self._clock = clock
        self._wanted = not isinstance(device, NoDevice)
        self._open = False
        self._loose = False  # it cannot be stopped, nor do what we need: petted for as long as the guard looks
        self._timeout_ns = ask_s * 1_000_000_000
        self._petted = self._tried = 0
        self._told = ""
        # A guard that died left it armed: it has to be taken over, or stopped once nothing lives.
        self._inherited = state[Word.WATCHDOG] != 0
        state[Word.WATCHDOG] = 0

    @property
    def may_leave(self) -> bool:
        """Whether the guard could end without leaving a watchdog behind that resets the machine."""
        return not self._open or self._device.closable

    def look(self, state: Words, *, idle: bool, still_idle: Callable[[], bool]) -> bool:
        """Do what is due. `idle`: the deadline has passed and no VM lives.

        True: the guard stood still between looking at the clock and petting, so the machine might be reset too late,
        should it stand still again; every VM has to be killed now.
        """
        now = self._clock()
        if self._loose:
            self._pet(now)
        elif idle:
            self._rest(state, now, still_idle)
        elif self._wanted and now + self._timeout_ns <= state[Word.LIMIT]:  # else the countdown runs
            return self._keep(state, now)
        return False

    def _keep(self, state: Words, now: int) -> bool:
        if not self._open:
            self._arm(state, now)
        else:
            self._pet(now)
        armed = self._open and not self._loose and self._device.hardware
        state[Word.WATCHDOG] = self._timeout_ns if armed else 0
        return armed and self._petted == now and self._clock() + self._timeout_ns > state[Word.LIMIT] + PET_EVERY_NS

    def leave(self, state: Words) -> None:
        """The guard ends, and no VM lives."""
        state[Word.WATCHDOG] = 0
        if self._open:
            self._stop()

    def _arm(self, state: Words, now: int) -> None:
        if not self._begin(now):
            return
        if self._timeout_ns > self._ask_s * 1_000_000_000 + _SLACK_NS:
            self._say(f"{self._device.name} cannot do {self._ask_s} s, only {self._timeout_ns // 10**9}: not used")
            self._wanted, self._loose = False, not self._device.closable
            if self._device.closable:
                self._stop()
            return
        if self._clock() + self._timeout_ns > state[Word.LIMIT] and self._device.closable:
            self._stop()  # not now
            return
        self._inherited = False
        soft = "" if self._device.hardware else "; it is software, so the guard stays soft"
        bound = "" if self._device.closable else "; nowayout: it cannot be stopped, so this guard never ends"
        self._say(f"{self._device.name} is armed with {self._timeout_ns // 10**9} s{soft}{bound}")

    def _rest(self, state: Words, now: int, still_idle: Callable[[], bool]) -> None:
        """Nothing lives, and nothing can start before the deadline is moved on."""
        if not self._open and not (self._inherited and self._begin(now)):
            return
        state[Word.WATCHDOG] = 0
        if not still_idle():
            return  # the agent was faster: it goes on, armed
        if self._device.closable:
            self._stop()
            self._say(f"{self._device.name} is stopped: no VM lives")
        else:
            self._pet(now)
        self._inherited = False

    def _begin(self, now: int) -> bool:
        """Open it, which starts its countdown."""
        if now - self._tried < TRY_EVERY_NS:
            return False
        self._tried = now
        try:
            self._timeout_ns = self._device.open(self._ask_s) * 1_000_000_000
        except OSError as exc:
            self._say(f"no watchdog, so the guard stays soft: {self._device.name}: {exc.strerror}")
            return False
        self._open, self._petted = True, now
        return True

    def _pet(self, now: int) -> None:
        if now - self._petted < PET_EVERY_NS:
            return
        try:
            self._device.pet()
        except OSError as exc:
            self._say(f"cannot pet {self._device.name}: {exc.strerror}; it will reset this machine")
            return
        self._petted = now

    def _stop(self) -> None:
        try:
            self._device.close()
        except OSError as exc:
            self._say(f"cannot stop {self._device.name}: {exc.strerror}")
        self._open = False

    def _say(self, text: str) -> None:
        """Once what may repeat for ever."""
        if text != self._told:
            self._note(text)
            self._told = text
