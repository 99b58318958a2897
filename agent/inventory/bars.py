"""Memory BARs from a `resource` attribute: text in, facts out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .attributes import hexadecimal

# include/linux/ioport.h
MEMORY, PREFETCHABLE, MEMORY_64, UNSET = 0x200, 0x2000, 0x100000, 0x20000000
BASE_REGISTERS, ROM = 6, 6  # lines 0 to 5 are base registers, line 6 the expansion ROM (include/linux/pci.h)
FOUR_GIB = 1 << 32
HIGHEST = (1 << 64) - 1
MOST_BYTES = 1 << 52  # what the widest physical address of any CPU so far can reach
NO_BAR = " ".join(["0x0000000000000000"] * 3)


@dataclass(frozen=True, slots=True)
class Bar:
    """A memory BAR. `index`: 0 to 5, or ROM; `address`: 0 if firmware and kernel found no place for it."""

    index: int
    size_bytes: int
    address: int
    is_64bit: bool
    prefetchable: bool

    @property
    def is_above_4g(self) -> bool:
        """Whether it sits where only 64-bit decoding reaches."""
        return self.address >= FOUR_GIB


def parse_resource(text: str) -> tuple[tuple[Bar, ...], str]:
    """The memory BARs of a `resource` file by index, and what is wrong with the file; empty: nothing.

    A line that makes no sense (one that ends before it begins, or is larger than any machine's addresses reach) costs
    that BAR only: the lines are numbered by their place.
    """
    lines = text.splitlines()
    bars: list[Bar] = []
    wrong = [] if len(lines) >= BASE_REGISTERS else [f"ends after {len(lines)} of {BASE_REGISTERS} lines"]
    for index, line in enumerate(lines[: ROM + 1]):
        if line == NO_BAR:
            continue
        numbers = [hexadecimal(word, HIGHEST) for word in line.split()[:4]]
        start, end, flags = (number or 0 for number in numbers) if len(numbers) == 3 else (0, 0, 0)
        is_window = start <= end < start + MOST_BYTES and (flags or end == start)
        if len(numbers) != 3 or None in numbers or not is_window:
            wrong.append(f"line {index} is {line[:60]!r}, which makes no sense")
        elif flags & MEMORY and end > start:
            bars.append(_bar(index, start, end, flags))
    return tuple(bars), "; ".join(wrong)


def largest(bars: tuple[Bar, ...]) -> int:
    """Bytes of the largest base register's BAR; 0 if there is none. The ROM is no window to the device's memory."""
    return max((bar.size_bytes for bar in windows(bars)), default=0)


def windows(bars: tuple[Bar, ...]) -> Iterator[Bar]:
    """The BARs proper, without the expansion ROM."""
    return (bar for bar in bars if bar.index < BASE_REGISTERS)


def _bar(index: int, start: int, end: int, flags: int) -> Bar:
    return Bar(
        index,
        size_bytes=end - start + 1,
        address=0 if flags & UNSET else start,
        is_64bit=bool(flags & MEMORY_64),
        prefetchable=bool(flags & PREFETCHABLE),
    )
