"""The IOMMU: whether devices are kept to their VM's memory, and their interrupts to their VM's vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .facts import Facts
from .model import NOTE, PROBLEM, UNKNOWN, WARNING, Advice, Found, KernelParameters, ok, unknown

IOMMU, REMAPPING = "iommu", "interrupt-remapping"
# ACPI tables that describe an IOMMU: Intel VT-d, AMD-Vi, ARM SMMU, virtio-iommu.
TABLES = {"DMAR": "Intel VT-d", "IVRS": "AMD-Vi", "IORT": "ARM SMMU", "VIOT": "virtio-iommu"}
NO_IOMMU_GROUP = "vfio-noiommu"  # drivers/vfio/group.c: the name of groups without an IOMMU behind them
GRUB_DROP_IN = "etc/default/grub.d/gpupool.cfg"
INTR_REMAP = 0x01  # DMAR flags, VT-d specification 8.1: the platform supports interrupt remapping
DMAR_FLAGS = 37  # offset in the table
ECAP_IR = 1 << 3  # extended capability register, VT-d specification 11.4.3

_DMA = (
    "vfio-pci refuses devices without an IOMMU, rightly: a VM that owns one could have it read and write all of the "
    "host's memory (DMA attack)."
)
_MSI = (
    "A VM that owns a device can have it write to the interrupt address range and so raise any interrupt vector of "
    "the host (interrupt message injection): crash it, or worse."
)
_FIRMWARE = (
    'Switch it on in the firmware\'s set-up: Intel: "VT-d"; AMD: "IOMMU" (often below AMD CBS > NBIO); ARM: "SMMU".\n'
    "If this host is a VM, its hypervisor must give it an emulated IOMMU with interrupt remapping."
)
_UNSAFE = {
    "vfio_iommu_type1": "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "iommufd": "sys/module/iommufd/parameters/allow_unsafe_interrupts",
}
_DISABLING = {"iommu": "off", "intel_iommu": "off", "amd_iommu": "off"}
_HEX = re.compile(r"(?:0x)?([0-9a-f]{1,16})", re.IGNORECASE)


def iommu(facts: Facts) -> Iterator[Found]:
    """Whether the IOMMU is on and every unit is in a group; if not, why."""
    if not facts.root.list("sys/kernel"):
        yield unknown(IOMMU, "/sys cannot be read")
        return
    if not groups(facts):
        yield _off(facts)
        return
    bare = [unit for unit in facts.units if any(function.iommu_group < 0 for function in unit.functions)]
    if bare:
        seen = f"the IOMMU is on, but does not cover {', '.join(facts.ids(bare))}"
        advice = Advice(
            any="`dmesg | grep -iE 'dmar|amd-vi|smmu'` may say why; update the firmware, or use another slot."
        )
        yield Found(IOMMU, PROBLEM, seen, _DMA, advice, units=facts.ids(bare))
    else:
        names = ", ".join(facts.root.list("sys/class/iommu")[:4])
        yield ok(IOMMU, f"on, {len(groups(facts))} groups" + (f" ({names})" if names else ""))
    if facts.root.read("sys/module/vfio/parameters/enable_unsafe_noiommu_mode") == "Y":
        yield Found(
            IOMMU,
            WARNING,
            "vfio's no-IOMMU mode is allowed",
            "A program can open a device that no IOMMU covers, and read and write all memory with it.",
            Advice(
                any="Remove enable_unsafe_noiommu_mode=1 from /etc/modprobe.d and the kernel's command line; at "
                "once:\n"
                "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
            ),
        )


def groups(facts: Facts) -> list[str]:
    """The IOMMU groups, without those that vfio makes up in its no-IOMMU mode."""
    base = "sys/kernel/iommu_groups"
    return [name for name in facts.root.list(base) if facts.root.read(f"{base}/{name}/name") != NO_IOMMU_GROUP]


def _off(facts: Facts) -> Found:
    tables = facts.root.list("sys/firmware/acpi/tables")
    table = next((name for name in TABLES if name in tables), None)
    for name, value in _DISABLING.items():
        if value in (facts.parameter(name) or "").split(","):
            return _problem(f"off: the kernel was started with {name}={value}", _remove(f"{name}={value}"))
    if not tables:
        return _problem("off: no IOMMU groups, and no ACPI tables that could name one", Advice(any=_FIRMWARE))
    if table is None:
        return _problem(
            "off: the firmware names no IOMMU (no ACPI table DMAR, IVRS, IORT or VIOT)", Advice(any=_FIRMWARE)
        )
    if table == "DMAR" and facts.parameter("intel_iommu") is None:
        later = (
            ""
            if "intel_iommu=on" not in (facts.root.read(GRUB_DROP_IN) or "")
            else (f"; /{GRUB_DROP_IN} has it for the next boot")
        )
        seen = f"off: the firmware offers {TABLES[table]} (DMAR), the kernel was started without intel_iommu=on{later}"
        return Found(IOMMU, PROBLEM, seen, _DMA, remedies=(KernelParameters(("intel_iommu=on",)),), reboot=True)
    seen = f"off: the firmware offers {TABLES[table]} ({table}), but the kernel made no groups"
    advice = "`dmesg | grep -iE 'dmar|amd-vi|smmu|iommu'` says why: a broken table, or a kernel without that driver."
    return _problem(seen, Advice(any=f"{advice}\nUpdate the firmware, or use the distribution's kernel."))


def _problem(seen: str, advice: Advice) -> Found:
    return Found(IOMMU, PROBLEM, seen, _DMA, advice, reboot=True)


def _remove(word: str) -> Advice:
    return Advice(
        debian=f"sed -i 's/ *\\<{word}\\>//' /etc/default/grub /etc/default/grub.d/*.cfg\nupdate-grub\nreboot",
        rhel=f"grubby --update-kernel=ALL --remove-args={word}\nreboot",
    )


def remapping(facts: Facts) -> Iterator[Found]:
    """Whether interrupts of devices are remapped, and what vfio would do without."""
    if not groups(facts):
        yield unknown(REMAPPING, "nothing to judge while the IOMMU is off")
        return
    works, evidence = remapping_state(facts)
    unsafe = [module for module, path in _UNSAFE.items() if facts.root.read(path) in ("Y", "1")]
    setting = f"{unsafe[0]} has allow_unsafe_interrupts=1" if unsafe else ""
    advice = _advice(facts, unsafe)
    if works is None:
        told = "; ".join(filter(None, (f"cannot be found out ({evidence})", setting)))
        yield Found(
            REMAPPING, WARNING if unsafe else UNKNOWN, told, _MSI if unsafe else "", advice if unsafe else Advice()
        )
    elif works and unsafe:
        risk = (
            "If remapping is ever lost, as after a firmware update, VMs start all the same and can inject interrupts."
        )
        yield Found(REMAPPING, NOTE, f"in use ({evidence}); {setting}, without need", risk, advice)
    elif works:
        yield ok(REMAPPING, f"in use ({evidence})")
    elif unsafe:
        yield Found(
            REMAPPING, PROBLEM, f"not in use ({evidence}), and {setting}", _MSI, advice, acceptable=True, reboot=True
        )
    else:
        risk = f'vfio refuses each device ("No interrupt remapping"), rightly: {_MSI[0].lower()}{_MSI[1:]}'
        yield Found(REMAPPING, PROBLEM, f"not in use ({evidence})", risk, advice, reboot=True)


def remapping_state(facts: Facts) -> tuple[bool | None, str]:
    """Whether interrupt remapping is in use, None for unknown; and what says so.

    The names of interrupt chips are the evidence of use (arch/x86/kernel/apic/io_apic.c: "IR-IO-APIC"; the IOMMU
    drivers: "IR-PCI-MSI"); parameters, table and registers only say why it is not.
    """
    chips = facts.long("proc/interrupts")
    for name in ("IR-IO-APIC", "IR-PCI-MSI"):
        if re.search(rf"\s{name}", chips):
            return True, f"/proc/interrupts has {name}"
    if re.search(r"\sITS-(?:PCI-)?MSI", chips):
        return True, "ARM's ITS separates devices"
    if facts.parameter("nointremap") is not None or "off" in (facts.parameter("intremap") or "").split(","):
        return False, "the kernel was started with intremap=off"
    dmar = facts.root.read_bytes("sys/firmware/acpi/tables/DMAR", DMAR_FLAGS + 1) or b""
    if len(dmar) > DMAR_FLAGS and not dmar[DMAR_FLAGS] & INTR_REMAP:
        return False, "the firmware's DMAR table does not offer it"
    for unit in facts.root.list("sys/class/iommu"):
        match = _HEX.fullmatch(facts.root.read(f"sys/class/iommu/{unit}/intel-iommu/ecap") or "")
        if match and not int(match[1], 16) & ECAP_IR:
            return False, f"{unit} cannot do it"
    if chip := re.search(r"\s(IO-APIC|PCI-MSIX?)\b", chips):
        return False, f"/proc/interrupts has {chip[1]} without IR-"
    return None, "/proc/interrupts does not say"


def _advice(facts: Facts, unsafe: list[str]) -> Advice:
    steps = []
    works, _ = remapping_state(facts)
    if not works:
        steps.append(
            "In the firmware's set-up switch on interrupt remapping (part of VT-d or AMD's IOMMU; x2APIC not opted "
            "out),\n"
            "and take intremap=off from the kernel's command line if it is there."
        )
    if unsafe:
        steps.append(
            f"Remove allow_unsafe_interrupts from /etc/modprobe.d and the kernel's command line, then:\n"
            f"echo N > /{_UNSAFE[unsafe[0]]}"
        )
    if unsafe and not works:
        steps.append(f"Where all tenants are trusted, the operator may take the risk: --accept {REMAPPING}")
    return Advice(any="\n".join(steps))
