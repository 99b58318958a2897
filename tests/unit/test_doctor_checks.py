"""Each check on a host where all is well, and with its fault planted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.config import parse_nics
from agent.devices.early import early_binding
from agent.doctor.examine import ACCEPTABLE, HARDWARE_CHECKS, HOST_CHECKS, NAMES, examine, message, to_store
from agent.doctor.facts import Context, Facts, system_of
from agent.doctor.fixes import OWED
from agent.doctor.model import NOTE, OK, PROBLEM, UNKNOWN, WARNING, Found, keep_out
from agent.doctor.store import etcd
from agent.doctor.units import framebuffer_holders
from agent.inventory.read import read_inventory
from agent.inventory.sysfs import RealSysfs
from agent.simulated.tree import build_tree, parse_shape
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Unavailable
from gpupool.v1 import inventory_pb2
from tests.unit.doctor_host import (
    INTERRUPTS,
    KERNEL,
    LIBVIRTD,
    LIMITS,
    PORTS,
    FakeMachine,
    Host,
    config,
    function,
)
from tests.unit.doctor_host import (
    NAMES as UNITS,
)
from tests.unit.sysfs_fake import FakeSysfs

Finding = inventory_pb2.Finding
UNSAFE = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
TABLES = "sys/firmware/acpi/tables"


def judged(host: Host) -> list[Finding]:
    return asyncio.run(examine(host.context()))


def of(check: str, host: Host) -> list[Finding]:
    return [finding for finding in judged(host) if finding.check == check]


def worst(check: str, host: Host) -> Finding:
    order = [OK, UNKNOWN, NOTE, WARNING, PROBLEM]
    return max(of(check, host), key=lambda finding: order.index(finding.level))


def test_a_host_on_which_nothing_is_wrong() -> None:
    findings = judged(Host())
    assert [(f.check, f.seen) for f in findings if f.level != OK and f.check != "etcd"] == []
    assert {finding.check for finding in findings} == set(NAMES)
    assert not any(finding.risk or finding.fixes for finding in findings)
    assert keep_out(findings, Host().inventory.units) == {}


Plant = Callable[[Host], object]


def put(path: str, content: str | bytes) -> Plant:
    return lambda host: host.files.__setitem__(path, content)


def drop(*prefixes: str) -> Plant:
    def plant(host: Host) -> None:
        for prefix in prefixes:
            host.drop(prefix)

    return plant


def both(*plants: Plant) -> Plant:
    def plant(host: Host) -> None:
        for each in plants:
            each(host)

    return plant


def gpu(**fields: object) -> Plant:
    """Change the first unit's GPU."""

    def plant(host: Host) -> None:
        for name, value in fields.items():
            host.gpu.ClearField(name)  # type: ignore[arg-type]
            host.gpu.MergeFrom(inventory_pb2.PciFunction(**{name: value}))  # type: ignore[arg-type]

    return plant


def machine(**fields: object) -> Plant:
    return lambda host: host.machine.__dict__.update(fields)


def with_neighbour(driver: str) -> Plant:
    """Something in a slot of its own shares the first GPU's group."""
    fields = {"class_code": 0x020000, "driver": driver, "iommu_group": 0x21, "path": [PORTS[0]]}
    return lambda host: host.inventory.units[0].functions.append(function("0000:22:00.0", **fields))


def bar(**fields: object) -> Plant:
    return gpu(bars=[inventory_pb2.Bar(**fields)])  # type: ignore[arg-type]


def no_hugepages(host: Host) -> None:
    for node in host.inventory.numa_nodes:
        node.ClearField("hugepages")


no_groups = drop("sys/kernel/iommu_groups")
no_remapping = put("proc/interrupts", INTERRUPTS.replace("IR-", ""))
screen = put(f"sys/bus/pci/devices/{UNITS[0]}/drm/card0/card0-DP-1/enabled", "enabled")
FRAMEBUFFER = f"200000000000-2fffffffffff : PCI Bus 0000:20\n  2000-3000 : {UNITS[0]}\n    2000-2800 : BOOTFB\n"

