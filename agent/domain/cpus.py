"""How a VM's vCPUs lie on the host's cores, and what the guest is told of it. Pure.

Each vCPU has a host CPU of its own; the guest sees the host's threads, cores and NUMA nodes as they are, so that its
scheduler knows which vCPUs share a core. QEMU's own threads (emulator, I/O) are kept off them where there is room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from ..ports import GuestCell
from .element import add

LOCAL_DISTANCE, MAX_DISTANCE = 10, 254  # ACPI 6.5, 5.2.17: 10 is the node itself, 255 is "unreachable"


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """`pins[i]` is vCPU i's host CPU, `per_cell[c]` how many vCPUs cell c has. vCPUs are numbered cell by cell."""

    pins: tuple[int, ...]
    per_cell: tuple[int, ...]
    sockets: int
    cores: int  # of a socket
    threads: int  # of a core

    def vcpus_of(self, cell: int) -> str:
        """The cell's vCPUs as libvirt writes them; empty if it has none."""
        first = sum(self.per_cell[:cell])
        last = first + self.per_cell[cell] - 1
        return "" if last < first else str(first) if last == first else f"{first}-{last}"


def plan_cpus(cells: Sequence[GuestCell], vcpus: int) -> CpuPlan:
    """Pins for `vcpus` vCPUs, filling the cells in order. Raises ValueError if the cells have fewer CPUs.

    A socket is the largest number of cores that divides every cell's: QEMU's sockets are of one size, and none may
    span two cells. Threads are shown only if every core that is used is used whole.
    """
    cpus = [[cpu for core in cell.cores for cpu in core] for cell in cells]
    if vcpus > (have := sum(map(len, cpus))):
        nodes = ", ".join(str(cell.node) for cell in cells) or "none"
        raise ValueError(f"{vcpus} vCPUs are asked for, but only {have} CPUs are reserved (NUMA nodes: {nodes})")
    pins: list[int] = []
    per_cell = []
    for of_cell in cpus:
        taken = of_cell[: vcpus - len(pins)]
        pins += taken
        per_cell.append(len(taken))
    threads = _threads(cells, per_cell)
    cores = math.gcd(*(count // threads for count in per_cell))
    return CpuPlan(tuple(pins), tuple(per_cell), vcpus // (cores * threads), cores, threads)


def _threads(cells: Sequence[GuestCell], per_cell: Sequence[int]) -> int:
    used = [cell.cores for cell, count in zip(cells, per_cell, strict=True) if count]
    widths = {len(core) for cores in used for core in cores}
    if len(widths) != 1:
        return 1
    width = widths.pop()
    return width if all(count % width == 0 for count in per_cell) else 1


def tune_xml(domain: ET.Element, plan: CpuPlan, emulator_cpus: Sequence[int], iothreads: int) -> None:
    """Pin every vCPU to its CPU, and QEMU's own threads to `emulator_cpus`, or to the VM's CPUs if there are none."""
    others = ",".join(map(str, emulator_cpus or sorted(plan.pins)))
    tune = ET.SubElement(domain, "cputune")
    for vcpu, cpu in enumerate(plan.pins):
        add(tune, "vcpupin", vcpu=str(vcpu), cpuset=str(cpu))
    add(tune, "emulatorpin", cpuset=others)
    for thread in range(1, iothreads + 1):
        add(tune, "iothreadpin", iothread=str(thread), cpuset=others)


def topology_xml(cpu: ET.Element, plan: CpuPlan) -> None:
    """Sockets, cores and threads, as a child of <cpu>."""
    add(cpu, "topology", sockets=str(plan.sockets), cores=str(plan.cores), threads=str(plan.threads))


def cells_xml(cpu: ET.Element, cells: Sequence[GuestCell], plan: CpuPlan) -> None:
    """The guest's NUMA cells, as a child of <cpu>."""
    numa = ET.SubElement(cpu, "numa")
    for index, cell in enumerate(cells):
        cpus = {"cpus": vcpus} if (vcpus := plan.vcpus_of(index)) else {}
        element = add(numa, "cell", id=str(index), **cpus, memory=str(cell.memory_mib), unit="MiB")
        if len(cells) > 1 and _plausible(cells):
            distances = ET.SubElement(element, "distances")
            for other, distance in enumerate(cell.distances):
                add(distances, "sibling", id=str(other), value=str(distance))


def _plausible(cells: Sequence[GuestCell]) -> bool:
    """Whether the firmware's distances are such as libvirt takes: a full table, each node nearest to itself."""
    return all(
        len(cell.distances) == len(cells)
        and cell.distances[own] == LOCAL_DISTANCE
        and all(LOCAL_DISTANCE < value <= MAX_DISTANCE for n, value in enumerate(cell.distances) if n != own)
        for own, cell in enumerate(cells)
    )
