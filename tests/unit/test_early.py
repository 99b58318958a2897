"""Early binding: the files to the letter, and what the install command does to a tree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from agent.devices.early import DEBIAN, DRACUT, INITRAMFS_MODULES, MODPROBE, RHEL, UDEV, early_binding
from gpupool.v1.inventory_pb2 import PciFunction, Unit

GPU, AUDIO, OTHER = "0000:21:00.0", "0000:21:00.1", "0000:41:00.0"


def units() -> list[Unit]:
    gpu = PciFunction(address=GPU, vendor_id=0x10DE, device_id=0x2684, class_code=0x030000)
    audio = PciFunction(
        address=AUDIO, vendor_id=0x10DE, device_id=0x22BA, class_code=0x040300, driver="snd_hda_intel"
    )  # fmt: skip
    other = PciFunction(address=OTHER, vendor_id=0x1002, device_id=0x740F, class_code=0x038000, driver="vfio-pci")
    return [Unit(id=OTHER, functions=[other]), Unit(id=GPU, functions=[gpu, audio])]


def test_files_by_system() -> None:
    debian, rhel = early_binding(units(), DEBIAN), early_binding(units(), RHEL)
    assert debian.keys() == {MODPROBE, UDEV, INITRAMFS_MODULES}
    assert rhel.keys() == {MODPROBE, UDEV, DRACUT}
    assert debian[MODPROBE] == rhel[MODPROBE]
    assert debian[INITRAMFS_MODULES].splitlines()[1:] == ["vfio-pci"]
    assert rhel[DRACUT].splitlines()[1:] == [
        'force_drivers+=" vfio-pci "',
        'install_items+=" /etc/modprobe.d/gpupool-vfio.conf "',
    ]


def test_modprobe_to_the_letter() -> None:
    assert early_binding(units(), DEBIAN)[MODPROBE] == (
        r"""# Written by gpupool doctor --fix; it writes this file anew.
