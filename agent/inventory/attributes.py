"""Single sysfs attributes: each parser takes text and returns a value, or None for what makes no sense.

None is never a fact: whoever asked turns it into "unknown" and a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from ..ports import Sysfs

MAX_LINK_WIDTH = 32  # PCI Express Base Specification: lanes of the widest link
MAX_LINK_SPEED_MTS = 1_000_000
NO_LINK_WIDTHS = frozenset({63, 255})  # what the kernel prints when the register reads all ones
# PCI_POWER_NAMES of drivers/pci/pci-driver.c; "unknown" and "error" are the kernel's own words for not knowing.
POWER_STATES = frozenset({"D0", "D1", "D2", "D3hot", "D3cold"})
POWER_UNKNOWN = frozenset({"unknown", "error"})

_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)
_REGISTER = re.compile(r"0x([0-9a-f]{4,6})", re.IGNORECASE)
_DECIMAL = re.compile(r"-?[0-9]{1,10}")
_SPEED = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,2})?) GT/s.*", re.DOTALL)
_METHOD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_MAX_METHODS = 16  # PCI_NUM_RESET_METHODS is 8 in Linux 6.13

Note = Callable[[str], None]
T = TypeVar("T")


class Attributes:
    """The attributes of one PCI function. What is listed but cannot be read or makes no sense is noted."""

    def __init__(self, sysfs: Sysfs, base: str, address: str, note: Note) -> None:
        self._sysfs = sysfs
        self._address = address
        self._note = note
        self.base = base
        self.names = frozenset(sysfs.list(base))
        if not self.names:
            note(f"{address}: its directory cannot be listed; most of it is unknown")

    def get(self, name: str, parser: Callable[[str], T | None], unknown: T) -> T:
        """The attribute's value; `unknown` if the function does not have it, or with a note if it is no use."""
        if name not in self.names:
            return unknown
        what = f"{self._address}: {name}"
        return parsed(self._sysfs, f"{self.base}/{name}", parser, unknown, self._note, what=what)


def parsed(sysfs: Sysfs, path: str, parser: Callable[[str], T | None], unknown: T, note: Note, *, what: str = "") -> T:
    """The value of a file that ought to be there; `unknown`, with a note that begins with `what`, if it is no use."""
    what = what or path
    text = sysfs.read(path)
    if text is None:
        note(f"{what} cannot be read")
        return unknown
    value = parser(text)
    if value is None:
        note(f"{what} is {text[:40]!r}, which makes no sense")
        return unknown
    return value


def decimal(text: str, low: int, high: int) -> int | None:
    """A decimal number from `low` to `high`; None for anything else."""
    value = int(text) if _DECIMAL.fullmatch(text) else None
    return value if value is not None and low <= value <= high else None


def hexadecimal(text: str, high: int) -> int | None:
    """A hexadecimal number from 0 to `high`, with or without "0x"; None for anything else."""
    match = _HEX.fullmatch(text)
    value = int(match[1], 16) if match else high + 1
    return value if value <= high else None


def register(text: str, digits: int) -> int | None:
    """An id or a class as the kernel prints it: "0x" and just so many digits (drivers/pci/pci-sysfs.c).

    None for fewer or more, of which half may be missing, and for all ones, which is no answer.
    """
    match = _REGISTER.fullmatch(text)
    value = int(match[1], 16) if match and len(match[1]) == digits else None
    return None if value == (1 << 4 * digits) - 1 else value


def link_speed(text: str) -> int | None:
    """Megatransfers a second of "16.0 GT/s PCIe"; 0 where the kernel says that it does not know; None for nonsense."""
    if text.lower().startswith("unknown"):
        return 0
    match = _SPEED.fullmatch(text)
    speed = round(float(match[1]) * 1000) if match else MAX_LINK_SPEED_MTS + 1
    return speed if speed <= MAX_LINK_SPEED_MTS else None


def link_width(text: str) -> int | None:
    """Lanes; 0 for a link that is down or a device that does not answer; None for nonsense."""
    width = decimal(text, 0, 255)
    return 0 if width in NO_LINK_WIDTHS else width if width is not None and width <= MAX_LINK_WIDTH else None


def power_state(text: str) -> str | None:
    """The state's name, such as "D3hot"; empty where the kernel does not know; None for nonsense."""
    return text if text in POWER_STATES else "" if text in POWER_UNKNOWN else None


def reset_methods(text: str) -> tuple[str, ...] | None:
    """Names as the kernel lists them, best first; () for an empty file; None for what is no list of names."""
    names = text.split()
    return tuple(names) if len(names) <= _MAX_METHODS and all(map(_METHOD.fullmatch, names)) else None