FAULTS: dict[str, tuple[str, int, str, Plant]] = {
    "no extension": ("cpu-virtualisation", WARNING, "neither vmx nor svm",
                     put("proc/cpuinfo", "flags : lm tsc apic")),
    "kvm not loaded": ("cpu-virtualisation", WARNING, "kvm_intel is not loaded", drop("dev/kvm")),
    "an arm without kvm": ("cpu-virtualisation", WARNING, "no /dev/kvm",
                           both(put("proc/cpuinfo", "Features : fp asimd"), drop("dev/kvm"))),
    "no cpuinfo": ("cpu-virtualisation", UNKNOWN, "cannot be read", drop("proc/cpuinfo")),
    "in a vm": ("nested", NOTE, "is a VM itself", put("proc/cpuinfo", "flags : lm tsc vmx hypervisor")),
    "guests may nest": ("nested", NOTE, "nested=1", put("sys/module/kvm_intel/parameters/nested", "Y")),
    "no intel_iommu=on": ("iommu", PROBLEM, "without intel_iommu=on",
                          both(no_groups, put("proc/cmdline", "root=/dev/sda1 quiet"))),
    "iommu switched off": ("iommu", PROBLEM, "intel_iommu=off",
                           both(no_groups, put("proc/cmdline", "intel_iommu=off"))),
    "amd's too": ("iommu", PROBLEM, "amd_iommu=off", both(no_groups, put("proc/cmdline", "amd_iommu=off"))),
    "vt-d off in firmware": ("iommu", PROBLEM, "no ACPI table DMAR", both(no_groups, drop(f"{TABLES}/DMAR"),
                             put(f"{TABLES}/APIC", ""))),
    "no acpi at all": ("iommu", PROBLEM, "no ACPI tables", both(no_groups, drop(TABLES))),
    "iommu on in vain": ("iommu", PROBLEM, "the kernel made no groups", no_groups),
    "amd iommu in vain": ("iommu", PROBLEM, "AMD-Vi (IVRS)", both(no_groups, drop(TABLES), put(f"{TABLES}/IVRS", ""))),
    "only groups of no-IOMMU mode": ("iommu", PROBLEM, "off", both(no_groups,
                                     put("sys/kernel/iommu_groups/0/name", "vfio-noiommu"))),
    "unit without a group": ("iommu", PROBLEM, f"does not cover {UNITS[0]}", gpu(iommu_group=-1)),
    "no-iommu mode": ("iommu", WARNING, "no-IOMMU", put("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")),
    "no sysfs": ("iommu", UNKNOWN, "/sys cannot be read", drop("sys")),
    "no remapping": ("interrupt-remapping", PROBLEM, "IO-APIC without IR-", no_remapping),
    "intremap=off": ("interrupt-remapping", PROBLEM, "intremap=off",
                     both(no_remapping, put("proc/cmdline", "intel_iommu=on intremap=off"))),
    "firmware without remapping": ("interrupt-remapping", PROBLEM, "DMAR table",
                                   both(no_remapping, put(f"{TABLES}/DMAR", bytes(48)))),
    "hardware without remapping": ("interrupt-remapping", PROBLEM, "dmar0 cannot do it",
                                   both(no_remapping, put("sys/class/iommu/dmar0/intel-iommu/ecap", "f02087"))),
    "unsafe interrupts": ("interrupt-remapping", PROBLEM, "allow_unsafe_interrupts=1",
                          both(no_remapping, put(UNSAFE, "Y"))),
    "unsafe, without need": ("interrupt-remapping", NOTE, "without need", put(UNSAFE, "Y")),
    "unsafe and unknown": ("interrupt-remapping", WARNING, "cannot be found out",
                           both(drop("proc/interrupts"), put(UNSAFE, "Y"))),
    "remapping unknown": ("interrupt-remapping", UNKNOWN, "cannot be found out", drop("proc/interrupts")),
    "group with an idle stranger": ("iommu-groups", WARNING, "0000:22:00.0 share an IOMMU group", with_neighbour("")),
    "group with a used stranger": ("iommu-groups", PROBLEM, "0000:22:00.0 share", with_neighbour("mlx5_core")),
    "acs missing": ("iommu-groups", WARNING, f"{PORTS[0]}: no ACS capability",
                    both(with_neighbour(""), put(f"sys/bus/pci/devices/{PORTS[0]}/config", config(acs=None)))),
    "acs override": ("iommu-groups", PROBLEM, "pcie_acs_override=downstream",
                     put("proc/cmdline", "pcie_acs_override=downstream")),
    "bar without a place": ("above-4g", PROBLEM, "BAR 1 (128 GiB)", bar(index=1, bytes=128 << 30, is_64bit=True)),
    "large bar placed low": ("above-4g", WARNING, "below 4 GiB",
                             bar(index=1, bytes=256 << 20, address=0xC0000000, is_64bit=True)),
    "no module": ("vfio-modules", PROBLEM, "has no vfio-pci",
                  both(drop("sys/bus/pci/drivers"), put("lib/modules/6.1.0-18-amd64/modules.dep", "kernel/x.ko:"))),
    "module not loaded": ("vfio-modules", PROBLEM, "not loaded", drop("sys/bus/pci/drivers/vfio-pci")),
    "nouveau has it": ("driver-conflict", WARNING, f"nouveau has {UNITS[0]}", gpu(driver="nouveau")),
    "audio has it": ("driver-conflict", NOTE, "snd_hda_intel has",
                     lambda host: setattr(host.inventory.units[0].functions[1], "driver", "snd_hda_intel")),
    "late, driver waits": ("early-binding", WARNING, UNITS[0],
                           both(drop("etc/modprobe.d"), gpu(driver="nvidia"))),
    "late, nobody waits": ("early-binding", NOTE, UNITS[0], drop("etc/modprobe.d")),
    "memlock, no capability": ("memlock", WARNING, "4096 MiB",
                               both(put(f"{LIBVIRTD}/limits", LIMITS.format(4 << 30)), drop(f"{LIBVIRTD}/status"))),
    "memlock, nothing fits": ("memlock", PROBLEM, "64 KiB",
                              both(put(f"{LIBVIRTD}/limits", LIMITS.format(65536)), drop(f"{LIBVIRTD}/status"))),
    "memlock, capable": ("memlock", NOTE, "CAP_SYS_RESOURCE", put(f"{LIBVIRTD}/limits", LIMITS.format(65536))),
    "no libvirtd": ("memlock", UNKNOWN, "neither libvirtd", drop(LIBVIRTD)),
    "limits unreadable": ("memlock", UNKNOWN, "cannot be read", put(f"{LIBVIRTD}/limits", "")),
    "no hugepages": ("hugepages", NOTE, "none are set aside", no_hugepages),
    "none near a gpu": ("hugepages", WARNING, "none on node 1",
                        lambda host: host.inventory.numa_nodes[1].ClearField("hugepages")),
    "fewer than asked": ("hugepages", WARNING, "has 8192", put("proc/cmdline", "hugepagesz=2M hugepages=9000")),
    "fewer on a node": ("hugepages", WARNING, "on node 0 and has 4096; 8192 pages of 2 MiB on node 1 and has 4096",
                        put("proc/cmdline", "hugepages=0:8192,1:8192")),
    "fewer of one size": ("hugepages", WARNING, "64 pages of 1 GiB and has 0",
                          put("proc/cmdline", "hugepagesz=1G hugepages=64 hugepagesz=2M hugepages=8192")),
    "ksm": ("memory-tuning", NOTE, "KSM", put("sys/kernel/mm/ksm/run", "1")),
    "swap": ("memory-tuning", NOTE, "swaps", put("proc/swaps", "Filename\n/dev/sda2 partition 1")),
    "thp off": ("memory-tuning", NOTE, "off",
                put("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")),
    "cgroup v1": ("cgroup-v2", WARNING, "no cgroup v2", drop("sys/fs/cgroup")),
    "old cgroup v2": ("cgroup-v2", WARNING, "without cgroup.kill", drop("sys/fs/cgroup/system.slice")),
    "cgroup not ours": ("cgroup-v2", WARNING, "not writable", machine(may_write=False)),
    "no watchdog": ("watchdog", WARNING, "no watchdog", drop("sys/class/watchdog")),
    "softdog": ("watchdog", WARNING, "softdog", put("sys/class/watchdog/watchdog0/identity", "Software Watchdog")),
    "watchdog unknown": ("watchdog", UNKNOWN, "does not say",
                         both(drop("sys/class/watchdog"), put("dev/watchdog", ""))),
    "stays in panic": ("panic", WARNING, "kernel.panic=0", put("proc/sys/kernel/panic", "0")),
    "panic unknown": ("panic", UNKNOWN, "cannot be read", drop("proc/sys/kernel/panic")),
    "panic empty": ("panic", UNKNOWN, "is empty", put("proc/sys/kernel/panic", "")),
    "panic garbage": ("panic", UNKNOWN, "says 'on'", put("proc/sys/kernel/panic", "on")),
    "clock empty": ("clock", UNKNOWN, "is empty",
                    put("sys/devices/system/clocksource/clocksource0/current_clocksource", "")),
    "slow clock": ("clock", WARNING, "hpet",
                   put("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet")),
    "no ntp": ("clock", WARNING, "in step", machine(synchronised=False)),
    "clock unknown": ("clock", UNKNOWN, "cannot be read", drop("sys/devices/system/clocksource")),
    "no confinement": ("confinement", NOTE, "neither", drop("sys/module/apparmor")),
    "nothing reserved": ("reserved-cpus", WARNING, "every CPU",
                         both(put("sys/devices/system/cpu/online", "2-5"),
                              lambda host: host.more.update(reserved_cpus=()))),
    "reserve unknown": ("reserved-cpus", UNKNOWN, "not known", lambda host: host.more.update(reserved_cpus=None)),
    "no libvirt": ("libvirt", WARNING, "answers", lambda host: host.machine.says.pop("libvirtd")),
    "old libvirt": ("libvirt", WARNING, "6.0.0, older than 9.0",
                    lambda host: host.more.update(libvirt_version="6.0.0")),
    "old qemu": ("qemu", WARNING, "6.2.0, older than 7.2", lambda host: host.more.update(qemu_version="6.2.0")),
    "odd qemu": ("qemu", WARNING, "says 'hm'", lambda host: host.more.update(qemu_version="hm")),
    "qemu from files": ("qemu", UNKNOWN, "files alone", machine(says={}, may_write=None)),
    "no units": ("units", WARNING, "no GPU", lambda host: host.inventory.ClearField("units")),
    "unfit unit": ("units", NOTE, "is not offered: odd", lambda host: setattr(host.inventory.units[0], "unfit", "odd")),
    "no reset": ("reset", PROBLEM, f"no way to reset {UNITS[0]}", gpu(reset_methods=[])),
    "bus reset": ("reset", NOTE, "only a bus reset", gpu(reset_methods=["bus"])),
    "reset by the bridge": ("reset", NOTE, "only a bus reset",
                            both(gpu(reset_methods=[]), put(f"sys/bus/pci/devices/{PORTS[0]}/reset_subordinate", ""))),
    "boot vga": ("boot-vga", WARNING, "boot VGA", gpu(boot_vga=True)),
    "framebuffer": ("boot-vga", WARNING, "(BOOTFB)", put("proc/iomem", FRAMEBUFFER)),
    "a NIC that is not there": ("nics", WARNING, "no network function 0000:99:00.0",
                                lambda host: host.more.update(nics=parse_nics(["0000:99:00.0"]))),
    "locality lost": ("numa", WARNING, UNITS[0], lambda host: setattr(host.inventory.units[0], "numa_node", -1)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    check, level, seen, plant = FAULTS[name]
    host = Host()
    plant(host)
    found = worst(check, host)
    assert (found.level, seen in found.seen) == (level, True), found
    if level in (PROBLEM, WARNING, NOTE):
        assert found.risk, "says what may happen"


def test_every_check_has_a_planted_fault() -> None:
    assert {check for check, _, _, _ in FAULTS.values()} == {*HARDWARE_CHECKS, *HOST_CHECKS}


@pytest.mark.parametrize("name", [name for name, (_, level, _, _) in FAULTS.items() if level in (WARNING, PROBLEM)])
def test_what_is_wrong_has_a_way_out(name: str) -> None:
    check, _, _, plant = FAULTS[name]
    host = Host()
    plant(host)
    systems = [fix.system for fix in worst(check, host).fixes]
    assert systems == ["any"] or set(systems) >= {"debian", "rhel"} or name == "old libvirt", systems


def test_the_iommus_parameter_is_set_as_each_system_does_it() -> None:
    host = Host()
    FAULTS["no intel_iommu=on"][3](host)
    found = worst("iommu", host)
    steps = {fix.system: fix.steps for fix in found.fixes}
    assert steps["rhel"] == "grubby --update-kernel=ALL --args=intel_iommu=on"
    assert steps["debian"].splitlines()[-3:] == [
        'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX intel_iommu=on"', "EOF", "update-grub",
    ]  # fmt: skip
    assert (found.fixable, found.reboot) == (True, True)


@pytest.mark.parametrize(("system", "fixable"), [("debian", True), ("rhel", False), ("", False)])
def test_fixable_only_where_the_way_is_known(system: str, fixable: bool) -> None:
    host = Host()
    FAULTS["no intel_iommu=on"][3](host)
    host.files["etc/os-release"] = f"ID={system}"
    assert worst("iommu", host).fixable == fixable, "there is no grubby on this host"


def test_the_operator_may_take_the_risk_of_unsafe_interrupts() -> None:
    host = Host(more={"accept": frozenset(ACCEPTABLE)})
    FAULTS["unsafe interrupts"][3](host)
    assert worst("interrupt-remapping", host).level == WARNING
    host.files[UNSAFE] = "N"
    assert worst("interrupt-remapping", host).level == PROBLEM, "vfio would refuse; nobody can accept that away"


def test_an_arms_its_separates_devices() -> None:
    host = Host()
    host.files |= {"proc/cpuinfo": "Features : fp", "proc/interrupts": " 12: 3  ITS-PCI-MSI-0000:01:00.0 0 Edge nvme"}
    assert worst("interrupt-remapping", host).level == OK
    assert worst("cpu-virtualisation", host).level == OK


def test_units_tied_by_a_bus_reset_share_no_group() -> None:
    host = Host()
    host.inventory.units[0].functions.append(function("0000:23:00.0", iommu_group=77))
    assert worst("iommu-groups", host).level == OK


def test_units_without_groups_do_not_share_one() -> None:
    host = Host()
    host.inventory.units[0].functions.append(function("0000:22:00.0"))
    for each in host.inventory.units[0].functions:
        each.iommu_group = -1
    assert worst("iommu-groups", host).level == OK
    assert worst("iommu", host).level == PROBLEM


def test_a_rom_needs_no_place() -> None:
    host = Host()
    host.gpu.bars.append(inventory_pb2.Bar(index=6, bytes=1 << 20))
    assert worst("above-4g", host).level == OK


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("hugepages=8192", OK),
        ("hugepages=0:4096,1:4096", OK),
        ("hugepages=0:4096,2:1", WARNING),  # there is no node 2
        ("hugepages=8193", WARNING),
        ("hugepages=8192 hugepages=9000", OK),  # said twice: the kernel takes the first
        ("default_hugepagesz=1G hugepages=1", WARNING),
        ("hugepages=1 default_hugepagesz=1G", WARNING),
        ("hugepagesz=2048K hugepages=8192", OK),
        ("hugepagesz=huge hugepages=99999", OK),  # nobody knows of what
        ("hugepages=1:4096,x", OK),
    ],
)
def test_what_was_asked_for_at_boot_is_there_or_missed(words: str, level: int) -> None:
    host = Host()
    host.files["proc/cmdline"] = f"intel_iommu=on {words}"
    assert worst("hugepages", host).level == level


