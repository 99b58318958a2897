"""The libvirt domain of a VM, as a pure function of its shape. Same shape in, same bytes out.

It puts together what the modules beside it decide: CPUs (cpus), memory (memory), devices (pci, disks, network). No VM
outlives its own power-off, reboot or crash. It looks at nothing: no file, no host, no libvirt.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from ..vms.images import KernelBoot
from . import cpus, memory, network, pci
from .disks import disks_xml, iothreads_of
from .element import add
from .shape import PREFIX, DomainShape

CHANNEL = "org.gpupool.guest.0"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"

ET.register_namespace("qemu", _QEMU)


def domain_xml(shape: DomainShape) -> str:
    """The domain's XML, indented."""
    domain = ET.Element("domain", type="kvm" if shape.accel == "kvm" else "qemu")
    add(domain, "name", shape.name)
    add(domain, "title", f"gpupool allocation {shape.allocation}")
    add(domain, "memory", str(shape.memory_mib), unit="MiB")
    if not shape.simulated:
        _memory(domain, shape)
    add(domain, "vcpu", str(shape.vcpus))
    if not shape.simulated:
        _pin(domain, shape)
    _boot(domain, shape)
    _features(domain, shape)
    _processor(domain, shape)
    add(domain, "clock", offset="utc")
    # A guest that reboots has ended: its exit code came through the channel or never will.
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        add(domain, event, "destroy")
    # A guest that sleeps would keep its GPUs, and no event of the job would ever come.
    pm = ET.SubElement(domain, "pm")
    for state in ("suspend-to-mem", "suspend-to-disk"):
        add(pm, state, enabled="no")
    _devices(ET.SubElement(domain, "devices"), shape)
    _commandline(domain, shape)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def allocation_of(name: str) -> str | None:
    """The allocation that a domain of this name runs; None if the domain is none of ours."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else None


def _memory(domain: ET.Element, shape: DomainShape) -> None:
    count, guest_iommu = len(shape.functions), shape.options.guest_iommu
    memory.memory_xml(
        domain,
        shape.vcpus,
        limit_mib=memory.locked_mib(shape.memory_mib, count, guest_iommu=guest_iommu),
        hugepage_size_kib=shape.options.hugepage_size_kib,
        lock=not count,
    )


def _pin(domain: ET.Element, shape: DomainShape) -> None:
    add(domain, "iothreads", str(iothreads_of(shape)))
    cpus.tune_xml(domain, shape.plan(), shape.emulator_cpus, iothreads_of(shape))
    memory.numa_xml(domain, shape.cells)


def _boot(domain: ET.Element, shape: DomainShape) -> None:
    boot = ET.SubElement(domain, "os")
    add(boot, "type", "hvm", arch="x86_64", machine="q35")
    if shape.firmware:
        secure = {"secure": "yes"} if shape.firmware.needs_smm else {}
        add(boot, "loader", str(shape.firmware.code), readonly="yes", **secure, type="pflash")
        add(boot, "nvram", str(shape.files.variables))
    if isinstance(shape.boot, KernelBoot):
        for tag in ("kernel", "initrd", "cmdline"):
            add(boot, tag, str(getattr(shape.boot, tag)))


def _features(domain: ET.Element, shape: DomainShape) -> None:
    features = ET.SubElement(domain, "features")
    for tag in ("acpi", "apic"):
        add(features, tag)
    if shape.firmware and shape.firmware.needs_smm:
        add(features, "smm", state="on")
    if shape.accel != "kvm":
        add(ET.SubElement(features, "tcg"), "tb-cache", str(shape.tb_cache_mib), unit="MiB")
        return
    if shape.options.hypervisor_vendor_id:
        hyperv = add(features, "hyperv", mode="custom")
        add(hyperv, "vendor_id", state="on", value=shape.options.hypervisor_vendor_id)
    if shape.options.hide_hypervisor:
        add(ET.SubElement(features, "kvm"), "hidden", state="on")
    if shape.options.guest_iommu:
        add(features, "ioapic", driver="qemu")  # interrupt remapping needs the split interrupt controller


def _processor(domain: ET.Element, shape: DomainShape) -> None:
    plan = None if shape.simulated else shape.plan()
    if shape.accel == "kvm":
        cpu = add(domain, "cpu", mode="host-passthrough", check="none", migratable="off")
    else:
        cpu = add(domain, "cpu", mode="custom", match="exact", check="none")
        add(cpu, "model", "Nehalem", fallback="allow")
    if plan:
        cpus.topology_xml(cpu, plan)
    if shape.accel == "kvm":
        add(cpu, "cache", mode="passthrough")
        # GPUs have BARs beyond what the default address width reaches.
        add(cpu, "maxphysaddr", mode="passthrough")
        if shape.amd and plan and plan.threads > 1:
            add(cpu, "feature", policy="require", name="topoext")  # else an AMD guest sees no threads
    else:
        # Without it the guest's Python waits a second for the kernel's random numbers.
        add(cpu, "feature", policy="require", name="rdrand")
    if plan:
        cpus.cells_xml(cpu, shape.cells, plan)


def _devices(devices: ET.Element, shape: DomainShape) -> None:
    disks_xml(devices, shape)
    add(devices, "controller", type="usb", model="none")
    if not shape.simulated:
        bus_of = pci.topology_xml(devices, shape.slots(), len(shape.cells), shape.window_mib())
    network.network_xml(devices, shape.options.network, shape.options.network_source)
    serial_port = add(devices, "serial", type="file")
    add(serial_port, "source", path=str(shape.files.console), append="on")
    add(serial_port, "target", port="0")
    _channel(devices, CHANNEL, str(shape.files.channel))
    if not shape.simulated:
        _channel(devices, AGENT_CHANNEL, str(shape.files.agent))
        pci.hostdevs_xml(devices, shape.slots(), bus_of)
    add(devices, "memballoon", model="none")
    add(devices, "panic", model="isa")  # a guest's panic is an event, with on_crash the end, and its reason "crashed"
    if shape.options.guest_iommu:
        iommu = add(devices, "iommu", model="intel")
        # caching_mode: VFIO must see every mapping. aw_bits: large BARs lie beyond the 39 bits that are QEMU's default.
        intremap = {"intremap": "on"} if shape.accel == "kvm" else {}
        add(iommu, "driver", **intremap, caching_mode="on", aw_bits="48")


def _channel(devices: ET.Element, name: str, path: str) -> None:
    channel = add(devices, "channel", type="unix")
    add(channel, "source", mode="bind", path=path)
    add(channel, "target", type="virtio", name=name)


def _commandline(domain: ET.Element, shape: DomainShape) -> None:
    """What libvirt has no element for."""
    words: list[str] = []
    for index in range(shape.emulated_gpus):
        address = f"bus=pcie.0,multifunction=on,addr=0x{0x10 + index // 8:x}.{index % 8}"
        words += ["-device", f"virtio-gpu-pci,id=unit{index},{address}"]
    if shape.firmware and shape.functions:
        # OVMF makes its 64-bit window at least so large, in MiB (PlatformInitLib/MemDetect.c); SeaBIOS needs no word.
        # libvirt's <sysinfo type='fwcfg'> refuses names below opt/ovmf/ as reserved.
        words += ["-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={shape.window_mib()}"]
    if words:
        commandline = ET.SubElement(domain, f"{{{_QEMU}}}commandline")
        for word in words:
            ET.SubElement(commandline, f"{{{_QEMU}}}arg", value=word)
