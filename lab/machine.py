"""What a lab host is made of, the QEMU command line that makes it, and the inventory to expect of it. Pure.

A device's name is its id in QEMU, so `Host.addresses` finds where the firmware has put it; nothing here depends on an
address. The topology is a literal: read `FULL` to know what the lab has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

VIRTIO = "iommu_platform=on,disable-legacy=on"  # else its DMA would pass by the IOMMU
WATCHDOG = "i6300esb"
ACCELERATOR_IDS = "1234:11e8"  # of QEMU's edu device
CORES_PER_NODE = 2
# PCI buses of a node's expander begin here; a node can have that many of them.
_BUSES_PER_NODE = 64
CONTROL_PORT = 7000  # of the exec daemon in the host, on a network of its own
AGENT_PORT = 50152
GATEWAY = "10.0.2.2"  # as which a host reaches the loopback of the machine outside


@dataclass(frozen=True, slots=True)
class Device:
    """One PCI function. `driver` and `options` are QEMU's, `class_code` has 24 bits.

    `vfs` SR-IOV virtual functions are switched on before an agent starts, and pooled by it.
    """

    name: str
    driver: str
    class_code: int
    flr: bool
    options: str = ""
    vfs: int = 0

    @property
    def model(self) -> str:
        """What the agent calls it, if it is a GPU."""
        return f"pci-{ACCELERATOR_IDS.replace(':', '-')}" if self.driver == "edu" else "virtio-gpu"

    @property
    def is_gpu(self) -> bool:
        """Whether the agent takes it for a GPU."""
        return self.class_code >> 16 == 0x03 or self.driver == "edu"


def gpu(name: str, *, flr: bool = True) -> Device:
    """A stand-in for a GPU: display class, no VGA. Without FLR it can be reset by its bus or by power management."""
    return Device(name, "virtio-gpu-pci", 0x038000, flr, f"{VIRTIO},x-pcie-flr-init={'on' if flr else 'off'}")


def accelerator(name: str) -> Device:
    """A stand-in for a GPU whose class does not tell, so that agents must be told its ids. No FLR.

    It can be pulled out and plugged in again: QEMU does not let anybody do that to a virtio-gpu.
    """
    return Device(name, "edu", 0x00FF00, flr=False)


def vga(name: str) -> Device:
    """A VGA: the firmware makes it the boot VGA."""
    return Device(name, "virtio-vga", 0x030000, flr=True, options=VIRTIO)


def audio(name: str) -> Device:
    """A GPU's sound function."""
    return Device(name, "ich9-intel-hda", 0x040300, flr=False)


def nvme(name: str) -> Device:
    """An NVMe disk of 64 MiB."""
    return Device(name, "nvme", 0x010802, flr=True, options=f"serial={name},drive={name}")


def igb(name: str, *, vfs: int = 0) -> Device:
    """A network adapter with SR-IOV (7 virtual functions)."""
    return Device(name, "igb", 0x020000, flr=True, options=f"netdev={name},romfile=", vfs=vfs)


@dataclass(frozen=True, slots=True)
class Slot:
    """Root ports that are the functions of one slot; each leads to a device, given as its functions.

    Without `acs` the devices behind it end up in one IOMMU group.
    """

    node: int
    devices: tuple[tuple[Device, ...], ...]
    acs: bool = True


@dataclass(frozen=True, slots=True)
class Switch:
    """A PCIe switch behind a root port, with a device behind each of its downstream ports.

    The ports have no ACS; Linux puts each device into one group with its port, and not with the other's device.
    """

    node: int
    devices: tuple[tuple[Device, ...], ...]


