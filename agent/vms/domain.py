"""The libvirt domain of a VM, as a pure function of its shape. Same shape in, same bytes out.

It decides how CPUs are pinned, where memory comes from, which devices the guest gets and that no VM outlives its own
power-off, reboot or crash. It looks at nothing: no file, no host, no libvirt.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from xml.etree import ElementTree as ET

PREFIX = "gpupool-"
CHANNEL = "org.gpupool.guest.0"
ROOT_SERIAL = "gpupool-root"  # by which the image's initrd finds its root disk
MAX_EMULATED = 14 * 8  # slots 0x10 to 0x1d of the root complex, which libvirt leaves free, with 8 functions each
MAX_VOLUMES = len(string.ascii_lowercase) - 1
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_PCI = re.compile(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")

ET.register_namespace("qemu", _QEMU)


@dataclass(frozen=True, slots=True)
class DomainShape:
    """All that a domain depends on. Paths are absolute; `cpus` and `nodes` are the host's.

    `volumes` are (serial, file). A `simulated` host has `emulated_gpus` instead of `hostdevs`, and no pinning.
    """

    name: str
    allocation: str
    accel: str  # "kvm" or "tcg"
    vcpus: int
    memory_mib: int
    kernel: str
    initrd: str
    root: str
    cmdline: str
    channel: str
    console: str
    cpus: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    hostdevs: tuple[str, ...] = ()
    emulated_gpus: int = 0
    simulated: bool = False
    tb_cache_mib: int = 64  # of translated code; QEMU's own default costs 42 MiB more and gains nothing

    def __post_init__(self) -> None:
        """Raises ValueError for what no domain can be made of."""
        if len(self.volumes) > MAX_VOLUMES:
            raise ValueError(f"{len(self.volumes)} volumes; a VM has at most {MAX_VOLUMES}")
        if ROOT_SERIAL in (serial for serial, _ in self.volumes):
            raise ValueError(f"no volume may be called {ROOT_SERIAL!r}: the image's own disk is")
        if self.emulated_gpus > MAX_EMULATED:
            raise ValueError(f"{self.emulated_gpus} emulated GPUs; a VM has at most {MAX_EMULATED}")
        if bad := [address for address in self.hostdevs if not _PCI.fullmatch(address)]:
            raise ValueError(f"{bad[0]!r} is no PCI address such as 0000:21:00.0")


def domain_xml(shape: DomainShape) -> str:
    """The domain's XML, indented."""
    domain = ET.Element("domain", type="kvm" if shape.accel == "kvm" else "qemu")
    _text(domain, "name", shape.name)
    _text(domain, "title", f"gpupool allocation {shape.allocation}")
    _text(domain, "memory", str(shape.memory_mib), unit="MiB")
    if not shape.simulated:
        _text(ET.SubElement(domain, "memoryBacking"), "locked")
    _text(domain, "vcpu", str(shape.vcpus))
    if not shape.simulated:
        _pin(domain, shape)
    _boot(domain, shape)
    _processor(domain, shape)
    ET.SubElement(domain, "clock", offset="utc")
    # A guest that reboots has ended: its exit code came through the channel or never will.
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    _devices(ET.SubElement(domain, "devices"), shape)
    if shape.emulated_gpus:
        _emulated_gpus(domain, shape.emulated_gpus)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def allocation_of(name: str) -> str | None:
    """The allocation that a domain of this name runs; None if the domain is none of ours."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def _text(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _pin(domain: ET.Element, shape: DomainShape) -> None:
    if shape.cpus:
        every = ",".join(map(str, shape.cpus))
        one_each = len(shape.cpus) >= shape.vcpus
        tune = ET.SubElement(domain, "cputune")
        for vcpu in range(shape.vcpus):
            ET.SubElement(tune, "vcpupin", vcpu=str(vcpu), cpuset=str(shape.cpus[vcpu]) if one_each else every)
        ET.SubElement(tune, "emulatorpin", cpuset=every)
    if shape.nodes:
        nodes = ",".join(map(str, shape.nodes))
        ET.SubElement(ET.SubElement(domain, "numatune"), "memory", mode="strict", nodeset=nodes)


def _boot(domain: ET.Element, shape: DomainShape) -> None:
    boot = ET.SubElement(domain, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine="q35")
    for tag, text in (("kernel", shape.kernel), ("initrd", shape.initrd), ("cmdline", shape.cmdline)):
        _text(boot, tag, text)


def _processor(domain: ET.Element, shape: DomainShape) -> None:
    features = ET.SubElement(domain, "features")
    for tag in ("acpi", "apic"):
        ET.SubElement(features, tag)
    if shape.accel == "kvm":
        cpu = ET.SubElement(domain, "cpu", mode="host-passthrough", check="none", migratable="off")
        # GPUs have BARs beyond what the default address width reaches.
        ET.SubElement(cpu, "maxphysaddr", mode="passthrough")
        return
    _text(ET.SubElement(features, "tcg"), "tb-cache", str(shape.tb_cache_mib), unit="MiB")
    cpu = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
    _text(cpu, "model", "Nehalem", fallback="allow")
    # Without it the guest's Python waits a second for the kernel's random numbers.
    ET.SubElement(cpu, "feature", policy="require", name="rdrand")


def _devices(devices: ET.Element, shape: DomainShape) -> None:
    _disk(devices, 0, ROOT_SERIAL, shape.root, cache="writeback", shared=True)
    # O_DIRECT keeps a checkpoint's fsync honest on shared storage; a simulated host's volumes may lie on tmpfs.
    cache = "writeback" if shape.simulated else "none"
    for index, (serial, file) in enumerate(shape.volumes, start=1):
        _disk(devices, index, serial, file, cache=cache)
    ET.SubElement(devices, "controller", type="usb", model="none")
    serial_port = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial_port, "source", path=shape.console)
    ET.SubElement(serial_port, "target", port="0")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=shape.channel)
    ET.SubElement(channel, "target", type="virtio", name=CHANNEL)
    for address in shape.hostdevs:
        _hostdev(devices, address)
    ET.SubElement(devices, "memballoon", model="none")


def _disk(devices: ET.Element, index: int, serial: str, file: str, *, cache: str, shared: bool = False) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # report: a full or failing store is an error in the guest, not a VM that stands still for ever.
    ET.SubElement(disk, "driver", name="qemu", type="raw", cache=cache, error_policy="report")
    ET.SubElement(disk, "source", file=file)
    ET.SubElement(disk, "target", dev=f"vd{string.ascii_lowercase[index]}", bus="virtio")
    if shared:
        ET.SubElement(disk, "readonly")
        ET.SubElement(disk, "shareable")
    _text(disk, "serial", serial)


def _hostdev(devices: ET.Element, address: str) -> None:
    match = _PCI.fullmatch(address)
    assert match is not None
    # managed=no: the agent alone binds and unbinds, because a unit's whole reset domain moves together.
    hostdev = ET.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="no")
    ET.SubElement(hostdev, "driver", name="vfio")
    parts = zip(("domain", "bus", "slot", "function"), match.groups(), strict=True)
    ET.SubElement(ET.SubElement(hostdev, "source"), "address", {part: f"0x{value}" for part, value in parts})


def _emulated_gpus(domain: ET.Element, count: int) -> None:
    commandline = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
    for index in range(count):
        address = f"bus=pcie.0,multifunction=on,addr=0x{0x10 + index // 8:x}.{index % 8}"
        for value in ("-device", f"virtio-gpu-pci,id=unit{index},{address}"):
            ET.SubElement(commandline, f"{{{_QEMU}}}arg", value=value)
