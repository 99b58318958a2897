"""PCI functions as sysfs tells of them: text in, facts out.

Decides nothing. Every address that leaves this module is canonical ("dddd:bb:dd.f", lower-case hex), so that nobody
else has to know how addresses can be spelled. What is missing or makes no sense becomes "unknown" and a note, never a
guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..ports import Sysfs

DEVICES = "bus/pci/devices"

# PCI Code and ID Assignment Specification, section 1: base class and subclass.
GPU_CLASSES = frozenset({0x0300, 0x0302, 0x0380, 0x1200})  # VGA, 3D, other display, processing accelerator
BRIDGE_CLASSES = frozenset({0x0600, 0x0604, 0x0609})  # host, PCI-to-PCI, semi-transparent PCI-to-PCI
MAX_LINK_WIDTH = 32  # PCI Express Base Specification: lanes of the widest link
MAX_LINK_SPEED_MTS = 1_000_000
MEMORY_BAR = 0x200  # IORESOURCE_MEM, linux/ioport.h
STANDARD_BARS = 6

# Offsets in a type 1 header (PCI-to-PCI Bridge Architecture Specification, 3.2).
HEADER_TYPE, SECONDARY_BUS, SUBORDINATE_BUS = 0x0E, 0x19, 0x1A
# Kernels before 5.15 offer `reset` without saying how: their own choice is the only method then.
KERNELS_CHOICE = "default"

_ADDRESS = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE)
_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)
_DECIMAL = re.compile(r"-?[0-9]{1,9}")
_SPEED = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,2})?) GT/s.*", re.DOTALL)

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function. Where 0 has a meaning, unknown or none is -1. `buses`: the first and last behind a bridge."""

    address: str
    vendor_id: int = 0
    device_id: int = 0
    class_code: int = -1
    driver: str = ""
    iommu_group: int = -1
    numa_node: int = -1
    reset_methods: tuple[str, ...] = ()
    largest_bar_bytes: int = 0
    link_speed_mts: int = 0
    link_width: int = 0
    boot_vga: bool = False
    virtual: bool = False  # an SR-IOV virtual function
    virtual_functions: int = 0  # SR-IOV virtual functions that are switched on
    buses: tuple[int, int] | None = None
    resets_buses: bool = False  # a bridge that can reset what is behind it (Linux 6.13: reset_subordinate)

    @property
    def slot(self) -> str:
        """Domain, bus and device: what functions of one piece of silicon share."""
        return self.address[:-2]

    @property
    def domain(self) -> str:
        """The PCI domain, as text."""
        return self.address.split(":")[0]

    @property
    def bus(self) -> int:
        """The bus number within the domain."""
        return int(self.address.split(":")[1], 16)

    @property
    def is_gpu(self) -> bool:
        """Whether its class is one that GPUs have."""
        return self.class_code >> 8 in GPU_CLASSES

    @property
    def is_bridge(self) -> bool:
        """Whether it carries other devices' traffic, and so is never handed out."""
        return self.class_code >> 8 in BRIDGE_CLASSES


