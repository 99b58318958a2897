"""PCI functions as sysfs tells of them: text in, facts out.

Decides nothing. Every address that leaves this module is canonical ("dddd:bb:dd.f", lower-case hex), so that nobody
else has to know how addresses can be spelled. What is missing or makes no sense becomes "unknown" and a note, never a
guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from ..ports import Sysfs
from . import attributes, bars, sharing
from .attributes import Attributes, Note, decimal, parsed, register
from .bars import Bar
from .config_space import HEADER_BYTES, bridge_buses
from .path import Path, parse_path

DEVICES = "bus/pci/devices"

# PCI Code and ID Assignment Specification, section 1: base class and subclass.
GPU_CLASSES = frozenset({0x0300, 0x0302, 0x0380, 0x1200})  # VGA, 3D, other display, processing accelerator
BRIDGE_CLASSES = frozenset({0x0600, 0x0604, 0x0609})  # host, PCI-to-PCI, semi-transparent PCI-to-PCI
ID_DIGITS, CLASS_DIGITS = 4, 6
VGA = 0x0300  # the one class that has a boot_vga attribute (drivers/pci/pci-sysfs.c, pci_dev_attrs_are_visible)
NETWORK, BRIDGE = 0x02, 0x06  # base classes
# Kernels before 5.15 offer `reset` without saying how: their own choice is the only method then.
KERNELS_CHOICE = "default"
NO_IOMMU = "vfio-noiommu"  # the name of the groups that VFIO makes up without an IOMMU (drivers/vfio/group.c)

_ADDRESS = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([01]?[0-9a-f])\.([0-7])", re.IGNORECASE)

Ids = tuple[int, int]
"""Vendor and device id."""


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
    bars: tuple[Bar, ...] = ()
    link_speed_mts: int = 0
    link_width: int = 0
    link_speed_max_mts: int = 0
    link_width_max: int = 0
    boot_vga: bool = False
    boot_vga_unknown: bool = False  # a VGA function of which nobody says whether the firmware draws on it
    virtual: bool = False  # an SR-IOV virtual function
    physical_function: str = ""  # of a virtual function: its parent
    virtual_functions: int = 0  # SR-IOV virtual functions that are switched on
    sriov_total: int = 0
    sriov_present: tuple[str, ...] = ()
    mdev_types: tuple[str, ...] = ()
    mdevs_in_use: int = 0
    buses: tuple[int, int] | None = None
    resets_buses: bool = False  # a bridge that can reset what is behind it (Linux 6.13: reset_subordinate)
    path: tuple[str, ...] = ()  # bridges above it, root port first
    root_bus: str = ""  # "dddd:bb" of its host bridge; empty: it is not known where the function sits
    subsystem_vendor_id: int = 0
    subsystem_device_id: int = 0
    power_state: str = ""
    serial: str = ""  # device serial number, 16 hex digits; only the inventory fills it in
    group_members: tuple[str, ...] = ()  # what the kernel has in its IOMMU group, whether we can read it or not
    no_iommu: bool = False  # its IOMMU group is one of VFIO's that isolate nothing
    allowed: bool = False  # the operator says that it is a GPU, whatever its class

    @property
    def slot(self) -> str:
        """Domain, bus and device: what functions of one piece of silicon share."""
        return self.address[:-2]

    @property
    def domain(self) -> str:
        """The PCI domain, as text."""
        return self.address.partition(":")[0]

    @property
    def bus(self) -> int:
        """The bus number within the domain."""
        return int(self.address.split(":")[1], 16)

    @property
    def is_gpu(self) -> bool:
        """Whether its class is one that GPUs have, or the operator says so. A bridge never is one."""
        return (self.has_gpu_class or self.allowed) and not self.is_bridge

    @property
    def has_gpu_class(self) -> bool:
        """Whether its class is one that GPUs have."""
        return self.class_code >> 8 in GPU_CLASSES

    @property
    def is_bridge(self) -> bool:
        """Whether it carries other devices' traffic, and so is never handed out."""
        return self.class_code >> 8 in BRIDGE_CLASSES

    @property
    def is_network(self) -> bool:
        """Whether it is a network controller of any kind, InfiniBand included."""
        return self.class_code >> 16 == NETWORK

    @property
    def largest_bar_bytes(self) -> int:
        """Bytes of the largest memory BAR; 0 if there is none."""
        return bars.largest(self.bars)