def allowed(**fields: object) -> Host:
    """The first unit is a GPU only because an operator said so: edu, of class "unassigned"."""
    host = Host()
    host.drop("etc/modprobe.d")
    gpu(vendor_id=0x1234, device_id=0x11E8, class_code=0x00FF00, **fields)(host)
    return host


def test_a_gpu_whose_class_does_not_tell_is_judged_as_any_other() -> None:
    found = worst("reset", allowed(reset_methods=[]))
    assert (found.level, list(found.units)) == (PROBLEM, [UNITS[0]])
    found = worst("early-binding", allowed())
    assert (found.level, list(found.units)) == (NOTE, list(UNITS))
    found = worst("early-binding", allowed(driver="somedrv"))
    assert (found.level, list(found.units)) == (WARNING, list(UNITS)), "the driver has it now"
    host = allowed()
    with_neighbour("")(host)
    assert worst("iommu-groups", host).seen.startswith(f"{UNITS[0]} and 0000:22:00.0 share an IOMMU group")


def test_storage_is_not_bound_early_whatever_an_operator_calls_it() -> None:
    host = allowed()
    gpu(class_code=0x010802)(host)
    assert list(worst("early-binding", host).units) == [UNITS[1]]


def test_only_one_capability_raises_limits() -> None:
    host = Host()
    host.files[f"{LIBVIRTD}/limits"] = LIMITS.format(65536)
    host.files[f"{LIBVIRTD}/status"] = f"CapEff:\t{(1 << 40) - 1 & ~(1 << 24):016x}"
    assert worst("memlock", host).level == PROBLEM


