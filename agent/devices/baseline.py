"""What a device unit looked like at first sight, and how it differs from that now.

Decides whether two sights of a function are the same device in the same state; never touches the device beyond reading
it. The offsets are those of a type 0 header (PCI Local Bus Specification 3.0, 6.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from .pci import DEVICES, read_function

HEADER_BYTES = 64
COMMAND, BARS, ROM_BAR = 0x04, 0x10, 0x30
DEAD = 0xFFFF  # what a read of a device that does not answer returns, whichever the register


class DeviceError(Exception):
    """A device is not as it has to be: which function, which field, what was seen there and what was expected."""

    def __init__(self, address: str, field: str, seen: str, expected: str) -> None:
        super().__init__(f"{address}: {field} is {seen}, expected {expected}")
        self.address, self.field, self.seen, self.expected = address, field, seen, expected


class NotClean(DeviceError):
    """The unit could not be reset, or not be proven clean. It must be quarantined; str() is the reason."""


class BindFailed(DeviceError):
    """A function could not be given to the driver."""


@dataclass(frozen=True, slots=True)
class FunctionBaseline:
    """One function at first sight. `bars`: the six BAR registers and the ROM BAR; `resources`: the kernel's ranges."""

    address: str
    vendor_id: int
    device_id: int
    class_code: int
    command: int
    bars: tuple[int, ...]
    resources: tuple[str, ...]
    link_speed_mts: int
    link_width: int


@dataclass(frozen=True, slots=True)
class Baseline:
    """A whole unit at first sight, functions in the order of their addresses."""

    functions: tuple[FunctionBaseline, ...]

    def to_dict(self) -> dict[str, Any]:
        """Only lists, strings and integers, for JSON."""
        return {"functions": [asdict(function) for function in self.functions]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Baseline:
        """The inverse of `to_dict`. Raises ValueError if the data is none of its results."""
        try:
            return cls(tuple(_function_from(entry) for entry in data["functions"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a baseline: {error!r}") from error


def first_sight(sysfs: Sysfs, unit: inventory_pb2.Unit) -> Baseline:
    """The unit as it is now, to be compared with later.

    Call it once, with the unit bound to vfio-pci, unused and freshly reset: whatever the device carries now passes for
    clean ever after. Raises NotClean if a function does not answer.
    """
    return Baseline(tuple(sight(sysfs, function.address) for function in unit.functions))


def sight(sysfs: Sysfs, address: str) -> FunctionBaseline:
    """One function as it is now. Ids and command come from its config space, not from what the kernel remembers."""
    header = sysfs.read_bytes(f"{DEVICES}/{address}/config", HEADER_BYTES)
    if header is None or len(header) < HEADER_BYTES:
        raise NotClean(address, "config space", "unreadable" if header is None else "cut short", "a 64-byte header")
    vendor, device, command = struct.unpack_from("<HHH", header)
    if vendor == DEAD:
        raise NotClean(address, "config space", "0xff throughout: the device does not answer", "a header")
    known = read_function(sysfs, address, _ignore)
    return FunctionBaseline(
        address=address,
        vendor_id=vendor,
        device_id=device,
        class_code=int.from_bytes(header[0x09:0x0C], "little"),
        command=command,
        bars=(*struct.unpack_from("<6I", header, BARS), *struct.unpack_from("<I", header, ROM_BAR)),
        resources=tuple((sysfs.read(f"{DEVICES}/{address}/resource") or "").splitlines()),
        link_speed_mts=known.link_speed_mts,
        link_width=known.link_width,
    )


def compare(first: FunctionBaseline, now: FunctionBaseline) -> None:
    """Raise NotClean for the first field in which `now` is not the device of first sight.

    A link may be faster than at first sight, for GPUs let theirs slow down while idle, but neither slower nor narrower.
    """
    for field, seen, expected in _differences(first, now):
        raise NotClean(first.address, field, seen, expected)


def _differences(first: FunctionBaseline, now: FunctionBaseline) -> Iterator[tuple[str, str, str]]:
    for field, digits in (("vendor_id", 4), ("device_id", 4), ("class_code", 6), ("command", 4)):
        seen, expected = getattr(now, field), getattr(first, field)
        if seen != expected:
            yield field.replace("_", " "), f"0x{seen:0{digits}x}", f"0x{expected:0{digits}x}"
    for index, (seen, expected) in enumerate(zip(now.bars, first.bars, strict=True)):
        if seen != expected:
            yield f"BAR {index}" if index < 6 else "ROM BAR", f"0x{seen:08x}", f"0x{expected:08x}"
    if now.resources != first.resources:
        yield "resource", repr(now.resources), repr(first.resources)
    if now.link_width < first.link_width:
        yield "link width", f"x{now.link_width}", f"x{first.link_width}"
    if now.link_speed_mts < first.link_speed_mts:
        yield "link speed", f"{now.link_speed_mts} MT/s", f"{first.link_speed_mts} MT/s"


def _function_from(entry: Mapping[str, Any]) -> FunctionBaseline:
    """Checked field by field: a damaged baseline must not come to count as "nothing to compare"."""
    values = {}
    for field in fields(FunctionBaseline):
        value = entry[field.name]
        if field.name in ("bars", "resources"):
            item: type = int if field.name == "bars" else str
            if not isinstance(value, list | tuple) or not all(type(one) is item for one in value):
                raise ValueError(f"not a baseline: {field.name} is {value!r}")
            value = tuple(value)
        elif type(value) is not (str if field.name == "address" else int):
            raise ValueError(f"not a baseline: {field.name} is {value!r}")
        values[field.name] = value
    if len(values["bars"]) != 7:
        raise ValueError(f"not a baseline: {len(values['bars'])} BARs")
    return FunctionBaseline(**values)


def _ignore(note: str) -> None:
    """Notes are the inventory's; here a value that cannot be read shows as a difference."""
