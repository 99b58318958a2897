"""Where a VM's PCI functions sit in the guest: slots, root ports, expander buses, and the window for their BARs. Pure.

Functions of one device stay functions of one device. Each device has a root port of its own, below an expander bus
(pxb-pcie) that belongs to the guest cell which mirrors the device's NUMA node, so that the guest reads the right
`numa_node`. The bus is there for a single cell too: without it the guest would see -1. A device whose node is unknown,
or is not among the VM's cells, gets a port on the root bus, and the guest sees -1: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from ..ports import GuestCell, PassedFunction
from .element import add

SPARE_PORTS = 4  # for hotplug by an operator; QEMU cannot add root ports to a running VM
# Buses below this one are the root bus's: one for each root port there, libvirt's own for disks and NIC included.
FIRST_EXPANDER_BUS = 64
_FIRST_EXPANDER_SLOT = 0x10  # on the root bus; libvirt hands out slots from 1 on
_MAX_EXPANDERS = 14
_BUSES = 256
_PORTS = 32  # slots of an expander bus
_MIN_WINDOW_MIB = 32 * 1024  # QEMU's and OVMF's own default
_MAX_WINDOW_MIB = 16 * 1024 * 1024  # what OVMF accepts (PlatformInitLib/MemDetect.c: 16 TiB)
_MIB = 1 << 20
ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass(frozen=True, slots=True)
class Slot:
    """A device in the guest: (host address, function in the guest) each, and the guest cell it is near to, or -1."""

    functions: tuple[tuple[str, int], ...]
    cell: int


def slots_of(functions: Sequence[PassedFunction], cells: Sequence[GuestCell]) -> list[Slot]:
    """The devices that the functions make, by address. Raises ValueError for no PCI address, and for too many."""
    devices: dict[tuple[str, str], list[PassedFunction]] = {}
    for function in sorted(functions, key=lambda f: f.address):
        if not ADDRESS.fullmatch(function.address):
            raise ValueError(f"{function.address!r} is no PCI address such as 0000:21:00.0")
        # Virtual functions of one card may be units of their own in the same slot.
        devices.setdefault((function.address.rpartition(".")[0], function.unit), []).append(function)
    cell_of = {cell.node: index for index, cell in enumerate(cells) if cell.node >= 0}
    slots = [Slot(_numbered(group), cell_of.get(group[0].node, -1)) for _, group in sorted(devices.items())]
    near = sorted({slot.cell for slot in slots} - {-1})
    if len(near) > _MAX_EXPANDERS:
        raise ValueError(f"devices near {len(near)} NUMA nodes; a VM can show at most {_MAX_EXPANDERS}")
    room = min(_bus_step(len(near)) - 1, _PORTS)
    if most := max((count for cell in near if (count := sum(slot.cell == cell for slot in slots)) > room), default=0):
        raise ValueError(f"{most} devices near one NUMA node; this VM can show {room}")
    return slots


def _bus_step(expanders: int) -> int:
    """How far apart the expander buses are numbered: one has what lies below the next for itself and its ports."""
    return (_BUSES - FIRST_EXPANDER_BUS) // max(1, expanders)


def _numbered(group: Sequence[PassedFunction]) -> tuple[tuple[str, int], ...]:
    """Functions keep their numbers if there is a function 0, without which a guest looks for no other."""
    numbers = [int(function.address[-1]) for function in group]
    kept = numbers if 0 in numbers else range(len(group))
    return tuple((function.address, number) for function, number in zip(group, kept, strict=True))


def window_mib(functions: Sequence[PassedFunction]) -> int:
    """The 64-bit MMIO window that the BARs need, MiB: a power of two.

    A root port's window is as aligned as its largest BAR and holds all of them, so a device takes the next power of
    two of its BARs' sum. Raises ValueError if the firmware cannot make a window so large.
    """
    devices: dict[str, int] = {}
    for function in functions:
        device = function.address.rpartition(".")[0] + function.unit
        devices[device] = devices.get(device, 0) + sum(function.bar_bytes)
    need = _power_of_two(sum(_power_of_two(max(total, _MIB)) for total in devices.values()) // _MIB)
    if need > _MAX_WINDOW_MIB:
        raise ValueError(f"the devices' BARs need an MMIO window of {need} MiB; firmware can make {_MAX_WINDOW_MIB}")
    return max(need, _MIN_WINDOW_MIB)


def _power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def topology_xml(devices: ET.Element, slots: Sequence[Slot], cells: int, hole_mib: int) -> Mapping[Slot, int]:
    """Root, expander buses, root ports; returns each slot's bus (its port's controller index).

    `hole_mib`: the window that ACPI tells the guest of, for a kernel that places BARs itself.
    """
    root = add(devices, "controller", type="pci", index="0", model="pcie-root")
    add(root, "pcihole64", str(hole_mib * 1024), unit="KiB")
    near = [cell for cell in range(cells) if any(slot.cell == cell for slot in slots)]
    step = _bus_step(len(near))
    index, bus_of = 1, {}
    for order, cell in enumerate(near):
        expander = index
        _expander(devices, expander, FIRST_EXPANDER_BUS + order * step, cell, _FIRST_EXPANDER_SLOT + order)
        own = [slot for slot in slots if slot.cell == cell]
        for number, slot in enumerate(own):
            index += 1
            bus_of[slot] = index
            _port(devices, index, expander, number)
        index += 1
    for slot in (slot for slot in slots if slot.cell < 0):
        bus_of[slot] = index
        _port(devices, index)
        index += 1
    for _ in range(SPARE_PORTS):
        _port(devices, index)
        index += 1
    return bus_of


def _expander(devices: ET.Element, index: int, bus: int, cell: int, slot: int) -> None:
    controller = add(devices, "controller", type="pci", index=str(index), model="pcie-expander-bus")
    target = add(controller, "target", busNr=str(bus))
    add(target, "node", str(cell))
    _address(controller, 0, slot)


def _port(devices: ET.Element, index: int, bus: int | None = None, slot: int = 0) -> None:
    controller = add(devices, "controller", type="pci", index=str(index), model="pcie-root-port")
    if bus is not None:
        _address(controller, bus, slot)


def hostdevs_xml(devices: ET.Element, slots: Sequence[Slot], bus_of: Mapping[Slot, int]) -> None:
    """The passed functions. managed=no: the agent alone binds, because a unit's whole reset domain moves together."""
    for slot in slots:
        for address, function in slot.functions:
            match = ADDRESS.fullmatch(address)
            assert match is not None
            hostdev = add(devices, "hostdev", mode="subsystem", type="pci", managed="no")
            add(hostdev, "driver", name="vfio")
            parts = zip(("domain", "bus", "slot", "function"), match.groups(), strict=True)
            add(ET.SubElement(hostdev, "source"), "address", **{part: f"0x{value}" for part, value in parts})
            several = function == 0 and len(slot.functions) > 1
            _address(hostdev, bus_of[slot], 0, function, **({"multifunction": "on"} if several else {}))


def _address(parent: ET.Element, bus: int, slot: int, function: int = 0, **more: str) -> None:
    place = {"bus": f"0x{bus:02x}", "slot": f"0x{slot:02x}", "function": f"0x{function:x}"}
    add(parent, "address", type="pci", domain="0x0000", **place, **more)
