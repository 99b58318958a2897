"""Power fencing by Redfish, through sushy: force off, then look until the power is seen to be off.

The BMC's answer to the command is nothing: only the power state "Off", read after the command or found before it, is
success. Each request has a time limit; sushy's own repetitions are off, since the core repeats, and backs off.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .marks import mark
from .port import FenceError, Power, SeenOff
from .secret import Secret, cleaned
from .threads import Threads

T = TypeVar("T")

CONNECT_S, REQUEST_S = 5, 20  # of one request
POLL_S = 1.0
_THREADS = Threads(32)


@dataclass(frozen=True, slots=True)
class Redfish:
    """One host's BMC. `system` "": its only one. `verify`: whether to check its certificate, or a file to check by.
    `machine`: that it is of; "": not said.
    """

    address: str
    username: str
    secret: Secret
    system: str = ""
    verify: bool | str = True
    limit_s: float = 60.0
    power_on: bool = False
    machine: str = ""
    kind: str = "redfish"
    _busy: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def mark(self) -> str:
        """See `marks.py`."""
        return mark(urlsplit(self.address).netloc, self.system.rstrip("/"))

    async def off(self) -> SeenOff:
        """See the port."""
        return await self._call(self._off)

    async def on(self) -> None:
        """See the port."""
        await self._call(self._on)

    async def status(self) -> Power:
        """See the port."""
        return await self._call(self._status)

    async def _call(self, work: Callable[[_Bmc], T]) -> T:
        """Do it in a thread. A call that hangs keeps the next ones to this BMC away, not those to others."""
        if not self._busy.acquire(blocking=False):
            raise FenceError("an earlier call to this BMC hangs still")
        stop = threading.Event()

        def call() -> T:
            try:
                return self._guarded(work, stop)
            finally:
                self._busy.release()

        try:
            async with asyncio.timeout(self.limit_s + REQUEST_S):
                return await _THREADS.run(call)
        except TimeoutError:
            raise FenceError(f"{self.address} did not answer within {self.limit_s + REQUEST_S:g} s") from None
        finally:
            stop.set()

    def _guarded(self, work: Callable[[_Bmc], T], stop: threading.Event) -> T:
        secret = self.secret.read()
        try:
            import sushy.exceptions  # noqa: PLC0415 - an extra that not every site installs
        except ImportError:
            raise FenceError("sushy is not installed; run: pip install 'gpupool[power]'") from None
        logging.getLogger("sushy").setLevel(logging.CRITICAL)  # it prints what fails; we do, without the secret
        try:
            return work(_Bmc(self, secret, time.monotonic() + self.limit_s, stop))
        except sushy.exceptions.AccessError:
            raise FenceError(
                f"{self.address} refuses user {self.username} with the password in {self.secret}"
            ) from None
        except sushy.exceptions.SushyError as exc:
            raise FenceError(cleaned(str(exc), secret, self.username)) from None
        except FenceError:
            raise
        except Exception as exc:  # noqa: BLE001 - sushy trips over answers that make no sense in many ways
            raise FenceError(f"{self.address} answered what sushy does not understand: {type(exc).__name__}") from None

    @staticmethod
    def _off(bmc: _Bmc) -> SeenOff:
        if bmc.power() is Power.OFF:
            return SeenOff(already=True)
        bmc.force_off()
        while (seen := bmc.power()) is not Power.OFF:
            bmc.wait(f"it was told to switch off, and its power is still {seen.value}")
        return SeenOff()

    @staticmethod
    def _on(bmc: _Bmc) -> None:
        if bmc.power() is not Power.ON:
            bmc.switch_on()

    @staticmethod
    def _status(bmc: _Bmc) -> Power:
        return bmc.power()


class _Bmc:
    """One conversation with a BMC, in a thread."""

    def __init__(self, device: Redfish, secret: str, until: float, stop: threading.Event) -> None:
        import sushy  # noqa: PLC0415
        import sushy.auth  # noqa: PLC0415

        self._sushy = sushy
        self._device, self._until, self._stop = device, until, stop
        self._root = sushy.Sushy(
            device.address,
            auth=sushy.auth.BasicAuth(device.username, secret),  # a session would have to be ended, and BMCs have few
            verify=device.verify,
            server_side_retries=1,
            server_side_retries_delay=1,
            read_timeout=REQUEST_S,
            connect_timeout=CONNECT_S,
        )
        self._system: Any = self._root.get_system(device.system or self._only())

    def _only(self) -> str:
        found = list(self._root.get_system_collection().members_identities)
        if len(found) != 1:
            names = ", ".join(sorted(found)) or "none"
            raise FenceError(f"{self._device.address} has {len(found)} systems; name one as `system`: {names}")
        return str(found[0])

    def power(self) -> Power:
        self._system.refresh(force=True)
        state = self._system.power_state
        if state == self._sushy.PowerState.OFF:
            return Power.OFF
        return Power.ON if state == self._sushy.PowerState.ON else Power.BETWEEN

    def force_off(self) -> None:
        if self._stop.is_set():
            raise FenceError("given up before the command")
        self._system.reset_system(self._sushy.ResetType.FORCE_OFF)

    def switch_on(self) -> None:
        self._system.reset_system(self._sushy.ResetType.ON)

    def wait(self, why: str) -> None:
        """Wait a little. Raises FenceError with `why` once the limit is over, or nobody waits any longer."""
        if time.monotonic() + POLL_S > self._until or self._stop.wait(POLL_S):
            raise FenceError(f"{why}, after {self._device.limit_s:g} s")