def test_a_management_display_is_nothing_to_worry_about() -> None:
    host = Host()
    screen_of_server = function("0000:03:00.0", vendor_id=0x1A03, class_code=0x030000, boot_vga=True)
    screen_of_server.ClearField("reset_methods")
    screen_of_server.driver = "ast"
    host.inventory.units.append(inventory_pb2.Unit(id="0000:03:00.0", functions=[screen_of_server], unfit="management"))
    assert {finding.check for finding in judged(host) if finding.level != OK} == {"etcd"}


def test_early_rules_that_are_there_are_enough() -> None:
    host = Host()
    host.drop("etc/modprobe.d")
    found = worst("early-binding", host)
    assert (found.level, found.fixable) == (NOTE, True)
    host.files |= early_binding(host.inventory.units, "debian")
    assert worst("early-binding", host).level == OK
    host.files |= early_binding(host.inventory.units[:1], "debian")
    assert worst("early-binding", host).level == NOTE, "a card was added since"


def test_rules_that_are_not_in_the_initramfs_bind_nothing_at_boot() -> None:
    host = Host()
    host.drop("etc/modprobe.d")
    host.files |= early_binding(host.inventory.units, "debian")
    host.files[OWED] = '[["update-initramfs", "-u", "-k", "all"]]'
    found = worst("early-binding", host)
    assert (found.level, found.fixable) == (WARNING, True)
    assert "update-initramfs -u -k all" in found.seen
    host.files[OWED] = '[["update-grub"]]'
    assert worst("early-binding", host).level == OK, "another command says nothing of the initramfs"