def canonical_address(text: str) -> str | None:
    """`text` as "dddd:bb:dd.f" in lower case; None if it is no PCI address. Domains can be longer: "10000:e1:00.0"."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups(default="0")
    return f"{int(domain, 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function}"


def read_functions(sysfs: Sysfs, note: Note) -> list[Function]:
    """Every PCI function that the tree lists, sorted by address. `note` gets one line for each thing that is odd."""
    functions = []
    for entry in sysfs.list(DEVICES):
        if canonical_address(entry) == entry:
            functions.append(read_function(sysfs, entry, note))
        else:
            note(f"{DEVICES}: entry {entry!r} is no PCI address; left out")
    return sorted(functions, key=lambda function: function.address)


def read_function(sysfs: Sysfs, address: str, note: Note) -> Function:
    """What sysfs says of the function at the canonical `address`."""
    base = f"{DEVICES}/{address}"
    attributes = frozenset(sysfs.list(base))
    header = sysfs.read_bytes(f"{base}/config", 64) or b""

    def parse(name: str, parser: Callable[[str], int | None], unknown: int, *, required: bool = False) -> int:
        text = sysfs.read(f"{base}/{name}")
        if text is None:
            if required or name in attributes:
                note(f"{address}: {name} cannot be read")
            return unknown
        value = parser(text)
        if value is None:
            note(f"{address}: {name} is {text[:40]!r}, which makes no sense")
        return unknown if value is None else value

    return Function(
        address=address,
        vendor_id=parse("vendor", lambda text: _hex(text, 0xFFFF), 0, required=True),
        device_id=parse("device", lambda text: _hex(text, 0xFFFF), 0, required=True),
        class_code=parse("class", lambda text: _hex(text, 0xFFFFFF), -1, required=True),
        driver=sysfs.link_name(f"{base}/driver") or "",
        iommu_group=_group(sysfs, address, note),
        numa_node=parse("numa_node", lambda text: decimal(text, -1, 4095), -1),
        reset_methods=_reset_methods(sysfs, base, attributes),
        largest_bar_bytes=parse("resource", largest_bar, 0),
        link_speed_mts=parse("current_link_speed", link_speed, 0),
        link_width=parse("current_link_width", link_width, 0),
        boot_vga=parse("boot_vga", lambda text: decimal(text, 0, 1), 0) == 1,
        virtual=sysfs.link_name(f"{base}/physfn") is not None,
        virtual_functions=parse("sriov_numvfs", lambda text: decimal(text, 0, 65535), 0),
        buses=_buses(header),
        resets_buses="reset_subordinate" in attributes,
    )


def decimal(text: str, low: int, high: int) -> int | None:
    """A decimal number from `low` to `high`; None for anything else."""
    value = int(text) if _DECIMAL.fullmatch(text) else None
    return value if value is not None and low <= value <= high else None


def link_speed(text: str) -> int | None:
    """Megatransfers a second of "16.0 GT/s PCIe"; 0 where the kernel says that it does not know; None for nonsense."""
    if text.lower().startswith("unknown"):
        return 0
    match = _SPEED.fullmatch(text)
    speed = round(float(match[1]) * 1000) if match else MAX_LINK_SPEED_MTS + 1
    return speed if speed <= MAX_LINK_SPEED_MTS else None


def link_width(text: str) -> int | None:
    """Lanes; 0 for a link that is down (the kernel prints 0, 63 or 255 then); None for nonsense."""
    width = decimal(text, 0, 255)
    return 0 if width in (63, 255) else width if width is not None and width <= MAX_LINK_WIDTH else None


def largest_bar(text: str) -> int | None:
    """Bytes of the largest memory BAR in a `resource` file; None if a line of it cannot be read."""
    largest = 0
    lines = text.splitlines()[:STANDARD_BARS]
    for line in lines:
        numbers = [_hex(word, 2**64 - 1) for word in line.split()]
        if len(numbers) != 3 or None in numbers:
            return None
        start, end, flags = (number or 0 for number in numbers)
        if flags & MEMORY_BAR and end > start:
            largest = max(largest, end - start + 1)
    return min(largest, 2**64 - 1) if lines else None


def _hex(text: str, high: int) -> int | None:
    match = _HEX.fullmatch(text)
    value = int(match[1], 16) if match else high + 1
    return value if value <= high else None


def _group(sysfs: Sysfs, address: str, note: Note) -> int:
    name = sysfs.link_name(f"{DEVICES}/{address}/iommu_group")
    if name is None:
        return -1  # no IOMMU, or it is off: no oddity
    group = decimal(name, 0, 2**31 - 1)
    if group is None:
        note(f"{address}: iommu_group points to {name!r}, which is no group number")
    return -1 if group is None else group


def _reset_methods(sysfs: Sysfs, base: str, attributes: frozenset[str]) -> tuple[str, ...]:
    """As the kernel lists them, best first. Empty: the function has no reset of its own."""
    if (text := sysfs.read(f"{base}/reset_method")) is not None:
        return tuple(text.split())
    return (KERNELS_CHOICE,) if "reset" in attributes else ()


def _buses(header: bytes) -> tuple[int, int] | None:
    """First and last bus behind a bridge, from its config header; None for an endpoint or a bridge not set up."""
    if len(header) <= SUBORDINATE_BUS or header[HEADER_TYPE] & 0x7F != 1:
        return None
    first, last = header[SECONDARY_BUS], header[SUBORDINATE_BUS]
    return (first, last) if 0 < first <= last else None
