"""What the leader needs of the device that switches a host off.

A device says "off" only when it has seen it, after the command. An answer to the command is no such thing: BMCs
acknowledge what they then do not do.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Power(Enum):
    """The power state that was seen."""

    ON = "on"
    OFF = "off"
    BETWEEN = "between"  # on its way, or a state that is neither


@dataclass(frozen=True, slots=True)
class SeenOff:
    """The power was seen to be off. `already`: before anything was done."""

    already: bool = False


class FenceError(Exception):
    """Nothing is proven. The message is for operators: what was seen and, where known, what to do; never a secret."""


class FenceDevice(Protocol):
    """Switches one host. Every call ends within a limit of the device's own, and may be made again at any time."""

    @property
    def kind(self) -> str:
        """For people, e.g. "fence_ipmilan" or "redfish"."""

    @property
    def power_on(self) -> bool:
        """Whether a host shall be switched on again once it was seen off."""

    async def off(self) -> SeenOff:
        """Cut the power, at once, and see that it is off. Raises FenceError if that was not seen."""

    async def on(self) -> None:
        """Ask for power. Raises FenceError."""

    async def status(self) -> Power:
        """Look, and change nothing. Raises FenceError."""
