"""CPU virtualisation, and whether this host is a VM itself."""

from __future__ import annotations

from collections.abc import Iterator

from .facts import Facts
from .model import NOTE, WARNING, Advice, Found, LoadModules, ok, unknown

VIRTUALISATION, NESTED = "cpu-virtualisation", "nested"
# Linux clears the flag where firmware has switched the extension off (arch/x86/kernel/cpu/feat_ctl.c, amd.c).
_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
_SLOW = "Without KVM each VM is emulated: tens of times slower, and jobs run into their time limits."
_FIRMWARE = (
    'Switch it on in the firmware\'s set-up: Intel: "Intel Virtualization Technology (VMX)"; AMD: "SVM Mode".\n'
    "If this host is a VM, let its own hypervisor pass the extension on (CPU mode host-passthrough, nested=1)."
)


def virtualisation(facts: Facts) -> Iterator[Found]:
    """Whether KVM can run VMs here: the CPU's extension, and /dev/kvm."""
    if not facts.cpuinfo:
        yield unknown(VIRTUALISATION, "/proc/cpuinfo cannot be read")
        return
    has_kvm = "kvm" in facts.root.list("dev")
    flag = next((flag for flag in _MODULES if flag in facts.cpu_flags), None)
    if facts.is_x86 and flag is None:
        beside = "; there is a /dev/kvm, but of a module that does without the extension" if has_kvm else ""
        seen = f"the CPU shows neither vmx nor svm: it has none, or the firmware switched it off{beside}"
        yield Found(VIRTUALISATION, WARNING, seen, _SLOW, Advice(any=_FIRMWARE), reboot=True)
    elif has_kvm:
        yield ok(VIRTUALISATION, f"{flag or 'KVM'} and /dev/kvm")
    elif flag:
        remedy = LoadModules("kvm", ("kvm", _MODULES[flag]))
        yield Found(
            VIRTUALISATION,
            WARNING,
            f"the CPU has {flag}, but there is no /dev/kvm: {_MODULES[flag]} is not loaded",
            _SLOW,
            Advice(any="If the module does not load, `dmesg | grep kvm` says why; often the firmware forbids it."),
            remedies=(remedy,),
        )
    else:
        yield Found(
            VIRTUALISATION,
            WARNING,
            "no /dev/kvm",
            _SLOW,
            Advice(any="Start the kernel in the hypervisor's mode (ARM: EL2, from the firmware) and load kvm."),
        )


def nested(facts: Facts) -> Iterator[Found]:
    """Whether this host runs in a VM, and whether its guests may run VMs."""
    allows = [
        module
        for module in _MODULES.values()
        if facts.root.read(f"sys/module/{module}/parameters/nested") in ("Y", "1")
    ]
    if not facts.cpuinfo:
        yield unknown(NESTED, "/proc/cpuinfo cannot be read")
    elif "hypervisor" in facts.cpu_flags:
        yield Found(
            NESTED,
            NOTE,
            "this host is a VM itself",
            "Devices are as well isolated as the outer hypervisor's IOMMU for its guests makes them. Timing is the "
            "outer host's business: a pause of this VM looks like a dead host.",
        )
    elif allows:
        yield Found(
            NESTED,
            NOTE,
            f"guests may run VMs themselves ({allows[0]} has nested=1, the kernel's default)",
            "Each guest can drive the host's code for nested virtualisation, where holes have been found before.",
            Advice(
                any=f"Where no job needs it: echo 'options {allows[0]} nested=0' > /etc/modprobe.d/kvm-nested.conf\n"
                "and reboot."
            ),
        )
    else:
        yield ok(NESTED, "this host is no VM, and its guests cannot run VMs")
