"""PCI functions of simulated hosts: their config space and their sysfs attributes.

Constants are the specifications' (PCI Local Bus 3.0, chapter 6; PCI Express Base, 7.5) and those of Linux.
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

from ..inventory import gpus

MIB = 1024 * 1024
MEMORY_DECODE, BUS_MASTER = 0x2, 0x4  # bits of the command register
MEM32, MEM64_PREFETCH = 0x40200, 0x14220C  # resource flags, as the kernel prints them
BAR_32, BAR_64_PREFETCH = 0x0, 0xC  # low bits of a BAR register
RESOURCE_LINES = 13  # six BARs, the ROM and six SR-IOV BARs
GPU_METHODS, AUDIO_METHODS, NIC_METHODS = "flr", "pm", "flr bus"  # the kernel lists "bus" only for a lone function
WINDOW_32 = 0x8000_0000  # where 32-bit BARs lie, 8 MiB for each bus: all 256 buses fit below 4 GiB
WINDOW_64 = 0x20_0000_0000_00  # where 64-bit BARs lie, 1 TiB for each bus
MELLANOX = 0x15B3
NIC_VIRTUAL_FUNCTIONS = 16
EXTENDED, SERIAL_CAPABILITY = 0x100, 0x0001_0003  # config offset; version 1 of capability 3, the only one
SUBSYSTEM = 0x1533  # of every function, beside its own vendor
PRISTINE = (
    "config",
    "current_link_speed",
    "current_link_width",
    "reset_method",
)  # what a reset, or "default", restores


@dataclass(frozen=True, slots=True)
class Place:
    """Where a card sits: root port `slot` on `root_bus`, the bus behind it, the NUMA node, the card's IOMMU group."""

    root_bus: int
    slot: int
    bus: int
    node: int
    group: int

    @property
    def below(self) -> str:
        """The sysfs directory of the root port."""
        return f"devices/pci0000:{self.root_bus:02x}/0000:{self.root_bus:02x}:{self.slot:02x}.0"


@dataclass(frozen=True, slots=True)
class SimFunction:
    """One function to be written. `bars`: (register, size, is 64-bit); `parent`: the sysfs directory above its own."""

    address: str
    parent: str
    vendor_id: int
    device_id: int
    class_code: int
    numa_node: int
    iommu_group: int
    driver: str = ""  # bound from the start, and again by a probe without override
    bars: tuple[tuple[int, int, bool], ...] = ()
    reset_methods: str = ""
    link: tuple[str, str] = ("16.0 GT/s PCIe", "16")  # speed and width
    config_bytes: int = 256
    multifunction: bool = False
    secondary_bus: int = 0  # of a bridge
    subordinate_bus: int = 0  # of a bridge; 0: the secondary bus
    serial: int = 0  # device serial number; 0: none. It takes a config space of more than 256 bytes
    sriov_total: int = 0
    virtual_functions: tuple[str, ...] = ()  # addresses of those that are on
    physical_function: str = ""  # of a virtual function: its parent's address
    extra: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def bus(self) -> int:
        """Its bus number."""
        return int(self.address.split(":")[1], 16)

    def bar_address(self, register: int, size: int, *, is_64: bool) -> int:
        """Where the BAR lies: aligned to its size, apart from all other BARs of the host."""
        function = int(self.address[-1]) * 4 * MIB  # functions of one slot share the bus's window
        base = (
            WINDOW_64 + (self.bus << 40) + register * (1 << 37) if is_64 else WINDOW_32 + self.bus * 8 * MIB + function
        )
        return base // size * size

    def bar_flags(self, *, is_64: bool) -> tuple[int, int]:
        """Resource flags for sysfs, and the low bits of the register."""
        return (MEM64_PREFETCH, BAR_64_PREFETCH) if is_64 else (MEM32, BAR_32)

    @property
    def last_bus(self) -> int:
        """Of a bridge: the last bus behind it."""
        return self.subordinate_bus or self.secondary_bus


def bridge_function(place: Place) -> SimFunction:
    """A root port that leads to the place's bus and can reset it (Linux 6.13), in the IOMMU group before its card's."""
    return SimFunction(
        address=f"0000:{place.root_bus:02x}:{place.slot:02x}.0",
        parent=f"devices/pci0000:{place.root_bus:02x}",
        vendor_id=gpus.INTEL,
        device_id=0x347A,
        class_code=0x060400,
        numa_node=place.node,
        iommu_group=place.group - 1,
        driver="pcieport",
        secondary_bus=place.bus,
        extra={"reset_subordinate": ""},
    )


def gpu_function(model: str, place: Place, serial: int = 0) -> SimFunction:
    """The GPU proper. Its second BAR is the power of two that holds all of its memory, as on datacentre cards."""
    vendor, device = gpus.ids_of(model)
    memory = max(gpus.identify(vendor, device).memory_mib, 256) * MIB
    return SimFunction(
        address=f"0000:{place.bus:02x}:00.0",
        parent=place.below,
        vendor_id=vendor,
        device_id=device,
        class_code={gpus.NVIDIA: 0x030200, gpus.AMD: 0x120000}.get(vendor, 0x038000),
        numa_node=place.node,
        iommu_group=place.group,
        bars=((0, 4 * MIB, False), (1, 1 << (memory - 1).bit_length(), True), (3, 32 * MIB, True)),
        reset_methods=GPU_METHODS,
        config_bytes=4096,
        multifunction=True,
        serial=serial,
        extra={"boot_vga": "0"},
    )


