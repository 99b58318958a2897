"""Memory windows of GPUs: whether the firmware found room for them, and above 4 GiB."""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.v1 import inventory_pb2

from .facts import Facts
from .model import PROBLEM, WARNING, Advice, Found, ok

ABOVE_4G = "above-4g"
FOUR_GIB = 1 << 32
LARGE_BYTES = 256 << 20  # all devices together share less than 4 GiB below 4 GiB: a window of this size crowds it
ROM = 6

_ADVICE = (
    'Switch on "Above 4G Decoding" (also: "Memory Mapped I/O above 4GB", "64-bit BAR") in the firmware\'s set-up, '
    "give\n"
    "MMIO High Size or Base room for all cards, and switch off CSM. Then power the host off and on."
)


def bars(facts: Facts) -> Iterator[Found]:
    """Windows without a place, and large 64-bit ones below 4 GiB."""
    homeless, low = [], []
    for unit in facts.units:
        for function in unit.functions:
            homeless += [(unit.id, function, bar) for bar in function.bars if not bar.address and _counts(bar)]
            low += [(unit.id, function, bar) for bar in function.bars if _is_low(bar)]
    if homeless:
        yield Found(
            ABOVE_4G,
            PROBLEM,
            f"without a place in the address space: {_list(homeless)}",
            "The device does not work: no driver can reach its memory, in the host or in a VM.",
            Advice(any=_ADVICE),
            units=_units(homeless),
            reboot=True,
        )
    if low:
        yield Found(
            ABOVE_4G,
            WARNING,
            f"64-bit windows that were put below 4 GiB: {_list(low)}",
            "There is little room below 4 GiB: one more card, a hotplug or a resized window finds none, and does not "
            "work.",
            Advice(any=_ADVICE),
            units=_units(low),
            reboot=True,
        )
    if not homeless and not low:
        sizes = [bar.bytes for unit in facts.units for f in unit.functions for bar in f.bars if _counts(bar)]
        yield ok(
            ABOVE_4G, f"every window has its place; the largest is {size(max(sizes))}" if sizes else "no windows known"
        )


Place = tuple[str, inventory_pb2.PciFunction, inventory_pb2.Bar]


def _counts(bar: inventory_pb2.Bar) -> bool:
    return bool(bar.bytes) and bar.index != ROM  # ROMs are given a place only while they are read


def _is_low(bar: inventory_pb2.Bar) -> bool:
    return _counts(bar) and bar.is_64bit and bar.bytes >= LARGE_BYTES and 0 < bar.address < FOUR_GIB


def _list(places: list[Place]) -> str:
    return ", ".join(f"{function.address} BAR {bar.index} ({size(bar.bytes)})" for _, function, bar in places)


def _units(places: list[Place]) -> tuple[str, ...]:
    return tuple(sorted({unit for unit, _, _ in places}))


def size(count: int) -> str:
    """Bytes for people: "16 KiB", "256 MiB", "128 GiB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} B"