@dataclass(frozen=True, slots=True)
class ExpectedUnit:
    """A device unit that the agent should find: the names of its functions, GPUs first, and where it is.

    `nic`: the adapter whose first virtual function goes with it; the agent knows it to be below the same PCIe root.
    """

    gpus: tuple[str, ...]
    others: tuple[str, ...]
    node: int
    boot_vga: bool
    nic: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A lab host. `memory_mib` is spread evenly over `nodes`; `hugepages` are 2 MiB pages on each node.

    `iommu`: switched on, switched off on the kernel's line, or not there at all. `acs=False` takes ACS from every root
    port. `kernel` is appended to the kernel's line.
    """

    topology: tuple[Slot | Switch, ...]
    nodes: int = 2
    memory_mib: int = 3072
    iommu: Literal["on", "off", "absent"] = "on"
    interrupt_remapping: bool = True
    acs: bool = True
    hugepages: tuple[int, ...] = ()
    watchdog: bool = True
    kernel: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be built."""
        if any(part.node >= self.nodes for part in self.topology):
            raise ValueError(f"a device is on a node beyond the {self.nodes} that the machine has")
        if self.hugepages and len(self.hugepages) != self.nodes:
            raise ValueError(f"hugepages for {len(self.hugepages)} nodes; the machine has {self.nodes}")

    def devices(self) -> Mapping[str, Device]:
        """Every device by its name."""
        return {device.name: device for part in self.topology for functions in part.devices for device in functions}

    def node_of(self, name: str) -> int:
        """The NUMA node of a device. Raises KeyError."""
        for part in self.topology:
            if any(device.name == name for functions in part.devices for device in functions):
                return part.node
        raise KeyError(name)

    def groups(self) -> list[tuple[str, ...]]:
        """Names of devices that share an IOMMU group, in the order of the topology; none without an IOMMU."""
        found: list[tuple[str, ...]] = []
        for part in self.topology if self.iommu == "on" else ():
            each = [tuple(device.name for device in functions) for functions in part.devices]
            isolated = self.acs and (isinstance(part, Switch) or part.acs)
            found += each if isolated else [tuple(name for names in each for name in names)]
        return found

    def expected_units(self) -> list[ExpectedUnit]:
        """The device units that the agent should find, in the order of the topology."""
        devices = self.devices()
        groups = self.groups() or [
            tuple(device.name for device in functions) for part in self.topology for functions in part.devices
        ]
        found = [
            ExpectedUnit(
                gpus=tuple(name for name in group if devices[name].is_gpu),
                others=tuple(name for name in group if not devices[name].is_gpu),
                node=self.node_of(group[0]),
                boot_vga=any(devices[name].driver == "virtio-vga" for name in group),
            )
            for group in groups
            if any(devices[name].is_gpu for name in group)
        ]
        # One expander a node, so all that is on a node is below one root; of equally near ones the first has it.
        for nic in (name for name, device in devices.items() if device.vfs):
            taker = next(n for n, unit in enumerate(found) if unit.node == self.node_of(nic) and not unit.nic)
            found[taker] = dataclasses.replace(found[taker], nic=nic)
        return found

    def but(self, **changes: object) -> Machine:
        """A copy with some fields changed, such as `FULL.but(iommu="off")`."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


FULL = Machine(
    topology=(
        Slot(0, ((gpu("gpu-flr"),),)),
        Slot(0, ((gpu("gpu-noflr", flr=False),),)),
        Slot(0, ((gpu("gpu-sound"), audio("sound")),)),
        Slot(0, ((gpu("gpu-group0"),), (gpu("gpu-group1"),)), acs=False),
        Switch(1, ((gpu("gpu-switch0"),), (gpu("gpu-switch1"),))),
        Slot(1, ((nvme("nvme0"),),)),
        Slot(1, ((igb("nic0", vfs=1),),)),
        Slot(1, ((vga("vga0"),),)),
        Slot(0, ((igb("nic1"),),)),
    ),
    hugepages=(0, 128),
)
SMALL = Machine(
    topology=(
        Slot(0, ((gpu("gpu-flr"),),)),
        Slot(1, ((gpu("gpu-far"),),)),
        Slot(1, ((accelerator("gpu-pulled"),),)),
        Slot(1, ((vga("vga0"),),)),
    ),
    memory_mib=2048,
)


@dataclass(frozen=True, slots=True)
class Files:
    """What a machine boots from, and where it keeps its own files. `disks` are read-only: serial and file."""

    qemu: tuple[str, ...]
    kernel: Path
    initrd: Path
    disks: tuple[tuple[str, Path], ...]
    folder: Path


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on the loopback of the machine outside that lead to the exec daemon and the agent in the host."""

    control: int
    agent: int