softdep amdgpu pre: vfio-pci
softdep i2c_nvidia_gpu pre: vfio-pci
softdep nouveau pre: vfio-pci
softdep nova_core pre: vfio-pci
softdep nvidia pre: vfio-pci
softdep nvidia-current pre: vfio-pci
softdep nvidiafb pre: vfio-pci
softdep radeon pre: vfio-pci
softdep snd_hda_intel pre: vfio-pci
install vfio-pci set -- /sys/class/iommu/*; [ -e $1 ] && for f in \
    0000:21:00.0=0x10de:0x2684 \
    0000:21:00.1=0x10de:0x22ba \
    0000:41:00.0=0x1002:0x740f; do \
    p=/sys/bus/pci/devices/${f%%=*}; v=; d=; b=0; \
    { read -r v < $p/vendor; read -r d < $p/device; read -r b < $p/boot_vga; } 2> /dev/null; \
    [ "$v:$d" = ${f#*=} ] && [ "$b" != 1 ] && [ ! -e $p/driver ] && echo vfio-pci > $p/driver_override; \
    done; /sbin/modprobe --ignore-install vfio-pci $CMDLINE_OPTS
"""
    )


def test_udev_to_the_letter() -> None:
    assert early_binding(units(), DEBIAN)[UDEV] == (
        """# Written by gpupool doctor --fix; it writes this file anew.
ACTION=="add", SUBSYSTEM=="pci", KERNEL=="0000:21:00.0", ATTR{vendor}=="0x10de", ATTR{device}=="0x2684", """
        """ATTR{boot_vga}=="0", TEST!="driver", ATTR{driver_override}="vfio-pci"
ACTION=="add", SUBSYSTEM=="pci", KERNEL=="0000:21:00.1", ATTR{vendor}=="0x10de", ATTR{device}=="0x22ba", """
        """TEST!="driver", ATTR{driver_override}="vfio-pci"
ACTION=="add", SUBSYSTEM=="pci", KERNEL=="0000:41:00.0", ATTR{vendor}=="0x1002", ATTR{device}=="0x740f", """
        """TEST!="driver", ATTR{driver_override}="vfio-pci"
"""
    )


def test_nothing_to_bind() -> None:
    screen = Unit(functions=[PciFunction(address=GPU, boot_vga=True), PciFunction(address=AUDIO)])
    assert early_binding([], DEBIAN) == early_binding([screen], RHEL) == {}


def test_system_that_is_not_known() -> None:
    with pytest.raises(ValueError, match="no early binding for 'plan9'; there is debian and rhel"):
        early_binding(units(), "plan9")


def install_command() -> str:
    text = early_binding(units(), DEBIAN)[MODPROBE].replace("\\\n", "")
    (line,) = [line for line in text.splitlines() if line.startswith("install ")]
    return line.removeprefix("install vfio-pci ")


class Tree:
    """A sysfs, and a modprobe that only says that it was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "class/iommu/dmar0").mkdir(parents=True)
        for address, vendor, device in (
            (GPU, "0x10de", "0x2684"),
            (AUDIO, "0x10de", "0x22ba"),
            (OTHER, "0x1002", "0x740f"),
        ):
            home = self.home(address)
            home.mkdir(parents=True)
            (home / "vendor").write_text(f"{vendor}\n")
            (home / "device").write_text(f"{device}\n")
            (home / "driver_override").write_text("(null)\n")

    def home(self, address: str) -> Path:
        return self.path / "bus/pci/devices" / address

    def overridden(self) -> set[str]:
        """Run the install command; the functions that have the override then."""
        command = install_command().replace("/sys/", f"{self.path}/")
        command = command.replace("/sbin/modprobe", "echo loads").replace("$CMDLINE_OPTS", "")
        shell = shutil.which("dash") or "/bin/sh"  # Debian's initramfs has a small one
        done = subprocess.run([shell, "-c", command], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("loads --ignore-install vfio-pci\n", "")
        homes = (self.path / "bus/pci/devices").iterdir()
        return {home.name for home in homes if (home / "driver_override").read_text() == "vfio-pci\n"}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_every_function_is_taken(tree: Tree) -> None:
    assert tree.overridden() == {GPU, AUDIO, OTHER}
    assert tree.overridden() == {GPU, AUDIO, OTHER}


def test_another_device_at_the_address_is_left_alone(tree: Tree) -> None:
    (tree.home(GPU) / "device").write_text("0x1533\n")
    assert tree.overridden() == {AUDIO, OTHER}


def test_function_that_is_gone(tree: Tree) -> None:
    shutil.rmtree(tree.home(GPU))
    assert tree.overridden() == {AUDIO, OTHER}


def test_boot_vga_is_left_alone(tree: Tree) -> None:
    (tree.home(GPU) / "boot_vga").write_text("1\n")
    (tree.home(OTHER) / "boot_vga").write_text("0\n")
    assert tree.overridden() == {AUDIO, OTHER}


def test_function_that_has_a_driver_keeps_it(tree: Tree) -> None:
    (tree.home(AUDIO) / "driver").mkdir()
    assert tree.overridden() == {GPU, OTHER}


def test_without_an_iommu_the_module_is_loaded_and_nothing_else(tree: Tree) -> None:
    shutil.rmtree(tree.path / "class/iommu")
    assert tree.overridden() == set()


@pytest.mark.skipif(not shutil.which("modprobe"), reason="needs kmod's modprobe, to see how it reads the file")
def test_modprobe_reads_the_file_as_it_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "gpupool-vfio.conf"
    file.write_text(early_binding(units(), DEBIAN)[MODPROBE])
    done = subprocess.run(["modprobe", "-C", str(file), "-c"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    (install,) = [line for line in lines if line.startswith("install ")]
    assert install.split() == ["install", "vfio_pci", *install_command().split()]
    assert "softdep nouveau pre: vfio-pci" in lines
