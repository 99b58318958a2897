"""Who uses a function: every kind of user is found, by name, and nobody is found who is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.devices.holders import Use, holders, in_use, members, refusals
from agent.devices.nodes import below
from agent.inventory.sysfs import RealSysfs
from gpupool.v1 import inventory_pb2

GPU, AUDIO, NVME, NIC = "0000:21:00.0", "0000:21:00.1", "0000:41:00.0", "0000:61:00.0"


@dataclass
class Machine:
    """A root directory with as much of /proc and /sys as a test needs."""

    path: Path

    @property
    def root(self) -> RealSysfs:
        return RealSysfs(self.path)

    def file(self, path: str, text: str = "") -> None:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, path: str, target: str) -> None:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)

    def function(self, address: str, driver: str = "", group: int = 7) -> str:
        """A function; returns the path of its directory."""
        home = f"sys/devices/pci0000:20/0000:20:01.0/{address}"
        self.file(f"{home}/uevent", f"PCI_SLOT_NAME={address}")
        self.link(f"sys/bus/pci/devices/{address}", f"../../../devices/pci0000:20/0000:20:01.0/{address}")
        self.link(f"{home}/iommu_group", f"../../../../kernel/iommu_groups/{group}")
        self.link(f"{home}/subsystem", "../../../../bus/pci")
        if driver:
            self.link(f"{home}/driver", f"../../../../bus/pci/drivers/{driver}")
        return home

    def device(self, path: str, subsystem: str, node: str = "", number: str = "") -> None:
        """A device below a function."""
        self.file(f"{path}/uevent", f"MAJOR=1\nDEVNAME={node}\n" if node else "MAJOR=1\n")
        self.link(f"{path}/subsystem", f"../../../../../../class/{subsystem}")
        self.link(f"{path}/device", "../..")  # points upwards, as the kernel's does
        if number:
            self.file(f"{path}/dev", f"{number}\n")

    def process(self, pid: int, command: Sequence[str], opened: Sequence[str] = (), mounts: str = "") -> None:
        self.file(f"proc/{pid}/cmdline", "".join(f"{word}\0" for word in command))
        self.file(f"proc/{pid}/comm", "a-thread\n")
        for number, target in enumerate(["/dev/null", "socket:[1234]", *opened]):
            self.link(f"proc/{pid}/fd/{number}", target)
        if mounts:
            self.file(f"proc/{pid}/mountinfo", mounts)
            self.link(f"proc/{pid}/ns/mnt", f"mnt:[{pid}]")

    def nvme(self) -> None:
        """A drive with one partition."""
        home = self.function(NVME, "nvme")
        self.device(f"{home}/nvme/nvme0", "nvme", "nvme0")
        disk = f"{home}/nvme/nvme0/nvme0n1"
        self.device(disk, "block", "nvme0n1", "259:0")
        self.device(f"{disk}/nvme0n1p1", "block", "nvme0n1p1", "259:1")
        self.link("sys/class/block/nvme0n1p1", f"../../../{disk}/nvme0n1p1")

    def texts(self, *addresses: str, ours: Sequence[int] = ()) -> list[str]:
        return [str(holder) for holder in holders(self.root, addresses, ours=ours)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.process(1, ["/sbin/init"], mounts="22 1 0:21 / /proc rw - proc proc rw\n")
    return made


def gpu(machine: Machine, driver: str = "nouveau") -> str:
    home = machine.function(GPU, driver)
    machine.device(f"{home}/drm/card1", "drm", "dri/card1")
    machine.device(f"{home}/drm/renderD128", "drm", "dri/renderD128")
    return home


def unit(*addresses: str) -> inventory_pb2.Unit:
    functions = [inventory_pb2.PciFunction(address=address) for address in addresses]
    return inventory_pb2.Unit(id=addresses[0], functions=functions)


def test_nobody(machine: Machine) -> None:
    gpu(machine)
    machine.nvme()
    machine.function(AUDIO)
    machine.process(812, ["/usr/bin/python3"], ["/dev/dri/card0", "/dev/dri/renderD129", "/dev/vfio/vfio"])
    assert machine.texts(GPU, AUDIO, NVME, "0000:ff:00.0") == []
    assert in_use(machine.root, [unit(GPU), unit(NVME)], {}, ()) == {}


def test_display_server(machine: Machine) -> None:
    gpu(machine)
    machine.process(812, ["/usr/lib/Xorg", ":0"], ["/dev/dri/card1", "/dev/dri/renderD128"])
    assert machine.texts(GPU) == [f"{GPU} is used by process 812 [/usr/lib/Xorg :0] (has /dev/dri/card1 open)"]


def test_deleted_node_and_kernel_thread(machine: Machine) -> None:
    gpu(machine)
    machine.process(9, [], ["/dev/dri/card1 (deleted)"])
    assert machine.texts(GPU) == [f"{GPU} is used by process 9 [a-thread] (has /dev/dri/card1 open)"]


def test_nvidias_own_driver_has_its_nodes_elsewhere(machine: Machine) -> None:
    machine.function(GPU, "nvidia")
    machine.function("0000:22:00.0", "nvidia", 8)
    machine.file(f"proc/driver/nvidia/gpus/{GPU}/information", "Model: A100\nDevice Minor: \t 3\n")
    machine.file("proc/driver/nvidia/gpus/0000:22:00.0/information", "Device Minor: 4\n")
    machine.process(500, ["nvidia-persistenced"], ["/dev/nvidiactl", "/dev/nvidia3"])
    found = holders(machine.root, [GPU, "0000:22:00.0"], ours=())
    assert [(one.address, one.pid) for one in found] == [(GPU, 500)]


def test_amds_compute_node_is_shared(machine: Machine) -> None:
    gpu(machine, "amdgpu")
    machine.process(77, ["train"], ["/dev/kfd"])
    assert machine.texts(GPU) == [
        f"{GPU} is used by process 77 [train] (has /dev/kfd open, which serves several devices)"
    ]


def test_sound(machine: Machine) -> None:
    home = machine.function(AUDIO, "snd_hda_intel")
    machine.device(f"{home}/sound/card1", "sound")
    machine.device(f"{home}/sound/card1/controlC1", "sound", "snd/controlC1")
    machine.process(4, ["pipewire"], ["/dev/snd/controlC1"])
    assert [holder.detail for holder in holders(machine.root, [AUDIO], ours=())] == ["has /dev/snd/controlC1 open"]


@pytest.mark.parametrize("node", ["/dev/vfio/7", "/dev/vfio/noiommu-7", "/dev/vfio/devices/vfio0"])
def test_somebody_elses_vm(machine: Machine, node: str) -> None:
    home = machine.function(GPU, "vfio-pci")
    machine.device(f"{home}/vfio-dev/vfio0", "vfio-dev", "vfio/devices/vfio0")
    command = ["/usr/bin/qemu-system-x86_64", "-name", "guest=win10,debug-threads=on", "-S"]
    machine.process(4711, command, [node])
    (holder,) = holders(machine.root, [GPU], ours=())
    assert (holder.use, holder.pid) == (Use.PROCESS, 4711)
    assert "process 4711, VM 'win10' [/usr/bin/qemu-system-x86_64 -name guest=win10," in str(holder)
    assert holders(machine.root, [GPU], ours=[4711]) == [], "ours is nobody else"


def test_an_open_group_is_every_function_of_it(machine: Machine) -> None:
    machine.function(GPU, "vfio-pci")
    machine.function(AUDIO, "snd_hda_intel")
    machine.function(NIC, "vfio-pci", group=70)
    machine.process(4711, ["qemu"], ["/dev/vfio/7"])
    assert in_use(machine.root, [unit(GPU, AUDIO), unit(NIC)], {}, ()).keys() == {GPU}


def test_a_domain_is_named_even_where_no_process_shows(machine: Machine) -> None:
    machine.function(GPU, "vfio-pci")
    reasons = in_use(machine.root, [unit(GPU)], {GPU: "win10"}, ())
    assert reasons == {GPU: f"{GPU} is used by libvirt domain 'win10' (it is none of gpupool's)"}


def test_a_bar_mapped_by_a_program(machine: Machine) -> None:
    machine.function(GPU)
    machine.process(31, ["dpdk-testpmd"], [f"/sys/devices/pci0000:20/0000:20:01.0/{GPU}/resource0"])
    machine.process(32, ["lspci"], [f"/sys/devices/pci0000:20/0000:20:01.0/{GPU}/config"])
    assert [holder.pid for holder in holders(machine.root, [GPU], ours=())] == [31]


def test_long_lists_and_long_commands_are_cut(machine: Machine) -> None:
    gpu(machine)
    for pid in range(100, 110):
        machine.process(pid, ["x" * 500], ["/dev/dri/card1"])
    (text,) = refusals(machine.root, [GPU], ours=()).values()
    assert text.endswith(" and 7 more")
    assert len(text) < 700


# Storage

MOUNT = "36 1 {number} / {point} rw shared:1 - {kind} {source} rw\n"


def test_mounted_drive(machine: Machine) -> None:
    machine.nvme()
    table = MOUNT.format(number="259:1", point="/srv/my\\040data", kind="ext4", source="/dev/root")
    machine.file("proc/1/mountinfo", table)
    assert machine.texts(NVME) == [f"{NVME} is used by the file system mounted on /srv/my data (on /dev/nvme0n1p1)"]


def test_drive_mounted_in_a_container_only(machine: Machine) -> None:
    machine.nvme()
    table = MOUNT.format(number="259:0", point="/data", kind="xfs", source="/dev/nvme0n1")
    machine.process(900, ["sleep"], mounts=table)
    assert [holder.use for holder in holders(machine.root, [NVME], ours=())] == [Use.MOUNT]


def test_file_system_without_a_device_number_of_its_own(machine: Machine) -> None:
    machine.nvme()
    table = MOUNT.format(number="0:45", point="/home", kind="btrfs", source="/dev/nvme0n1p1")
    machine.file("proc/1/mountinfo", table)
    assert [holder.who for holder in holders(machine.root, [NVME], ours=())] == ["the file system mounted on /home"]


def test_second_disk_of_a_btrfs(machine: Machine) -> None:
    machine.nvme()
    machine.link("sys/fs/btrfs/1b2c/devices/nvme0n1p1", "../../../../x")
    assert machine.texts(NVME) == [f"{NVME} is used by btrfs 1b2c (/dev/nvme0n1p1 is a part of it)"]


def test_swap(machine: Machine) -> None:
    machine.nvme()
    machine.file("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 8 0 -2\n")
    assert [holder.use for holder in holders(machine.root, [NVME], ours=())] == [Use.SWAP]


def test_volume_group_on_raid_on_the_drive(machine: Machine) -> None:
    machine.nvme()
    machine.link("sys/class/block/nvme0n1p1/holders/md0", "../../md0")
    machine.link("sys/class/block/md0/holders/dm-2", "../../dm-2")
    machine.file("sys/class/block/md0/dev", "9:0")
    machine.file("sys/class/block/dm-2/dev", "254:2")
    machine.file("sys/class/block/dm-2/dm/name", "vg-scratch")
    machine.link("sys/class/block/dm-2/holders/md0", "../../md0")  # a tree that lies: a ring
    table = MOUNT.format(number="254:2", point="/scratch", kind="xfs", source="/dev/mapper/vg-scratch")
    machine.file("proc/1/mountinfo", table)
    assert machine.texts(NVME) == [
        f"{NVME} is used by /dev/md0 (built on /dev/nvme0n1p1)",
        f"{NVME} is used by /dev/dm-2 (vg-scratch) (built on /dev/md0)",
        f"{NVME} is used by the file system mounted on /scratch (on /dev/dm-2)",
    ]


def test_drive_that_can_have_several_paths(machine: Machine) -> None:
    home = machine.function(NVME, "nvme")
    machine.device(f"{home}/nvme/nvme0", "nvme", "nvme0")
    subsystem = "sys/class/nvme-subsystem/nvme-subsys0"
    machine.link(f"{subsystem}/nvme0", "../../../x")
    machine.file(f"{subsystem}/nvme0n1/dev", "259:3")
    machine.file(f"{subsystem}/nvme0n1/nvme0n1p2/dev", "259:4")
    table = MOUNT.format(number="259:4", point="/", kind="ext4", source="/dev/root")
    machine.file("proc/1/mountinfo", table)
    assert machine.texts(NVME) == [f"{NVME} is used by the file system mounted on / (on /dev/nvme0n1p2)"]


def test_raw_disk_of_a_database(machine: Machine) -> None:
    machine.nvme()
    machine.process(66, ["oracle"], ["/dev/nvme0n1"])
    assert [holder.pid for holder in holders(machine.root, [NVME], ours=())] == [66]


# Network and console


@pytest.mark.parametrize(
    ("flags", "master", "detail"),
    [("0x1003", "", "it is up"), ("0x1002", "bond0", "a port of bond0"), ("nonsense", "", "it is up")],
)
def test_network_interface(machine: Machine, flags: str, master: str, detail: str) -> None:
    home = machine.function(NIC, "mlx5_core")
    machine.device(f"{home}/net/ens3", "net")
    machine.file("sys/class/net/ens3/flags", flags)
    if master:
        machine.link("sys/class/net/ens3/master", f"../{master}")
    assert machine.texts(NIC) == [f"{NIC} is used by network interface ens3 ({detail})"]
    (machine.path / "sys/class/net/ens3/flags").write_text("0x1002")
    assert bool(machine.texts(NIC)) == bool(master)


def test_rdma_user(machine: Machine) -> None:
    home = machine.function(NIC, "mlx5_core")
    machine.device(f"{home}/infiniband_verbs/uverbs0", "infiniband_verbs", "infiniband/uverbs0")
    machine.process(5, ["opensm"], ["/dev/infiniband/uverbs0"])
    assert [holder.pid for holder in holders(machine.root, [NIC], ours=())] == [5]


def console(machine: Machine, name: str, bind: str = "1") -> None:
    machine.file("sys/class/vtconsole/vtcon0/name", f"(S) {name}")
    machine.file("sys/class/vtconsole/vtcon0/bind", bind)


@pytest.mark.parametrize("boot_vga", [True, False])
def test_console_on_its_framebuffer(machine: Machine, *, boot_vga: bool) -> None:
    """fbcon takes every framebuffer, but only the boot VGA's is the host's console."""
    home = gpu(machine)
    machine.file(f"{home}/boot_vga", str(int(boot_vga)))
    machine.device(f"{home}/graphics/fb0", "graphics", "fb0")
    console(machine, "frame buffer device")
    used = f"{GPU} is used by the text console (drawn on fb0)"
    assert machine.texts(GPU) == ([used] if boot_vga else [])
    console(machine, "frame buffer device", bind="0")
    assert machine.texts(GPU) == []


def test_firmwares_framebuffer_in_the_boot_vga(machine: Machine) -> None:
    home = machine.function(GPU)
    machine.file(f"{home}/boot_vga", "1")
    machine.link("sys/class/graphics/fb0", "../../devices/platform/efi-framebuffer.0/graphics/fb0")
    assert machine.texts(GPU) == [f"{GPU} is used by the firmware's framebuffer (fb0; this is the boot VGA)"]
    (machine.path / home / "boot_vga").write_text("0")
    assert machine.texts(GPU) == []


def test_text_mode_console_on_the_boot_vga(machine: Machine) -> None:
    home = machine.function(GPU)
    machine.file(f"{home}/boot_vga", "1")
    console(machine, "VGA+")
    assert machine.texts(GPU) == [f"{GPU} is used by the VGA text console (this is the boot VGA)"]
    console(machine, "dummy device")
    assert machine.texts(GPU) == []


@pytest.mark.parametrize(
    ("boot_vga", "code", "maybe"),
    [
        *(("", "0x030000", True), ("x", "0x030200", True), (None, "0x030000", True), (None, None, True)),
        *((None, "0x03", True), (None, "0x030200", False), ("0", "0x030000", False)),
    ],
)
def test_what_may_be_the_boot_vga_counts_as_one(
    machine: Machine, boot_vga: str | None, code: str | None, *, maybe: bool
) -> None:
    home = machine.function(GPU)
    console(machine, "VGA+")
    for name, text in (("boot_vga", boot_vga), ("class", code)):
        if text is not None:
            machine.file(f"{home}/{name}", text)
    why = "this may be the boot VGA, its boot_vga cannot be read"
    assert machine.texts(GPU) == ([f"{GPU} is used by the VGA text console ({why})"] if maybe else [])
    assert machine.texts("0000:ff:00.0") == [], "what is not there is no console"


# Trees that lie


def test_what_is_behind_a_bridge_is_not_below_it(machine: Machine) -> None:
    home = machine.function("0000:20:01.1", "pcieport")
    machine.device(f"{home}/{GPU}/drm/card9", "drm", "dri/card9")
    assert below(machine.root, "0000:20:01.1").nodes == ("/dev/vfio/7", "/dev/vfio/noiommu-7")


def test_deep_and_broken_trees_end(machine: Machine) -> None:
    home = machine.function(GPU, "nouveau")
    deep = f"{home}/" + "/".join(["d"] * 60)
    machine.file(f"{deep}/uevent", "DEVNAME=deep")
    (machine.path / home / "drm").mkdir()
    (machine.path / home / "drm" / os.fsdecode(b"\xff\xfe")).mkdir()
    machine.file("proc/1/mountinfo", "nonsense\n - \n1 2 3\n")
    machine.file("proc/swaps", "\n\n")
    assert machine.texts(GPU, "", "../../etc") == []


def test_members_of_a_cgroup(machine: Machine) -> None:
    machine.file("sys/fs/cgroup/gpupool/vms/cgroup.procs", "12\n4711\n")
    assert members(machine.root, "sys/fs/cgroup/gpupool/vms") == {12, 4711}
    assert members(machine.root, "sys/fs/cgroup/none") == frozenset()


def test_this_machine_can_be_read() -> None:
    root = RealSysfs(Path("/"))
    holders(root, root.list("sys/bus/pci/devices"), ours=())