def test_a_driver_that_is_built_in_is_before_any_rule() -> None:
    host = Host()
    gpu(driver="virtio-pci")(host)
    host.files[f"lib/modules/{KERNEL}/modules.builtin"] = "kernel/drivers/virtio/virtio_pci.ko\n"
    told, rest = of("early-binding", host)
    assert (told.level, list(told.units), rest.level) == (NOTE, [UNITS[0]], OK)
    assert "virtio-pci" in told.seen
    gpu(driver="nouveau")(host)
    assert [found.level for found in of("early-binding", host)] == [OK]


def test_on_a_system_without_rules_of_ours_the_steps_are_for_a_person() -> None:
    host = Host()
    host.drop("etc")
    found = worst("early-binding", host)
    assert not found.fixable
    assert "ids=10de:1aef,10de:20b5" in found.fixes[0].steps


@pytest.mark.parametrize(
    "plant",
    [gpu(boot_vga=True), screen, with_neighbour("mlx5_core"), gpu(vendor_id=0x1A03),
     lambda host: host.more.update(in_use={UNITS[0]: "a process has it open"})],
)  # fmt: skip
def test_what_the_host_uses_is_never_bound_early(plant: Plant) -> None:
    host = Host()
    host.drop("etc/modprobe.d")
    plant(host)
    assert list(worst("early-binding", host).units) == [UNITS[1]]


