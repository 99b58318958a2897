"""What a device unit looked like at first sight, and how it differs from that now.

Decides whether two sights of a function are the same device in the same state; never touches the device beyond waking
and reading it. The offsets are those of a type 0 header (PCI Local Bus Specification 3.0, 6.1).

All sights are taken in one condition: bound to vfio-pci, open to nobody, awake. vfio-pci lets a device that nobody has
open go to D3hot (vfio_pci_core_register_device, drivers/vfio/pci/vfio_pci_core.c), so "D3hot" alone is no fault; but
one that does not wake up is broken. Since Linux 5.19 that is runtime power management, and `power/control` wakes the
device. Before, vfio-pci does it by itself, the kernel never says "suspended", and nothing in sysfs can wake the device:
there D3hot is taken as it is.

Of the command register only some bits mean anything:
- bus mastering, which lets the device write to memory: must not be on if it was not at first sight;
- memory decoding: must not be off if it was on, for then the kernel's restore of the config space failed. It may be on
  if it was off, since vfio-pci's first user switches it on for good (pci_enable_device);
- parity error response and SERR#, the host's settings: must be the same.
INTx disable is left as it is by whoever used interrupts last, I/O decoding is the VGA arbiter's, and the others are not
PCIe's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpupool.v1 import inventory_pb2

from ..inventory.attributes import link_speed, link_width, register
from ..inventory.pci import DEVICES
from ..ports import Sysfs

HEADER_BYTES = 64
COMMAND, CLASS, BIST, BARS, ROM_BAR = 0x04, 0x08, 0x0F, 0x10, 0x30
MEMORY_DECODE, BUS_MASTER, PARITY, SERR = 0x0002, 0x0004, 0x0040, 0x0100  # bits of the command register
MEM_64 = 0x100000  # IORESOURCE_MEM_64, linux/ioport.h
ROM_ENABLE = 0x1  # of the ROM BAR: whoever reads the ROM switches it
AWAKE = ("D0", "unknown", "")  # "unknown": the kernel has not asked yet; empty: it does not tell (before Linux 5.11)
SUSPENDED, OLD_VFIO_IDLE = "suspended", "D3hot"
DEAD = 0xFFFF  # what a read of a device that does not answer returns, whichever the register


class DeviceError(Exception):
    """A device is not as it has to be: which function, which field, what was seen there and what was expected."""

    def __init__(self, address: str, field: str, seen: str, expected: str) -> None:
        super().__init__(f"{address}: {field} is {seen}, expected {expected}")
        self.address, self.field, self.seen, self.expected = address, field, seen, expected


class NotClean(DeviceError):
    """The unit could not be reset, or not be proven clean. It must be quarantined; str() is the reason."""


class Final(NotClean):
    """Not clean, and nothing more may be tried: a call hangs in the kernel, or the operator's command said no."""


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
    """One function as it is now. Ids and command come from its config space, not from what the kernel remembers.

    Raises NotClean if it does not answer or does not wake up.
    """
    with awake(sysfs, address):
        return _sight(sysfs, address)


@contextmanager
def awake(sysfs: Sysfs, address: str) -> Iterator[None]:
    """Keep the function in D0 meanwhile. Raises NotClean if that cannot be done; may block as a write does."""
    power = f"{DEVICES}/{address}/power"
    suspended = sysfs.read(f"{power}/runtime_status") == SUSPENDED
    if sysfs.read(f"{power}/control") != "auto":  # awake already, or a kernel without power management
        _require_awake(sysfs, address, suspended=suspended)
        yield
        return
    try:
        sysfs.write(f"{power}/control", "on")
    except OSError as error:
        raise NotClean(address, "power state", f"not to be changed ({error.strerror or error})", "D0") from error
    try:
        _require_awake(sysfs, address, suspended=suspended)
        yield
    finally:
        with suppress(OSError):  # it stays awake, which costs power and nothing else
            sysfs.write(f"{power}/control", "auto")


def _require_awake(sysfs: Sysfs, address: str, *, suspended: bool) -> None:
    state = sysfs.read(f"{DEVICES}/{address}/power_state") or ""
    idle = state == OLD_VFIO_IDLE and not suspended and sysfs.read("module/vfio_pci/parameters/disable_idle_d3") != "Y"
    if state not in AWAKE and not idle:
        raise NotClean(address, "power state", state, "D0")


def _sight(sysfs: Sysfs, address: str) -> FunctionBaseline:
    header = sysfs.read_bytes(f"{DEVICES}/{address}/config", HEADER_BYTES)
    if header is None or len(header) < HEADER_BYTES:
        raise NotClean(address, "config space", "unreadable" if header is None else "cut short", "a 64-byte header")
    vendor, device, command = struct.unpack_from("<HHH", header)
    if vendor == DEAD and header[CLASS:BIST] != b"\xff" * (BIST - CLASS):
        vendor, device = _ids_of_virtual(sysfs, address)
    if vendor == DEAD:
        raise NotClean(address, "config space", "0xff throughout: the device does not answer", "a header")
    return FunctionBaseline(
        address=address,
        vendor_id=vendor,
        device_id=device,
        class_code=int.from_bytes(header[0x09:0x0C], "little"),
        command=command,
        bars=(*struct.unpack_from("<6I", header, BARS), *struct.unpack_from("<I", header, ROM_BAR)),
        resources=tuple((sysfs.read(f"{DEVICES}/{address}/resource") or "").splitlines()),
        link_speed_mts=link_speed(sysfs.read(f"{DEVICES}/{address}/current_link_speed") or "") or 0,
        link_width=link_width(sysfs.read(f"{DEVICES}/{address}/current_link_width") or "") or 0,
    )


