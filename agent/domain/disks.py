"""A VM's disks: the image's, the job's volumes, the seed. Pure."""

from __future__ import annotations

import string
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from ..vms.images import UefiBoot
from .element import add
from .shape import ROOT_SERIAL, SEED_SERIAL, DomainShape

_MAX_IOTHREADS = 4


@dataclass(frozen=True, slots=True)
class _Disk:
    """`shared`: read only, by any number of VMs. `base` is what an overlay lies on."""

    serial: str
    file: str
    cache: str
    shared: bool = False
    format: str = "raw"
    base: UefiBoot | None = None


def iothreads_of(shape: DomainShape) -> int:
    """How many I/O threads the VM has: one for each disk, up to a few; none on a simulated host."""
    return 0 if shape.simulated else min(1 + len(shape.volumes), _MAX_IOTHREADS)


def disks_xml(devices: ET.Element, shape: DomainShape) -> None:
    """The disks, root first, seed last."""
    # O_DIRECT keeps a checkpoint's fsync honest on shared storage; a simulated host's volumes may lie on tmpfs.
    cache = "writeback" if shape.simulated else "none"
    disks = [_root(shape), *(_Disk(serial, file, cache) for serial, file in shape.volumes)]
    threads = iothreads_of(shape)
    for index, disk in enumerate(disks):
        _disk(devices, index, disk, index % threads + 1 if threads else 0)
    if shape.seed:
        _disk(devices, len(disks), _Disk(SEED_SERIAL, str(shape.files.seed), "writeback", shared=True), 0)


def _root(shape: DomainShape) -> _Disk:
    if isinstance(shape.boot, UefiBoot):
        return _Disk(ROOT_SERIAL, str(shape.files.overlay), "writeback", format="qcow2", base=shape.boot)
    return _Disk(ROOT_SERIAL, str(shape.boot.root), "writeback", shared=True)


def _disk(devices: ET.Element, index: int, disk: _Disk, iothread: int) -> None:
    element = add(devices, "disk", type="file", device="disk")
    thread = {"iothread": str(iothread)} if iothread else {}
    # report: a full or failing store is an error in the guest, not a VM that stands still for ever.
    add(element, "driver", name="qemu", type=disk.format, cache=disk.cache, error_policy="report", **thread)
    add(element, "source", file=disk.file)
    if disk.base:
        backing = add(element, "backingStore", type="file")
        add(backing, "format", type=disk.base.format)
        add(backing, "source", file=str(disk.base.disk))
        add(backing, "backingStore")
    add(element, "target", dev=f"vd{string.ascii_lowercase[index]}", bus="virtio")
    if disk.shared:
        add(element, "readonly")
        add(element, "shareable")
    add(element, "serial", disk.serial)
    if disk.base:
        add(element, "boot", order="1")