@dataclass(slots=True)
class _Numbers:
    """Chassis numbers, which must differ within a machine, and slots of the expanders."""

    chassis: int = 0
    slots: dict[int, int] = field(default_factory=dict)

    def next_chassis(self) -> int:
        self.chassis += 1
        return self.chassis

    def next_slot(self, node: int) -> int:
        self.slots[node] = self.slots.get(node, -1) + 1
        return self.slots[node]


def qemu_argv(name: str, machine: Machine, files: Files, ports: Ports) -> list[str]:
    """The command that runs the machine as host `name`."""
    return [
        *files.qemu,
        *("-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
        *("-machine", "q35,kernel-irqchip=split,usb=off"),
        # The emulated CPU has SVM, so guests run under the host's own KVM: emulated once and not twice.
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off"),
        *_numa(machine),
        *_iommu(machine),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", " ".join(kernel_line(name, machine))),
        *_own_devices(machine, files, ports),
        *_topology(machine, files),
    ]


def kernel_line(name: str, machine: Machine) -> Iterator[str]:
    """The words of the kernel's command line."""
    yield from ("console=ttyS0", "quiet", "panic=5", "net.ifnames=0", f"lab.name={name}")
    yield from ("no_timer_check", "tsc=reliable", "nokaslr", "mitigations=off", "iommu=pt")
    # QEMU's TCG can lose a CPU's one-shot timer while devices are being reset, and then that CPU never wakes up again.
    # A periodic one comes again.
    yield from ("nohz=off", "highres=off")
    # Debian's kernel has it on by default: off must be said.
    yield f"intel_iommu={'on' if machine.iommu == 'on' else 'off'}"
    if machine.hugepages:
        yield "hugepagesz=2M"
        yield "hugepages=" + ",".join(f"{node}:{count}" for node, count in enumerate(machine.hugepages))
    yield from machine.kernel


def _numa(machine: Machine) -> Iterator[str]:
    each = machine.memory_mib // machine.nodes
    cpus = CORES_PER_NODE * machine.nodes
    yield from (
        "-smp",
        f"{cpus},sockets={machine.nodes},cores={CORES_PER_NODE},threads=1",
        "-m",
        f"{machine.memory_mib}M",
    )
    for node in range(machine.nodes):
        first = node * CORES_PER_NODE
        yield from ("-object", f"memory-backend-ram,id=ram{node},size={each}M")
        yield from ("-numa", f"node,nodeid={node},memdev=ram{node},cpus={first}-{first + CORES_PER_NODE - 1}")
    for node in range(1, machine.nodes):
        for other in range(node):
            yield from ("-numa", f"dist,src={other},dst={node},val=21")


def _iommu(machine: Machine) -> Iterator[str]:
    if machine.iommu != "absent":
        remapping = "on" if machine.interrupt_remapping else "off"
        yield from ("-device", f"intel-iommu,intremap={remapping},caching-mode=on,device-iotlb=on")


def _own_devices(machine: Machine, files: Files, ports: Ports) -> Iterator[str]:
    """What every host has on its root bus: disks, two networks, console, watchdog."""
    for serial, file in files.disks:
        yield from ("-drive", f"if=none,id=disk-{serial},file={file},format=raw,readonly=on,file.locking=off")
        yield from ("-device", f"virtio-blk-pci,drive=disk-{serial},serial={serial}")
    # The control network lets a test talk to the host while `data` is unplugged.
    control = f"user,id=control,net=10.0.3.0/24,restrict=on,hostfwd=tcp:127.0.0.1:{ports.control}-:{CONTROL_PORT}"
    data = f"user,id=data,net=10.0.2.0/24,hostfwd=tcp:127.0.0.1:{ports.agent}-:{AGENT_PORT}"
    for number, (network, backend) in enumerate((("data", data), ("control", control))):
        yield from ("-netdev", backend)
        mac = f"52:54:00:00:00:{number:02x}"
        yield from ("-device", f"virtio-net-pci,id=nic-{network},netdev={network},romfile=,mac={mac}")
    yield from ("-serial", f"file:{files.folder}/console.log", "-pidfile", f"{files.folder}/pid")
    yield from ("-qmp", f"unix:{files.folder}/qmp.sock,server=on,wait=off", "-device", "virtio-rng-pci")
    if machine.watchdog:
        yield from ("-device", WATCHDOG, "-action", "watchdog=reset")


def _topology(machine: Machine, files: Files) -> Iterator[str]:
    numbers = _Numbers()
    for node in sorted({part.node for part in machine.topology}):
        bus = _BUSES_PER_NODE * node + _BUSES_PER_NODE // 2
        yield from ("-device", f"pxb-pcie,id=node{node},bus=pcie.0,bus_nr={bus},numa_node={node}")
    for part in machine.topology:
        if isinstance(part, Switch):
            yield from _switch(part, machine, numbers, files)
        else:
            yield from _slot(part, machine, numbers, files)


def _slot(part: Slot, machine: Machine, numbers: _Numbers, files: Files) -> Iterator[str]:
    slot = numbers.next_slot(part.node)
    for function, device in enumerate(part.devices):
        chassis = numbers.next_chassis()
        options = ",multifunction=on" if len(part.devices) > 1 and function == 0 else ""
        options += "" if part.acs and machine.acs else ",disable-acs=on"
        yield from _root_port(f"port{chassis}", part.node, f"{slot}.{function}", chassis, options)
        yield from _device(device, f"port{chassis}", files)


def _switch(part: Switch, machine: Machine, numbers: _Numbers, files: Files) -> Iterator[str]:
    chassis = numbers.next_chassis()
    options = "" if machine.acs else ",disable-acs=on"
    yield from _root_port(f"port{chassis}", part.node, f"{numbers.next_slot(part.node)}.0", chassis, options)
    yield from ("-device", f"x3130-upstream,id=up{chassis},bus=port{chassis}")
    for device in part.devices:
        down = numbers.next_chassis()
        yield from ("-device", f"xio3130-downstream,id=down{down},bus=up{chassis},chassis={down},slot={down}")
        yield from _device(device, f"down{down}", files)


def _root_port(port: str, node: int, address: str, chassis: int, options: str) -> tuple[str, str]:
    return (
        "-device",
        f"pcie-root-port,id={port},bus=node{node},addr={address},chassis={chassis},slot={chassis}{options}",
    )


def plug(machine: Machine, name: str) -> dict[str, str]:
    """Arguments of QMP's device_add that put a device back which was pulled. Raises KeyError."""
    argv = list(_topology(machine, Files((), Path(), Path(), (), Path())))
    (told,) = (value for value in argv if f",id={name}," in value)
    driver, *options = told.split(",")
    return {"driver": driver, **dict(option.split("=", 1) for option in options)}


def _device(functions: Sequence[Device], bus: str, files: Files) -> Iterator[str]:
    for number, device in enumerate(functions):
        if device.driver == "nvme":
            yield from ("-drive", f"if=none,id={device.name},file={files.folder}/{device.name}.img,format=raw")
        elif device.driver == "igb":
            yield from ("-netdev", f"user,id={device.name},net=10.5.0.0/24,restrict=on")
        words = [device.driver, f"id={device.name}", f"bus={bus}", f"addr=0.{number}"]
        words += ["multifunction=on"] if len(functions) > 1 and number == 0 else []
        yield from ("-device", ",".join([*words, *filter(None, [device.options])]))
