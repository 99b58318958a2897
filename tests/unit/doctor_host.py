"""A host as `gpupool doctor` sees it, on which nothing is wrong; tests break it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.doctor.facts import Context
from gpupool.v1 import inventory_pb2
from tests.unit.sysfs_fake import FakeSysfs

GIB = 1 << 30
NAMES = ("0000:21:00.0", "0000:41:00.0")
PORTS = ("0000:20:01.0", "0000:40:01.0")
KERNEL = "6.1.0-18-amd64"
FLAGS = "flags\t\t: fpu lm apic tsc vmx aes"
INTERRUPTS = "      CPU0\n  0:  1  IR-IO-APIC   2-edge  timer\n 24:  9  IR-PCI-MSIX-0000:41:00.0  0-edge  nvme0q0\n"
LIBVIRTD = "proc/812"
LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         {0}            {0}            bytes\n"


def config(kind: int = 4, acs: tuple[int, int] | None = (0x1F, 0x1D), size: int = 4096) -> bytes:
    """The config space of a bridge: PCI Express port type, and ACS capability and control."""
    space = bytearray(4096)
    space[0x00:0x04] = bytes([0x86, 0x80, 0x40, 0x03])
    space[0x06] = 0x10
    space[0x34] = 0x40
    space[0x40:0x44] = bytes([0x01, 0x50, 0, 0])  # power management first
    space[0x50:0x54] = bytes([0x10, 0x00, kind << 4 | 2, 0])
    space[0x100:0x104] = (0x0001 | 1 << 16 | 0x148 << 20).to_bytes(4, "little")  # AER
    if acs is not None:
        space[0x148:0x14C] = (0x000D | 1 << 16).to_bytes(4, "little")
        space[0x14C:0x14E] = acs[0].to_bytes(2, "little")
        space[0x14E:0x150] = acs[1].to_bytes(2, "little")
    return bytes(space[:size])


def function(address: str, **fields: Any) -> inventory_pb2.PciFunction:
    gpu = address.endswith(".0")
    made = inventory_pb2.PciFunction(
        address=address,
        vendor_id=0x10DE,
        device_id=0x20B5 if gpu else 0x1AEF,
        class_code=0x030200 if gpu else 0x040300,
        driver="vfio-pci",
        iommu_group=int(address[5:7], 16),
        numa_node=int(address[5:7], 16) >> 6,
        reset_methods=["flr", "bus"],
        path=[PORTS[NAMES.index(f"{address[:-1]}0")]] if f"{address[:-1]}0" in NAMES else [],
        bars=[inventory_pb2.Bar(index=1, bytes=128 * GIB, address=0x200000000000, is_64bit=True, prefetchable=True)],
    )
    made.MergeFrom(inventory_pb2.PciFunction(**fields))
    return made


def inventory() -> inventory_pb2.Inventory:
    units = [
        inventory_pb2.Unit(
            id=name,
            functions=[function(name), function(f"{name[:-1]}1")],
            model="nvidia-a100-80gb",
            numa_node=node,
        )
        for node, name in enumerate(NAMES)
    ]
    nodes = [
        inventory_pb2.NumaNode(
            id=node,
            memory_mib=65536,
            cores=[inventory_pb2.CpuCore(threads=[2 + 2 * node, 3 + 2 * node])],
            hugepages=[inventory_pb2.Hugepages(size_kib=2048, total=4096, free=4096)],
        )
        for node in (0, 1)
    ]
    return inventory_pb2.Inventory(units=units, numa_nodes=nodes)


def files() -> dict[str, str | bytes]:
    return {
        "etc/os-release": 'ID=debian\nVERSION_ID="12"\n',
        "etc/default/grub": 'GRUB_CMDLINE_LINUX=""\n',
        "etc/modprobe.d/vfio.conf": "# ours\noptions  vfio-pci ids=10de:20b5,10de:1aef\n",
        "dev/kvm": "",
        "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 intel_iommu=on -- init=x",
        "proc/cpuinfo": f"processor\t: 0\n{FLAGS}\n",
        "proc/interrupts": INTERRUPTS,
        "proc/iomem": "00000000-00000fff : Reserved\n200000000000-201fffffffff : PCI Bus 0000:20\n",
        "proc/swaps": "Filename\tType\tSize\n",
        "proc/sys/kernel/osrelease": KERNEL,
        "proc/sys/kernel/panic": "10",
        f"{LIBVIRTD}/comm": "libvirtd",
        f"{LIBVIRTD}/limits": LIMITS.format("unlimited"),
        f"{LIBVIRTD}/status": "Name:\tlibvirtd\nCapEff:\t000001ffffffffff\n",
        f"lib/modules/{KERNEL}/modules.dep": "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n",
        "sys/bus/pci/drivers/vfio-pci/bind": "",
        f"sys/bus/pci/devices/{PORTS[0]}/config": config(),
        f"sys/bus/pci/devices/{PORTS[1]}/config": config(),
        "sys/class/iommu/dmar0/intel-iommu/ecap": "f020df",
        "sys/class/watchdog/watchdog0/identity": "iTCO_wdt",
        "sys/class/watchdog/watchdog0/nowayout": "1",
        "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
        "sys/devices/system/cpu/online": "0-5",
        "sys/firmware/acpi/tables/DMAR": bytes(37) + b"\x01" + bytes(10),
        "sys/fs/cgroup/cgroup.controllers": "cpu memory",
        "sys/fs/cgroup/system.slice/cgroup.kill": "",
        "sys/kernel/iommu_groups/33/type": "DMA",
        "sys/kernel/iommu_groups/65/type": "DMA",
        "sys/kernel/mm/ksm/run": "0",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        "sys/module/apparmor/parameters/enabled": "Y",
        "sys/module/kvm_intel/parameters/nested": "N",
        "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "N",
    }


@dataclass
class FakeMachine:
    """What `facts.Machine` says, from a table."""

    says: dict[str, str] = field(
        default_factory=lambda: {
            "libvirtd": "libvirtd (libvirt) 9.0.0",
            "qemu-system-x86_64": "QEMU emulator version 8.2.1",
        }
    )
    may_write: bool | None = True
    synchronised: bool | None = True

    def run(self, command: Sequence[str]) -> str | None:
        return self.says.get(command[0])

    def writable(self, path: str) -> bool | None:
        return self.may_write

    def clock_synchronised(self) -> bool | None:
        return self.synchronised


@dataclass
class Host:
    """All of it, to be changed in place before `context`."""

    files: dict[str, str | bytes] = field(default_factory=files)
    inventory: inventory_pb2.Inventory = field(default_factory=inventory)
    machine: FakeMachine = field(default_factory=FakeMachine)
    more: dict[str, Any] = field(default_factory=dict)

    def drop(self, prefix: str) -> None:
        """Remove a file, or all below a folder."""
        self.files = {k: v for k, v in self.files.items() if k != prefix and not k.startswith(f"{prefix}/")}

    @property
    def gpu(self) -> inventory_pb2.PciFunction:
        return self.inventory.units[0].functions[0]

    def context(self) -> Context:
        options: dict[str, Any] = {"reserved_cpus": (0, 1), **self.more}
        return Context(FakeSysfs(self.files), self.machine, self.inventory, **options)
