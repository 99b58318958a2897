"""What only a function's config space tells: the buses behind a bridge, and the device serial number.

Read sparingly, and only registers that a header or a list of capabilities points to: a read from user space waits while
the kernel resets the function (pci_cfg_access_lock), can wake it from D3cold, and undefined registers lock some up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from ..ports import Sysfs

# Offsets in a type 1 header (PCI-to-PCI Bridge Architecture Specification, 3.2).
HEADER_BYTES = 64
HEADER_TYPE, SECONDARY_BUS, SUBORDINATE_BUS = 0x0E, 0x19, 0x1A
# PCI Express Base Specification, 7.6.3 (extended capabilities) and 7.9.3 (device serial number).
EXTENDED, SERIAL_NUMBER = 0x100, 0x0003
MOST_CAPABILITIES = (4096 - EXTENDED) // 8  # none is shorter: more of them is a loop
NO_ANSWER = 0xFFFF_FFFF
NO_SERIALS = frozenset({"0" * 16, "f" * 16})  # left blank by the vendor, or not answered

_SERIAL = re.compile(r"[0-9a-f]{2}(?:-[0-9a-f]{2}){7}", re.IGNORECASE)

ReadAt = Callable[[int, int], bytes]
"""Offset and number of bytes to the bytes there; fewer or none where the config space ends for us."""


def bridge_buses(header: bytes) -> tuple[int, int] | None:
    """First and last bus behind a bridge, from its config header; None for an endpoint or a bridge not set up."""
    if len(header) <= SUBORDINATE_BUS or header[HEADER_TYPE] & 0x7F != 1:
        return None
    first, last = header[SECONDARY_BUS], header[SUBORDINATE_BUS]
    return (first, last) if 0 < first <= last else None


def serial_number(read: ReadAt) -> str | None:
    """The device serial number, 16 hex digits; empty if the function has none; None if that cannot be found out."""
    offset = EXTENDED
    for _ in range(MOST_CAPABILITIES):
        header = int.from_bytes(word, "little") if len(word := read(offset, 4)) == 4 else NO_ANSWER
        if header == NO_ANSWER:
            # A device of 256 bytes, of conventional PCI, has no such capability; one of which we see 64 may have it.
            return "" if offset == EXTENDED and not word and read(HEADER_BYTES, 4) else None
        if header & 0xFFFF == SERIAL_NUMBER:
            low, high = read(offset + 4, 4), read(offset + 8, 4)
            digits = f"{int.from_bytes(low + high, 'little'):016x}"
            return None if len(low + high) != 8 else "" if digits in NO_SERIALS else digits
        offset = header >> 20 & 0xFFC
        if offset < EXTENDED:
            return ""
    return None


class Serials:
    """Serial numbers, each asked for once: they do not change, and the device may be busy, asleep or gone later."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, sysfs: Sysfs, base: str, address: str) -> str | None:
        """The serial number of the function whose directory is `base`, as `serial_number` has it."""
        if (known := self._known.get(address)) is not None:
            return known
        text = sysfs.read(f"{base}/serial_number")  # from Linux 6.18, for root; waits for no reset
        if text is not None and _SERIAL.fullmatch(text):
            digits = text.replace("-", "").lower()
            found: str | None = "" if digits in NO_SERIALS else digits
        else:
            found = serial_number(lambda offset, count: sysfs.read_bytes(f"{base}/config", count, offset) or b"")
        if found is not None:
            self._known[address] = found
        return found

    def keep(self, addresses: Collection[str]) -> None:
        """Forget all but these: what comes back at the address of one that went may be another device."""
        self._known = {address: serial for address, serial in self._known.items() if address in addresses}
