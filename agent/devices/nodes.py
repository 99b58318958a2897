"""What the kernel has made of a PCI function: its device nodes, disks, network interfaces and framebuffers.

Decides nothing and notes nothing: what is not there is not used. Pure over a root of files ("sys/...", "proc/...").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..inventory.pci import canonical_address

PCI = "sys/bus/pci/devices"
# Attribute groups in a function's directory: no device is in them, and some are long.
_NO_DEVICES = frozenset({"power", "msi_irqs", "link", "aer", "aer_stats", "hwmon", "mem_info_vram"})
_MAX_DEPTH = 16  # of directories below a function; a disk behind a USB hub needs about 12
_MAX_DIRECTORIES = 5000  # of one function: a tree that lies must not hold up a start
_NAMESPACE = re.compile(r"nvme[0-9]+n[0-9]+(p[0-9]+)?")
_MINOR = re.compile(r"^Device Minor:\s*([0-9]{1,3})\s*$", re.MULTILINE)


class Root(Protocol):
    """The machine's root directory, or a copy of the parts of it that matter. Reading never raises."""

    def read(self, path: str) -> str | None:
        """The file's text, stripped; None if it cannot be read."""
        ...

    def read_bytes(self, path: str, limit: int = 4096) -> bytes | None:
        """The file's first bytes; None if it cannot be read."""
        ...

    def list(self, path: str) -> list[str]:
        """The directory's entries, sorted; empty if there is none."""
        ...

    def link_target(self, path: str) -> str | None:
        """The symbolic link's target as it stands there; None if there is no link."""
        ...


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk or a partition: its name in sys/class/block, and "major:minor"."""

    name: str
    number: str


@dataclass(frozen=True, slots=True)
class Below:
    """What there is of one function. `nodes` are paths in /dev, `nics` interface names, `framebuffers` "fb0" and so on.

    `shared` nodes serve other devices too, so who has one open may or may not use this function.
    """

    driver: str
    nodes: tuple[str, ...]
    shared: tuple[str, ...]
    disks: tuple[Disk, ...]
    nics: tuple[str, ...]
    framebuffers: tuple[str, ...]


def below(root: Root, address: str) -> Below:
    """What the kernel has made of the function; all empty for one without a driver, or that is not there."""
    base = f"{PCI}/{address}"
    driver = last(root.link_target(f"{base}/driver"))
    nodes, disks, nics, framebuffers = list(_vfio_nodes(root, base)), [], [], []
    for path in _devices(root, base):
        name, subsystem = path.rpartition("/")[2], last(root.link_target(f"{path}/subsystem"))
        if node := device_node(root, path):
            nodes.append(node)
        if subsystem == "block":
            disks.append(Disk(name, root.read(f"{path}/dev") or ""))
        elif subsystem == "net":
            nics.append(name)
        elif subsystem == "graphics":
            framebuffers.append(name)
        elif subsystem == "nvme":
            disks.extend(_shared_namespaces(root, name))
    if match := _MINOR.search(root.read(f"proc/driver/nvidia/gpus/{address}/information") or ""):
        nodes.append(f"/dev/nvidia{int(match[1])}")  # NVIDIA's own driver has no nodes in sysfs
    nodes += [f"/dev/{disk.name}" for disk in disks if f"/dev/{disk.name}" not in nodes]
    shared = ("/dev/kfd",) if driver == "amdgpu" else ()
    return Below(driver, tuple(nodes), shared, tuple(disks), tuple(nics), tuple(framebuffers))


def device_node(root: Root, path: str) -> str:
    """The path in /dev of the device whose directory in sysfs is `path`; empty if it has none."""
    for line in (root.read(f"{path}/uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "DEVNAME" and value:
            return f"/dev/{value.removeprefix('/dev/')}"
    return ""


def last(target: str | None) -> str:
    """The last component of a link's target; empty for no link."""
    return (target or "").rstrip("/").rpartition("/")[2]


def _vfio_nodes(root: Root, base: str) -> Iterator[str]:
    """The group's nodes, whoever drives the function: an open group owns all that is in it."""
    if (group := last(root.link_target(f"{base}/iommu_group"))).isdecimal():
        yield from (f"/dev/vfio/{group}", f"/dev/vfio/noiommu-{group}")


def _devices(root: Root, base: str) -> Iterator[str]:
    """The directories of all devices below the function, and of none that sits behind it on another bus."""
    todo, seen = [(base, 0)], 0
    while todo and seen < _MAX_DIRECTORIES:
        directory, depth = todo.pop()
        for name in root.list(directory):
            path = f"{directory}/{name}"
            if name in _NO_DEVICES or canonical_address(name) or root.link_target(path) is not None:
                continue
            entries = root.list(path) if depth < _MAX_DEPTH else []
            if entries:
                seen += 1
                todo.append((path, depth + 1))
            if "uevent" in entries:
                yield path


def _shared_namespaces(root: Root, controller: str) -> Iterator[Disk]:
    """Disks of an NVMe controller that can have several paths: they are with its subsystem, not below it."""
    home = "sys/class/nvme-subsystem"
    for subsystem in root.list(home):
        entries = root.list(f"{home}/{subsystem}")
        if controller not in entries:
            continue
        for name in (entry for entry in entries if _NAMESPACE.fullmatch(entry)):
            path = f"{home}/{subsystem}/{name}"
            yield Disk(name, root.read(f"{path}/dev") or "")
            for part in (entry for entry in root.list(path) if _NAMESPACE.fullmatch(entry)):
                yield Disk(part, root.read(f"{path}/{part}/dev") or "")