@lru_cache(4096)  # pure, and asked of every name in the directories of functions, again and again
def canonical_address(text: str) -> str | None:
    """`text` as "dddd:bb:dd.f" in lower case; None if it is no PCI address. Domains can be longer: "10000:e1:00.0"."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        return None
    domain, bus, device, function = match.groups(default="0")
    return f"{int(domain, 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function}"


def read_functions(
    sysfs: Sysfs,
    note: Note,
    *,
    allow: Collection[Ids] = (),
    wanted: Callable[[Sequence[Function]], Collection[str]] | None = None,
) -> list[Function]:
    """Every PCI function that the tree lists, sorted by address. `note` gets one line for each thing that is odd.

    Functions with ids in `allow` count as GPUs. `wanted` chooses, from outlines (class, place, IOMMU group), the
    addresses to be read in full; by default all. What is not read in full costs little, and its hardware is not asked.
    """
    outlines = []
    for entry in sysfs.list(DEVICES):
        if canonical_address(entry) != entry:
            note(f"{DEVICES}: entry {entry[:40]!r} is no PCI address; left out")
        elif outline := unless_gone(sysfs, entry, note, partial(outline_of, sysfs, entry, allow=allow)):
            outlines.append(outline)
    outlines.sort(key=lambda function: function.address)
    chosen = None if wanted is None else frozenset(wanted(outlines))
    functions = []
    for outline in outlines:
        address, read = outline.address, partial(_in_full, sysfs, outline, has_ids=bool(allow))
        known = outline if chosen is not None and address not in chosen else unless_gone(sysfs, address, note, read)
        if known is not None:
            functions.append(known)
    return functions


def unless_gone(sysfs: Sysfs, address: str, note: Note, read: Callable[[Note], Function]) -> Function | None:
    """The function, unless it went while it was being read: then what was read is half a function."""
    heard: list[str] = []
    function = read(heard.append)
    base = f"{DEVICES}/{address}"
    if heard and not sysfs.list(base) and sysfs.link_target(base) is None:
        note(f"{address}: went while it was being read; left out")
        return None
    for line in heard:
        note(line)
    return function


def outline_of(
    sysfs: Sysfs, address: str, note: Note, *, allow: Collection[Ids], with_resets: bool = False
) -> Function:
    """What it takes to tell which functions matter: class, place and IOMMU group; of a bridge also its buses.

    The ids only where they matter too, and reset methods only `with_resets`.
    """
    base = f"{DEVICES}/{address}"
    vendor_id, device_id = _ids(sysfs, address, note) if allow else (0, 0)
    class_code = _register(sysfs, address, "class", note, digits=CLASS_DIGITS, unknown=-1)
    path = _path(sysfs, base, address, note)
    may_bridge = class_code < 0 or class_code >> 16 == BRIDGE
    return Function(
        address=address,
        vendor_id=vendor_id,
        device_id=device_id,
        class_code=class_code,
        iommu_group=_group(sysfs, base, address, note),
        buses=_buses(sysfs, base) if may_bridge else None,
        resets_buses=may_bridge and "reset_subordinate" in sysfs.list(base),
        reset_methods=reset_methods_of(Attributes(sysfs, base, address, note)) if with_resets else (),
        path=path.bridges,
        root_bus=path.root_bus,
        allowed=(vendor_id, device_id) in allow,
    )


def _in_full(sysfs: Sysfs, outline: Function, note: Note, *, has_ids: bool) -> Function:
    base = f"{DEVICES}/{outline.address}"
    ids = (outline.vendor_id, outline.device_id) if has_ids else _ids(sysfs, outline.address, note)
    found = Attributes(sysfs, base, outline.address, note)
    virtual = sharing.read(sysfs, found, canonical_address, note)

    # The link is the physical function's: a virtual one's status is reserved (PCI Express Base Specification, 9.3.5).
    sights = () if virtual.is_virtual else ("current", "max")
    speeds = [found.get(f"{sight}_link_speed", attributes.link_speed, 0) for sight in sights] or [0, 0]
    widths = [found.get(f"{sight}_link_width", attributes.link_width, 0) for sight in sights] or [0, 0]

    boot_vga = found.get("boot_vga", lambda text: decimal(text, 0, 1), -1)

    def regions(text: str) -> tuple[Bar, ...]:
        memory, wrong = bars.parse_resource(text)
        if wrong:
            note(f"{outline.address}: resource {wrong}")
        return memory

    return replace(
        outline,
        vendor_id=ids[0],
        device_id=ids[1],
        driver=sysfs.link_name(f"{base}/driver") or "",
        numa_node=found.get("numa_node", lambda text: decimal(text, -1, 4095), -1),
        reset_methods=reset_methods_of(found),
        bars=found.get("resource", regions, ()),
        link_speed_mts=speeds[0],
        link_width=widths[0],
        link_speed_max_mts=speeds[1],
        link_width_max=widths[1],
        boot_vga=boot_vga == 1,
        boot_vga_unknown=boot_vga < 0 and outline.class_code >> 8 == VGA,
        virtual=virtual.is_virtual,
        physical_function=virtual.parent,
        virtual_functions=max(virtual.switched_on, len(virtual.present)),
        sriov_total=virtual.total,
        sriov_present=virtual.present,
        mdev_types=virtual.mdev_types,
        mdevs_in_use=virtual.mdevs_in_use,
        subsystem_vendor_id=found.get("subsystem_vendor", _id, 0),
        subsystem_device_id=found.get("subsystem_device", _id, 0),
        power_state=found.get("power_state", attributes.power_state, ""),
        group_members=_group_members(sysfs, base) if outline.iommu_group >= 0 else (),
        no_iommu=outline.iommu_group >= 0 and sysfs.read(f"{base}/iommu_group/name") == NO_IOMMU,
    )


def _ids(sysfs: Sysfs, address: str, note: Note) -> Ids:
    vendor_id = _register(sysfs, address, "vendor", note, digits=ID_DIGITS, unknown=0)
    return vendor_id, _register(sysfs, address, "device", note, digits=ID_DIGITS, unknown=0)


def _id(text: str) -> int | None:
    return register(text, ID_DIGITS)


def _register(sysfs: Sysfs, address: str, name: str, note: Note, *, digits: int, unknown: int) -> int:
    path = f"{DEVICES}/{address}/{name}"
    return parsed(sysfs, path, lambda text: register(text, digits), unknown, note, what=f"{address}: {name}")


def _path(sysfs: Sysfs, base: str, address: str, note: Note) -> Path:
    target = sysfs.link_target(base)
    path = None if target is None else parse_path(target, address)
    if target is not None and path is None:
        note(f"{address}: link to {target[:120]!r} does not say where it sits")
    return path or Path("", ())


def _group(sysfs: Sysfs, base: str, address: str, note: Note) -> int:
    name = sysfs.link_name(f"{base}/iommu_group")
    if name is None:
        return -1  # no IOMMU, or it is off: no oddity
    group = decimal(name, 0, 2**31 - 1)
    if group is None:
        note(f"{address}: iommu_group points to {name[:40]!r}, which is no group number")
    return -1 if group is None else group


def _group_members(sysfs: Sysfs, base: str) -> tuple[str, ...]:
    """Names of what the kernel has in the function's group, mostly PCI addresses, in printable characters."""
    names = sysfs.list(f"{base}/iommu_group/devices")
    return tuple(name.encode("ascii", errors="backslashreplace").decode() for name in names)


def _buses(sysfs: Sysfs, base: str) -> tuple[int, int] | None:
    """First and last bus behind a bridge. Linux 4.13 and later say so without a look at the config space."""
    texts = (sysfs.read(f"{base}/secondary_bus_number"), sysfs.read(f"{base}/subordinate_bus_number"))
    if None in texts:
        return bridge_buses(sysfs.read_bytes(f"{base}/config", HEADER_BYTES) or b"")
    first, last = (decimal(text or "", 0, 255) for text in texts)
    return (first, last) if first is not None and last is not None and 0 < first <= last else None


def reset_methods_of(found: Attributes) -> tuple[str, ...]:
    """As the kernel lists them, best first. Empty: the function has no reset of its own."""
    if "reset_method" in found.names:
        return found.get("reset_method", attributes.reset_methods, ())
    return (KERNELS_CHOICE,) if "reset" in found.names else ()