def test_a_driver_that_the_host_needs_elsewhere_is_not_blacklisted() -> None:
    host = Host()
    gpu(driver="nouveau")(host)
    host.files[f"sys/bus/pci/drivers/nouveau/{UNITS[0]}"] = ""
    assert worst("driver-conflict", host).fixable
    host.files["sys/bus/pci/drivers/nouveau/0000:01:00.0"] = ""
    assert not worst("driver-conflict", host).fixable


def test_driverctl_and_the_command_line_bind_early_too() -> None:
    host = Host()
    host.drop("etc/modprobe.d")
    host.files[f"etc/driverctl.d/{UNITS[0]}"] = "vfio-pci\n"
    assert list(worst("early-binding", host).units) == [UNITS[1]]
    host.files["proc/cmdline"] = "vfio-pci.ids=10DE:20B5:1234:5678"
    assert worst("early-binding", host).level == OK


def test_a_name_that_is_no_utf_8_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    (name,) = RealSysfs(tmp_path).list("")
    found = message(Found(check="watchdog", level=OK, seen=f"{name}: iTCO_wdt"), Facts(Host().context()))
    assert found.seen == r"\udcff: iTCO_wdt"


def test_what_keeps_units_out() -> None:
    units = Host().inventory.units
    findings = [
        Finding(check="reset", level=PROBLEM, seen="no way", units=[UNITS[0]]),
        Finding(check="numa", level=WARNING, seen="lost", units=[UNITS[1]]),
    ]
    assert keep_out(findings, units) == {UNITS[0]: "reset: no way"}
    findings.append(Finding(check="iommu", level=PROBLEM, seen="off"))
    assert keep_out(findings, units) == {UNITS[0]: "iommu: off; reset: no way", UNITS[1]: "iommu: off"}
    assert keep_out(findings, []) == {}


