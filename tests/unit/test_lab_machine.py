"""A lab host's description: what QEMU is told, and what inventory follows from it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from lab.machine import FULL, SMALL, Files, Machine, Ports, Slot, audio, gpu, kernel_line, qemu_argv

FILES = Files(("qemu",), Path("/i/vmlinuz"), Path("/i/initrd"), (("root", Path("/i/root.ext4")),), Path("/run/h1"))


def devices(machine: Machine) -> list[str]:
    argv = qemu_argv("h1", machine, FILES, Ports(control=7, agent=8))
    return [value for option, value in itertools.pairwise(argv) if option == "-device"]


def device(machine: Machine, name: str) -> str:
    return next(value for value in devices(machine) if f",id={name}," in value)


def test_every_device_is_there_once_and_has_its_own_chassis() -> None:
    told = devices(FULL)
    for name in FULL.devices():
        assert len([value for value in told if f",id={name}," in value]) == 1
    chassis = [word for value in told for word in value.split(",") if word.startswith("chassis=")]
    assert len(chassis) == len(set(chassis)) == 12


def test_flr_and_companions_are_told() -> None:
    assert "x-pcie-flr-init=on" in device(FULL, "gpu-flr")
    assert "x-pcie-flr-init=off" in device(FULL, "gpu-noflr")
    assert "addr=0.0,multifunction=on" in device(FULL, "gpu-sound")
    assert "addr=0.1" in device(FULL, "sound")


def test_acs_is_off_for_the_shared_group_only_or_everywhere() -> None:
    ports = [value for value in devices(FULL) if value.startswith("pcie-root-port")]
    assert sum("disable-acs=on" in value for value in ports) == 2
    ports = [value for value in devices(FULL.but(acs=False)) if value.startswith("pcie-root-port")]
    assert all("disable-acs=on" in value for value in ports)


def test_expected_units() -> None:
    units = {unit.gpus: unit for unit in FULL.expected_units()}
    assert list(units) == [
        ("gpu-flr",),
        ("gpu-noflr",),
        ("gpu-sound",),
        ("gpu-group0", "gpu-group1"),
        ("gpu-switch0",),
        ("gpu-switch1",),
        ("vga0",),
    ]
    assert units["gpu-sound",].others == ("sound",)
    assert (units["gpu-flr",].node, units["gpu-switch1",].node) == (0, 1)
    assert [unit.gpus for unit in units.values() if unit.boot_vga] == [("vga0",)]
    assert {unit.gpus: unit.nic for unit in units.values() if unit.nic} == {("gpu-switch0",): "nic0"}
    assert [unit.gpus for unit in SMALL.expected_units()] == [("gpu-flr",), ("gpu-far",), ("gpu-pulled",), ("vga0",)]


def test_without_acs_a_switch_is_one_group() -> None:
    assert ("gpu-switch0", "gpu-switch1") in FULL.but(acs=False).groups()
    assert ("gpu-flr",) in FULL.but(acs=False).groups()


@pytest.mark.parametrize("iommu", ["off", "absent"])
def test_without_an_iommu_there_are_no_groups(iommu: str) -> None:
    machine = FULL.but(iommu=iommu)
    assert machine.groups() == []
    assert any(value.startswith("intel-iommu") for value in devices(machine)) == (iommu == "off")
    assert "intel_iommu=off" in kernel_line("h1", machine)
    assert [unit.gpus for unit in machine.expected_units()][3:5] == [("gpu-group0",), ("gpu-group1",)]


def test_switches_of_a_machine() -> None:
    assert "hugepages=0:8,1:16" in kernel_line("h1", SMALL.but(hugepages=(8, 16)))
    assert "intremap=off" in " ".join(devices(SMALL.but(interrupt_remapping=False)))
    assert "i6300esb" not in " ".join(devices(SMALL.but(watchdog=False)))
    assert list(kernel_line("h1", SMALL.but(kernel=("a=b",))))[-1] == "a=b"


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="node beyond"):
        Machine(topology=(Slot(2, ((gpu("g"), audio("a")),)),))
    with pytest.raises(ValueError, match="hugepages"):
        SMALL.but(hugepages=(1,))