def is_there(sysfs: Sysfs, address: str) -> bool:
    """Whether the kernel has the function. Its vendor is the least to ask for: no lock, and no long directory."""
    return sysfs.read(f"{DEVICES}/{address}/vendor") is not None or bool(sysfs.list(f"{DEVICES}/{address}"))


def is_virtual(sysfs: Sysfs, address: str) -> bool:
    """Whether the function is an SR-IOV virtual one."""
    return sysfs.link_name(f"{DEVICES}/{address}/physfn") is not None


def _ids_of_virtual(sysfs: Sysfs, address: str) -> tuple[int, int]:
    """Ids of an SR-IOV virtual function, whose own registers read 0xffff (PCI Express Base, 9.3.4.1); else no ids."""
    if not is_virtual(sysfs, address):
        return DEAD, DEAD
    vendor, device = (register(sysfs.read(f"{DEVICES}/{address}/{name}") or "", 4) for name in ("vendor", "device"))
    return (DEAD if vendor is None else vendor), (DEAD if device is None else device)


def compare(first: FunctionBaseline, now: FunctionBaseline) -> None:
    """Raise NotClean for the first field in which `now` is not the device of first sight.

    A link may be faster than at first sight, for GPUs let theirs slow down while idle, but neither slower nor narrower.
    """
    for field, seen, expected in _differences(first, now, _places):
        raise NotClean(first.address, field, seen, expected)


def compare_moved(first: FunctionBaseline, now: FunctionBaseline) -> None:
    """As `compare`, for a function that the kernel found anew and may have given other addresses.

    Its BARs must be of the same kinds and sizes, and its registers hold what the kernel gave it.
    """
    for field, seen, expected in _differences(first, now, _sizes):
        raise NotClean(first.address, field, seen, expected)


def _differences(
    first: FunctionBaseline,
    now: FunctionBaseline,
    places: Callable[[FunctionBaseline, FunctionBaseline], Iterator[tuple[str, str, str]]],
) -> Iterator[tuple[str, str, str]]:
    """Each field that differs, with what was seen and what expected. `places` compares the addresses."""
    for field, digits in (("vendor_id", 4), ("device_id", 4), ("class_code", 6)):
        seen, expected = getattr(now, field), getattr(first, field)
        if seen != expected:
            yield field.replace("_", " "), f"0x{seen:0{digits}x}", f"0x{expected:0{digits}x}"
    gained, lost = now.command & ~first.command, first.command & ~now.command
    if gained & BUS_MASTER or lost & MEMORY_DECODE or (gained | lost) & (PARITY | SERR):
        yield "command", f"0x{now.command:04x}", f"0x{first.command:04x}"
    yield from places(first, now)
    if now.link_width < first.link_width:
        yield "link width", f"x{now.link_width}", f"x{first.link_width}"
    if now.link_speed_mts < first.link_speed_mts:
        yield "link speed", f"{now.link_speed_mts} MT/s", f"{first.link_speed_mts} MT/s"


def _places(first: FunctionBaseline, now: FunctionBaseline) -> Iterator[tuple[str, str, str]]:
    for index, (seen, expected) in enumerate(zip(_registers(now), _registers(first), strict=True)):
        if seen != expected:
            yield f"BAR {index}" if index < 6 else "ROM BAR", f"0x{seen:08x}", f"0x{expected:08x}"
    if now.resources != first.resources:
        yield "resource", repr(now.resources), repr(first.resources)


def _sizes(first: FunctionBaseline, now: FunctionBaseline) -> Iterator[tuple[str, str, str]]:
    seen_all, expected_all = [_ranges(sight) for sight in (now, first)]
    if (seen := [(size, flags) for _, size, flags in seen_all]) != (
        expected := [(size, flags) for _, size, flags in expected_all]
    ):
        yield "resource", repr(seen), repr(expected)
        return
    for index, ((start, size, flags), (start_before, _, _)) in enumerate(zip(seen_all[:6], expected_all, strict=False)):
        wide = bool(flags & MEM_64) and index < 5
        register, before = _register(now, index, wide=wide), _register(first, index, wide=wide)
        moved = before + start - start_before
        if size and register != moved:
            yield f"BAR {index}", f"0x{register:08x}", f"0x{moved:08x}"


def _register(sight: FunctionBaseline, index: int, *, wide: bool) -> int:
    return sight.bars[index] | (sight.bars[index + 1] << 32 if wide else 0)


def _ranges(sight: FunctionBaseline) -> list[tuple[int, int, int]]:
    """Start, size and flags of each line of `resources`; size 0 where there is nothing or nothing that can be read."""
    ranges = []
    for line in sight.resources:
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            start = end = flags = 0
        ranges.append((start, end - start + 1 if end else 0, flags))
    return ranges


def _registers(sight: FunctionBaseline) -> tuple[int, ...]:
    return (*sight.bars[:6], sight.bars[6] & ~ROM_ENABLE)


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