def test_the_inventory_gets_what_matters() -> None:
    findings = [Finding(check=str(level), level=level) for level in (OK, NOTE, WARNING, PROBLEM, UNKNOWN)]
    assert [finding.level for finding in to_store(findings)] == [NOTE, WARNING, PROBLEM]


def test_a_simulated_hosts_units_are_never_kept_out(tmp_path: Path) -> None:
    build_tree(tmp_path / "sim", parse_shape("4xnvidia-a100-80gb"))
    inventory = read_inventory(RealSysfs(tmp_path / "sim"))
    machine = FakeMachine(says={}, may_write=False, synchronised=False)
    for files in ({}, {"proc/cpuinfo": "flags : lm tsc", "proc/sys/kernel/panic": "0"}, Host().files):
        context = Context(FakeSysfs(files), machine, inventory, simulated=True)
        findings = asyncio.run(examine(context))
        assert len(inventory.units) == 4
        assert keep_out(findings, inventory.units) == {}
        assert not {finding.check for finding in findings} & (set(HARDWARE_CHECKS) - {"units"})


class SlowStore(MemoryStore):
    """Answers, or fails, as it is told."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__(MemoryBackend())
        self.failure = failure

    async def get(self, key: str) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize(
    ("took_s", "failure", "level"),
    [(0.001, None, OK), (0.9, None, WARNING), (0.001, Unavailable("refused"), WARNING)],
)
async def test_etcd_is_timed_against_the_lease(took_s: float, failure: Exception | None, level: int) -> None:
    ticks = (took_s * tick for tick in range(100))
    host = Host(more={"store": SlowStore(failure), "endpoints": ("e1:2379",), "ttl_s": 8.0})
    found = await etcd(host.context(), lambda: next(ticks))
    assert found.level == level
    assert "e1:2379" in found.seen


def test_without_an_etcd_its_state_is_unknown() -> None:
    assert worst("etcd", Host()).level == UNKNOWN


@pytest.mark.parametrize(
    ("text", "system"),
    [("ID=ubuntu\nID_LIKE=debian", "debian"), ('ID="rocky"\nID_LIKE="rhel centos fedora"', "rhel"),
     ("ID=arch", ""), ("ID=linuxmint\nID_LIKE='ubuntu debian'", "debian"), ("", "")],
)  # fmt: skip
def test_the_family_of_a_system(text: str, system: str) -> None:
    assert system_of(FakeSysfs({"etc/os-release": text})) == system
    assert system_of(FakeSysfs({"usr/lib/os-release": text})) == system


def test_parameters_meant_for_init_are_not_the_kernels() -> None:
    facts = Facts(Host(files={"proc/cmdline": "a=1 a=2 quiet -- intremap=off"}).context())
    assert (facts.parameter("a"), facts.parameter("quiet"), facts.parameter("intremap")) == ("2", "", None)


def test_a_framebuffer_belongs_to_the_window_around_it() -> None:
    nested = "1-9 : PCI Bus\n  1-5 : 0000:01:00.0\n    1-2 : efifb\n  6-9 : 0000:02:00.0\n    6-7 : nvidia\n"
    assert framebuffer_holders(nested) == {"0000:01:00.0": "efifb"}
    assert framebuffer_holders("1-2 : BOOTFB\n") == {}


def test_a_check_that_fails_does_not_silence_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Facts) -> None:
        raise RuntimeError("odd")

    monkeypatch.setitem(HARDWARE_CHECKS, "reset", broken)
    findings = {finding.check: finding for finding in judged(Host())}
    assert findings["reset"].level == UNKNOWN
    assert "odd" in findings["reset"].seen
    assert findings["watchdog"].level == OK


PATHS = sorted(Host().files)
TEXTS = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([b"", b"\x00", b"-1", b"99999999999999999999", b"[never]", b"flags : vmx lm", b"ID=\n=", b"a=b c"]),
)
RANDOM_FUNCTIONS = st.builds(
    inventory_pb2.PciFunction,
    address=st.sampled_from([*UNITS, "0000:22:00.1", "odd", ""]),
    class_code=st.sampled_from([0, 0x030000, 0x030200, 0x0C0330, 0xFFFFFF]),
    vendor_id=st.integers(0, 0xFFFF),
    iommu_group=st.integers(-1, 3),
    driver=st.sampled_from(["", "vfio-pci", "nvidia", "x y"]),
    reset_methods=st.lists(st.sampled_from(["flr", "bus", "?"]), max_size=2),
    path=st.lists(st.sampled_from([*PORTS, "odd"]), max_size=2),
    boot_vga=st.booleans(),
    bars=st.lists(st.builds(inventory_pb2.Bar, index=st.integers(0, 9), bytes=st.integers(0, 2**64 - 1)), max_size=2),
)
RANDOM_UNITS = st.lists(
    st.builds(inventory_pb2.Unit, id=st.text(max_size=3), functions=st.lists(RANDOM_FUNCTIONS, max_size=3)), max_size=3
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changed=st.dictionaries(st.sampled_from(PATHS), TEXTS, max_size=8),
    gone=st.sets(st.sampled_from(PATHS), max_size=12),
    units=st.none() | RANDOM_UNITS,
)
def test_no_tree_makes_a_check_fail(
    changed: dict[str, bytes], gone: set[str], units: list[inventory_pb2.Unit] | None
) -> None:
    host = Host()
    host.files = {path: text for path, text in {**host.files, **changed}.items() if path not in gone}
    if units is not None:
        host.inventory.ClearField("units")
        host.inventory.units.extend(units)
    findings = judged(host)
    assert {finding.check for finding in findings} == set(NAMES)
    assert not [finding.seen for finding in findings if "this check failed" in finding.seen]
