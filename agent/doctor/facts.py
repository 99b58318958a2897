"""What the checks read: a tree of files, and a few things that only the living machine can say.

Reading never raises. A file that is missing is None or empty; each check says what it makes of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Protocol

from gpupool.store.port import Store
from gpupool.v1 import inventory_pb2

from ..inventory import gpus
from ..inventory.pairing import Choice
from ..inventory.pci import GPU_CLASSES, NETWORK
from ..ports import Sysfs
from .model import DEBIAN, RHEL

LONG_BYTES = 4 << 20  # /proc/interrupts of 256 CPUs, modules.dep of a distribution's kernel
DEFAULT_TTL_S = 8.0
MODPROBE_DIRS = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")

_FAMILIES = {"debian": DEBIAN, "ubuntu": DEBIAN, "rhel": RHEL, "fedora": RHEL, "centos": RHEL}
_SETTING = re.compile(r'^(\w+)=["\']?([^"\'\n]*)', re.MULTILINE)
_PID = re.compile(r"[1-9][0-9]{0,9}")

Units = Sequence[inventory_pb2.Unit]


class Machine(Protocol):
    """What files do not tell. Each answer is None where it cannot be had, such as for a copied tree."""

    def run(self, command: Sequence[str]) -> str | None:
        """What the program printed; None if it is missing, failed or took too long."""
        ...

    def writable(self, path: str) -> bool | None:
        """Whether this process may write to the absolute `path`."""
        ...

    def clock_synchronised(self) -> bool | None:
        """Whether the kernel says that something keeps its clock in step."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """All that `examine` goes by. `root` is the whole file system ("proc/cmdline", "sys/class/iommu").

    `simulated`: the units are made up, so what the hardware is like does not matter. `accept`: checks whose problem
    the operator takes upon himself. `libvirt_version`, `qemu_version`: where the caller knows; "" asks the programs.
    `reserved_cpus`: what the agent keeps for the host; None: not known here. `in_use`: why units must be left alone,
    by id (`devices.holders.in_use`); only those that a driver of the host has need be in it. `nics`: the network
    functions that the agent pools. `system`: "" reads os-release.
    """

    root: Sysfs
    machine: Machine
    inventory: inventory_pb2.Inventory
    store: Store | None = None
    endpoints: tuple[str, ...] = ()
    ttl_s: float = DEFAULT_TTL_S
    accept: frozenset[str] = frozenset()
    simulated: bool = False
    libvirt_version: str = ""
    qemu_version: str = ""
    reserved_cpus: tuple[int, ...] | None = None
    in_use: Mapping[str, str] = field(default_factory=dict)
    nics: Choice = field(default_factory=Choice)
    system: str = ""


class Facts:
    """A context with what several checks ask of it, read once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.root = context.root
        self.machine = context.machine
        self.inventory = context.inventory
        # A server's management display looks like a GPU, and is nothing to judge.
        self.units: Units = [unit for unit in context.inventory.units if not _is_management_display(unit)]

    @cached_property
    def system(self) -> str:
        """Which fixes apply: "debian", "rhel", or "" for another or an unknown one."""
        return self.context.system or system_of(self.root)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The kernel's command line, up to what is meant for init."""
        words = (self.root.read("proc/cmdline") or "").split()
        return tuple(words[: words.index("--")] if "--" in words else words)

    def parameter(self, name: str) -> str | None:
        """The last value of a kernel parameter, "" for one without a value; None if it is not there."""
        found = [word.partition("=")[2] for word in self.words if word.partition("=")[0] == name]
        return found[-1] if found else None

    @cached_property
    def cpuinfo(self) -> str:
        """/proc/cpuinfo, or the first 64 KiB of it: the first CPU says it all."""
        return self.root.read("proc/cpuinfo") or ""

    @cached_property
    def cpu_flags(self) -> frozenset[str]:
        """The first CPU's flags; empty where the file has none, as on ARM, whose "Features" are others."""
        match = re.search(r"^flags\s*:(.*)$", self.cpuinfo, re.MULTILINE)
        return frozenset(match[1].split()) if match else frozenset()

    @property
    def is_x86(self) -> bool:
        """Whether the CPU is an x86, which alone has flags with these names."""
        return bool(self.cpu_flags & {"lm", "apic", "tsc"})

    def loaded(self, module: str) -> bool:
        """Whether the module is loaded, or built in and has parameters."""
        return bool(self.root.list(f"sys/module/{module.replace('-', '_')}"))

    def installed(self, module: str) -> bool | None:
        """Whether the running kernel has the module, as a file or built in; None if its lists cannot be read."""
        known = [text for name in _MODULE_LISTS for text in self._module_lists(name)]
        return any(_lists(text, module) for text in known) if known else None

    def built_in(self, module: str) -> bool:
        """Whether the running kernel has the module built in, as far as can be read."""
        return any(_lists(text, module) for text in self._module_lists(_BUILTIN))

    def _module_lists(self, name: str) -> list[str]:
        """The files of this name of the running kernel's modules."""
        release = self.root.read("proc/sys/kernel/osrelease")
        texts = [self.long(f"{top}/{release}/{name}") for top in _MODULE_TREES] if release else []
        return [text for text in texts if text]

    @cached_property
    def _aliases(self) -> tuple[tuple[str, str], ...]:
        """Pattern and module of each PCI alias of the running kernel's modules (modules.alias, see depmod(8))."""
        lines = next(iter(self._module_lists("modules.alias")), "").splitlines()
        words = [line.split() for line in lines if line.startswith("alias pci:")]
        return tuple((word[1], word[2]) for word in words if len(word) == 3)

    def modules_for(self, function: inventory_pb2.PciFunction) -> frozenset[str]:
        """The modules that would be loaded for the function; none where that cannot be read."""
        code = function.class_code
        own = f"pci:v{function.vendor_id:08X}d{function.device_id:08X}"
        more = f"sv{function.subsystem_vendor_id:08X}sd{function.subsystem_device_id:08X}"
        name = f"{own}{more}bc{code >> 16:02X}sc{code >> 8 & 0xFF:02X}i{code & 0xFF:02X}"
        starts = (own, f"{own[:13]}d*", "pci:v*")
        return frozenset(
            module for pattern, module in self._aliases if pattern.startswith(starts) and fnmatchcase(name, pattern)
        )

    def pools(self, function: inventory_pb2.PciFunction) -> bool:
        """Whether this is a network function that the agent was told to pool."""
        ids = function.vendor_id, function.device_id
        return function.class_code >> 16 == NETWORK and self.context.nics.names(function.address, ids)

    def unit_with(self, address: str) -> inventory_pb2.Unit | None:
        """The unit that has this function."""
        return next((unit for unit in self.inventory.units if any(f.address == address for f in unit.functions)), None)

    @cached_property
    def modprobe_lines(self) -> tuple[str, ...]:
        """Every line of modprobe's configuration that is no comment, with blanks made single."""
        lines = []
        for folder in MODPROBE_DIRS:
            for name in self.root.list(folder):
                if name.endswith(".conf"):
                    text = self.root.read(f"{folder}/{name}") or ""
                    lines += [" ".join(line.split()) for line in text.splitlines()]
        return tuple(line for line in lines if line and not line.startswith("#"))

    def long(self, path: str) -> str:
        """A file that may be longer than an attribute; "" if it cannot be read."""
        return (self.root.read_bytes(path, LONG_BYTES) or b"").decode(errors="replace")

    def processes(self, *names: str) -> list[tuple[int, str]]:
        """Processes with one of these names, with their names, by id."""
        pids = sorted(int(entry) for entry in self.root.list("proc") if _PID.fullmatch(entry))
        found = ((pid, self.root.read(f"proc/{pid}/comm") or "") for pid in pids)
        return [(pid, name) for pid, name in found if name in names]

    def ids(self, units: Units | None = None) -> tuple[str, ...]:
        """The ids of these units, or of all, sorted."""
        return tuple(sorted(unit.id for unit in (self.units if units is None else units)))