def audio_function(place: Place) -> SimFunction:
    """The GPU's companion, which the host's sound driver takes at boot as on real machines."""
    return SimFunction(
        address=f"0000:{place.bus:02x}:00.1",
        parent=place.below,
        vendor_id=gpus.NVIDIA,
        device_id=0x1AEF,
        class_code=0x040300,
        numa_node=place.node,
        iommu_group=place.group,
        driver="snd_hda_intel",
        bars=((0, 16384, False),),
        reset_methods=AUDIO_METHODS,
        multifunction=True,
    )


def nic_function(place: Place, serial: int = 0) -> SimFunction:
    """An ordinary network card, the host's own, with no virtual functions switched on."""
    return SimFunction(
        address=f"0000:{place.bus:02x}:00.0",
        parent=place.below,
        vendor_id=MELLANOX,
        device_id=0x101D,
        class_code=0x020000,
        numa_node=place.node,
        iommu_group=place.group,
        driver="mlx5_core",
        bars=((0, 32 * MIB, True),),
        reset_methods=NIC_METHODS,
        link=("16.0 GT/s PCIe", "8"),
        config_bytes=4096,
        serial=serial,
        sriov_total=NIC_VIRTUAL_FUNCTIONS,
    )


def config_space(function: SimFunction) -> bytes:
    """The function's config space as firmware leaves it: BARs set, memory decoding on, bus mastering off."""
    space = bytearray(function.config_bytes)
    is_bridge = bool(function.secondary_bus)
    header = (1 if is_bridge else 0) | (0x80 if function.multifunction else 0)
    struct.pack_into("<HHHH", space, 0x00, function.vendor_id, function.device_id, MEMORY_DECODE, 0x0010)
    struct.pack_into("<I", space, 0x08, function.class_code << 8 | 0xA1)
    space[0x0E] = header
    if is_bridge:
        space[0x18:0x1B] = bytes((function.bus, function.secondary_bus, function.last_bus))
    for register, size, is_64 in function.bars:
        base = function.bar_address(register, size, is_64=is_64) | function.bar_flags(is_64=is_64)[1]
        struct.pack_into("<Q" if is_64 else "<I", space, 0x10 + 4 * register, base)
    if not is_bridge:
        struct.pack_into("<HH", space, 0x2C, function.vendor_id, SUBSYSTEM)
    space[0x34] = 0x60
    struct.pack_into("<BBHI", space, 0x60, 0x10, 0x00, 0x0002, int("flr" in function.reset_methods) << 28)
    if function.serial:
        struct.pack_into("<IQ", space, EXTENDED, SERIAL_CAPABILITY, function.serial)
    return bytes(space)


def resource_text(function: SimFunction) -> str:
    """The `resource` attribute: start, end and flags of each BAR, zeros for what is not there."""
    lines = ["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * RESOURCE_LINES
    for register, size, is_64 in function.bars:
        start = function.bar_address(register, size, is_64=is_64)
        flags = function.bar_flags(is_64=is_64)[0]
        lines[register] = f"0x{start:016x} 0x{start + size - 1:016x} 0x{flags:016x}"
    return "\n".join(lines) + "\n"


def write_function(root: Path, function: SimFunction) -> None:
    """Write the function's directory, the links to and from it, and its pristine copy."""
    home = root / function.parent / function.address
    home.mkdir(parents=True)
    (home / "config").write_bytes(config_space(function))
    attributes = _attributes(function)
    for name, text in attributes.items():
        (home / name).write_text(f"{text}\n")
    pristine = root / ".pristine" / function.address
    pristine.mkdir()
    for name in PRISTINE:
        if (home / name).exists():
            shutil.copy(home / name, pristine / name)
    (pristine / "driver").write_text(function.driver)
    _link(root, function, home)


def _attributes(function: SimFunction) -> dict[str, str]:
    speed, width = function.link
    attributes = {
        "vendor": f"0x{function.vendor_id:04x}",
        "device": f"0x{function.device_id:04x}",
        "class": f"0x{function.class_code:06x}",
        "resource": resource_text(function).rstrip(),
        "numa_node": str(function.numa_node),
        "driver_override": "(null)",
        "current_link_speed": speed,
        "current_link_width": width,
        "max_link_speed": speed,
        "max_link_width": width,
        "subsystem_vendor": f"0x{0 if function.secondary_bus else function.vendor_id:04x}",
        "subsystem_device": f"0x{0 if function.secondary_bus else SUBSYSTEM:04x}",
        "power_state": "D0",
        "uevent": f"PCI_SLOT_NAME={function.address}",
        **function.extra,
    }
    if function.reset_methods:
        attributes |= {"reset": "", "reset_method": function.reset_methods}
    if function.sriov_total:
        on = len(function.virtual_functions)
        attributes |= {"sriov_totalvfs": str(function.sriov_total), "sriov_numvfs": str(on)}
    if function.secondary_bus:
        attributes["secondary_bus_number"] = str(function.secondary_bus)
        attributes["subordinate_bus_number"] = str(function.last_bus)
    return attributes


def _link(root: Path, function: SimFunction, home: Path) -> None:
    group = root / "kernel/iommu_groups" / str(function.iommu_group) / "devices"
    group.mkdir(parents=True, exist_ok=True)
    links = [
        (home / "subsystem", root / "bus/pci"),
        (home / "iommu_group", group.parent),
        (group / function.address, home),
        (root / "bus/pci/devices" / function.address, home),
    ]
    # Both kinds of function of one card lie in one directory, below the same bridge.
    links += [(home / f"virtfn{n}", home.parent / other) for n, other in enumerate(function.virtual_functions)]
    if function.physical_function:
        links.append((home / "physfn", home.parent / function.physical_function))
    if function.driver:
        driver = root / "bus/pci/drivers" / function.driver
        links += [(home / "driver", driver), (driver / function.address, home)]
    for link, target in links:
        link.symlink_to(os.path.relpath(target, link.parent))
