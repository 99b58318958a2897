"""Files that give units to vfio-pci at boot, before a driver of the host's can take them.

Decides what to write, writes nothing. It never names a device by its ids alone, as `options vfio-pci ids=` does: the
host's own GPU may have the same. It never trusts an address alone either: after a card was plugged in, the host's own
disk may sit there. A function is taken only where address and ids agree, it is not the boot VGA, no driver has it yet,
and an IOMMU is on.

How: a soft dependency makes every driver that wants these devices load vfio-pci first (modprobe.d(5)); the install
command of vfio-pci sets `driver_override` of each function before it loads the module. That works the same in Debian's
initramfs, in dracut's and after it, in whatever order modules come. The udev rule does it for what turns up later, such
as after a rescan, and for kernels that have vfio-pci built in: there the devices stay without driver until the agent
comes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from gpupool.v1.inventory_pb2 import PciFunction, Unit

from ..inventory import gpus
from ..inventory.pci import NETWORK

DEBIAN, RHEL = "debian", "rhel"
MODPROBE = "etc/modprobe.d/gpupool-vfio.conf"
UDEV = "etc/udev/rules.d/60-gpupool-vfio.rules"  # before 80-drivers.rules, which loads drivers
INITRAMFS_MODULES = "usr/share/initramfs-tools/modules.d/gpupool-vfio"
DRACUT = "etc/dracut.conf.d/gpupool-vfio.conf"

HEADER = "# Written by gpupool doctor --fix; it writes this file anew.\n"
VGA = 0x0300
_SOFTDEP = re.compile(r"^softdep (\S+) pre: vfio-pci$", re.MULTILINE)
MULTIMEDIA, SERIAL_BUS = 0x04, 0x0C  # base classes
# Drivers that take GPUs and their companions, as kernel and vendors name the modules.
_DRIVERS: Mapping[int, Sequence[str]] = MappingProxyType(
    {
        gpus.NVIDIA: ("nouveau", "nova_core", "nvidia", "nvidia-current", "nvidiafb", "i2c_nvidia_gpu"),
        gpus.AMD: ("amdgpu", "radeon"),
        gpus.INTEL: ("i915", "xe"),
    }
)
_COMPANIONS: Mapping[int, Sequence[str]] = MappingProxyType({MULTIMEDIA: ("snd_hda_intel",), SERIAL_BUS: ("xhci_pci",)})


def early_binding(units: Iterable[Unit], system: str, wanting: Collection[str] = ()) -> dict[str, str]:
    """Contents by path below the root, for a "debian" or "rhel" system; empty if there is nothing to bind.

    Units with the boot VGA are left out. `wanting`: modules that must wait for vfio-pci, beside those that are known
    for such devices and those that are bound now. The initramfs must be built anew for it to take effect. Raises
    ValueError for another system.
    """
    if system not in (DEBIAN, RHEL):
        raise ValueError(f"no early binding for {system!r}; there is {DEBIAN} and {RHEL}")
    chosen = [unit for unit in units if not any(function.boot_vga for function in unit.functions)]
    functions = sorted((f for unit in chosen for f in unit.functions), key=lambda function: function.address)
    if not functions:
        return {}
    files = {MODPROBE: _modprobe(functions, wanting), UDEV: _udev(functions)}
    if system == DEBIAN:
        files[INITRAMFS_MODULES] = f"{HEADER}vfio-pci\n"
    else:
        # force_drivers also loads it, before udev looks for drivers (dracut.conf(5)).
        files[DRACUT] = f'{HEADER}force_drivers+=" vfio-pci "\ninstall_items+=" /{MODPROBE} "\n'
    return files


def waiting_in(rules: str) -> set[str]:
    """The modules that rules written earlier let wait: what was bound then may have been taken by the rules since."""
    return set(_SOFTDEP.findall(rules)) if rules.startswith(HEADER) else set()


def _modprobe(functions: Sequence[PciFunction], wanting: Collection[str]) -> str:
    """One logical line for the install command: only builtins of sh, for an initramfs has little else."""
    wanted = " \\\n".join(f"    {f.address}={f.vendor_id:#06x}:{f.device_id:#06x}" for f in functions)
    lines = [
        "install vfio-pci set -- /sys/class/iommu/*; [ -e $1 ] && for f in \\",
        f"{wanted}; do \\",
        "    p=/sys/bus/pci/devices/${f%%=*}; v=; d=; b=0; \\",
        "    { read -r v < $p/vendor; read -r d < $p/device; read -r b < $p/boot_vga; } 2> /dev/null; \\",
        '    [ "$v:$d" = ${f#*=} ] && [ "$b" != 1 ] && [ ! -e $p/driver ] && echo vfio-pci > $p/driver_override; \\',
        "    done; /sbin/modprobe --ignore-install vfio-pci $CMDLINE_OPTS",
    ]
    softdeps = "".join(f"softdep {driver} pre: vfio-pci\n" for driver in sorted({*_drivers(functions), *wanting}))
    return HEADER + softdeps + "\n".join(lines) + "\n"


def _udev(functions: Sequence[PciFunction]) -> str:
    return HEADER + "".join(
        f'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="{f.address}", ATTR{{vendor}}=="{f.vendor_id:#06x}", '
        f'ATTR{{device}}=="{f.device_id:#06x}", {_not_boot_vga(f)}TEST!="driver", ATTR{{driver_override}}="vfio-pci"\n'
        for f in functions
    )


def _not_boot_vga(function: PciFunction) -> str:
    """Only VGA controllers have the attribute, and how udev compares one that is not there depends on its version."""
    return 'ATTR{boot_vga}=="0", ' if function.class_code >> 8 == VGA else ""


def _drivers(functions: Iterable[PciFunction]) -> set[str]:
    """The modules that must wait for vfio-pci: those that may want the functions, and those that have them."""
    found: set[str] = set()
    for function in functions:
        base_class = function.class_code >> 16
        found.update(_DRIVERS.get(function.vendor_id, ()) if base_class not in (NETWORK, *_COMPANIONS) else ())
        found.update(_COMPANIONS.get(base_class, ()))
        if function.driver and "vfio" not in function.driver and function.driver != "pci-stub":
            found.add(function.driver)
    return found