def _is_management_display(unit: inventory_pb2.Unit) -> bool:
    found = gpus_of(unit)
    return bool(found) and all(gpus.is_management_display(function.vendor_id) for function in found)


_MODULE_TREES = ("lib/modules", "usr/lib/modules")
_BUILTIN = "modules.builtin"
_MODULE_LISTS = ("modules.dep", _BUILTIN)


def _lists(text: str, module: str) -> bool:
    """Whether a list of module files, or of their dependencies, has this one."""
    return bool(re.search(rf"(?:^|/){re.sub('[-_]', '[-_]', module)}\.ko(?:\.\w+)?(?::|$)", text, re.MULTILINE))


def gpus_of(unit: inventory_pb2.Unit) -> list[inventory_pb2.PciFunction]:
    """The unit's functions that are GPUs, or other accelerators.

    By class; and, since a unit is named for a GPU, all of that one's kind: its class may not tell, where an operator
    said that these ids are GPUs.
    """
    named = {_kind(function) for function in unit.functions if function.address == unit.id}
    return [f for f in unit.functions if f.class_code >> 8 in GPU_CLASSES or _kind(f) in named]


def _kind(function: inventory_pb2.PciFunction) -> tuple[int, int, int]:
    return function.vendor_id, function.device_id, function.class_code


def system_of(root: Sysfs) -> str:
    """The family of the system that os-release(5) names."""
    text = root.read("etc/os-release") or root.read("usr/lib/os-release") or ""
    settings = dict(_SETTING.findall(text))
    names = f"{settings.get('ID', '')} {settings.get('ID_LIKE', '')}".split()
    return next((_FAMILIES[name] for name in names if name in _FAMILIES), "")
