"""The way of a unit to vfio-pci: the modules, the drivers that are in the way, and who is first at the next boot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpupool.v1 import inventory_pb2

from ..devices.early import MODPROBE, early_binding, waiting_in
from . import inuse
from .facts import Facts, gpus_of
from .fixes import OWED, owed_in
from .model import NOTE, PROBLEM, SYSTEMS, WARNING, Advice, Blacklist, EarlyBinding, Found, LoadModules, ok
from .remedies import INITRAMFS

MODULES, CONFLICT, EARLY = "vfio-modules", "driver-conflict", "early-binding"
VFIO = ("vfio-pci",)  # brings vfio, whose soft dependency is the IOMMU's backend (drivers/vfio/vfio_main.c)
GPU_DRIVERS = frozenset({"nouveau", "nvidia", "nvidiafb", "amdgpu", "radeon", "i915", "xe"})
# A driver that other devices of the host may need is never blacklisted, only kept off the units by early binding.
BLACKLISTABLE = frozenset({"nouveau", "nvidia", "nvidiafb", "amdgpu", "radeon"})
WITH_NVIDIA = ("nvidia", "nvidia_drm", "nvidia_modeset", "nvidia_uvm")


def modules(facts: Facts) -> Iterator[Found]:
    """Whether vfio-pci can be given devices."""
    if facts.root.list("sys/bus/pci/drivers/vfio-pci"):
        yield ok(MODULES, "vfio-pci is loaded")
        return
    risk = "No device can be handed to a VM."
    installed = facts.installed("vfio-pci")
    if installed is False:
        advice = Advice(
            debian="apt-get install linux-image-amd64      # the cloud flavour has no vfio\nreboot",
            rhel="dnf install kernel-modules-core\nreboot",
        )
        yield Found(MODULES, PROBLEM, "the running kernel has no vfio-pci", risk, advice, reboot=True)
    else:
        doubt = "; whether this kernel has it is not known, as its module lists cannot be read" if not installed else ""
        yield Found(MODULES, PROBLEM, f"vfio-pci is not loaded{doubt}", risk, remedies=(LoadModules("vfio", VFIO),))


def conflict(facts: Facts) -> Iterator[Found]:
    """Units that a host's driver has. The agent takes them from it when a job comes, if it lets go."""
    by_driver: dict[str, list[str]] = {}
    for unit in facts.units:
        for driver in sorted({f.driver for f in unit.functions if is_host_driver(f.driver)}):
            by_driver.setdefault(driver, []).append(unit.id)
    for driver, ids in sorted(by_driver.items()):
        yield _conflict(facts, driver, tuple(ids))
    if not by_driver:
        yield ok(CONFLICT, "no unit has a driver of the host" if facts.units else "no units")


def _conflict(facts: Facts, driver: str, ids: tuple[str, ...]) -> Found:
    remedies = (
        (Blacklist(_with_friends(driver)),) if driver in BLACKLISTABLE and _is_for_units_only(facts, driver) else ()
    )
    if driver in GPU_DRIVERS:
        risk = (
            f"{driver} must let go of the GPU before a VM can have it. If a process uses the GPU, or the driver is "
            f"in a bad "
            "state, unbinding hangs until a reboot; and what the driver did to the GPU is the state that a proof "
            "takes for clean."
        )
        level = WARNING
    else:
        risk = f"{driver} is unbound when a job comes; programs of the host that use the function lose it."
        level = NOTE
    advice = Advice() if remedies else Advice(any=f"Give the units to vfio-pci at boot, before {driver} (see {EARLY}).")
    return Found(CONFLICT, level, f"{driver} has {', '.join(ids)}", risk, advice, remedies, ids, reboot=True)


def _with_friends(driver: str) -> tuple[str, ...]:
    return WITH_NVIDIA if driver == "nvidia" else (driver,)


def _is_for_units_only(facts: Facts, driver: str) -> bool:
    """Whether every function that has this driver belongs to a unit that may be bound early."""
    mine = {f.address for unit in inuse.bindable(facts) for f in unit.functions}
    bound = {name for name in facts.root.list(f"sys/bus/pci/drivers/{driver}") if ":" in name}
    return bound <= mine


def is_host_driver(driver: str) -> bool:
    """Whether this driver makes the host a user of the function."""
    return driver not in ("", "pci-stub") and "vfio" not in driver


def has_host_driver(unit: inventory_pb2.Unit) -> bool:
    """Whether the host has a driver on any of the unit's functions."""
    return any(is_host_driver(function.driver) for function in unit.functions)


def early(facts: Facts) -> Iterator[Found]:
    """Whether vfio-pci is first at each unit after a reboot too."""
    candidates = inuse.bindable(facts)
    late = [unit for unit in candidates if not _is_kept(facts, unit)]
    files = early_binding(candidates, facts.system, _wanting(facts, candidates)) if facts.system in SYSTEMS else {}
    if not candidates:
        yield ok(EARLY, "no unit that could be bound at boot")
        return
    yield from _built_in(facts, candidates)
    if files and all(facts.root.read(path) == content.strip() for path, content in files.items()):
        yield _not_built(facts, files) or ok(EARLY, "gpupool's rules bind the units at boot")
        return
    if not late:
        yield ok(EARLY, "the host's own configuration binds the units at boot")
        return
    yield _late(facts, late, files)


def _built_in(facts: Facts, units: list[inventory_pb2.Unit]) -> Iterator[Found]:
    """Drivers of these units that are a part of the kernel, so that no rule for modules is before them."""
    found: dict[str, dict[str, None]] = {}
    for unit in units:
        for driver in {f.driver for f in unit.functions if is_host_driver(f.driver) and facts.built_in(f.driver)}:
            found.setdefault(driver, {})[unit.id] = None
    for driver, ids in sorted(found.items()):
        yield Found(
            EARLY,
            NOTE,
            f"{driver}, which has {', '.join(ids)}, is built into this kernel: at boot it is before any rule",
            "The agent takes the function from it before the first proof, which takes for clean what the driver left.",
            Advice(any=f"A kernel that has {driver} as a module can let it wait."),
            units=tuple(ids),
        )


def _wanting(facts: Facts, units: list[inventory_pb2.Unit]) -> set[str]:
    """Modules that would take the functions at boot: by the kernel's own list, and those that earlier rules name.

    Drivers that are bound now are no help for that once the rules have worked, or the agent was first.
    """
    found = waiting_in(facts.long(MODPROBE))
    for unit in units:
        for function in unit.functions:
            found |= facts.modules_for(function)
    return found


def _not_built(facts: Facts, files: Mapping[str, str]) -> Found | None:
    """What to say where the rules are written, and the command that brings them into the initramfs is still owed."""
    command = INITRAMFS[facts.system]
    if command not in owed_in(facts.long(OWED)):
        return None
    return Found(
        EARLY,
        WARNING,
        f"gpupool's rules are written, but not in the initramfs: `{' '.join(command)}` has not been run, or failed",
        "At the next boot the initramfs loads drivers without the rules: they may take the units first.",
        remedies=(EarlyBinding(tuple(sorted(files.items()))),),
        reboot=True,
    )


def _late(facts: Facts, late: list[inventory_pb2.Unit], files: Mapping[str, str]) -> Found:
    grabbed = any(is_host_driver(function.driver) for unit in late for function in _named(facts, unit))
    risk = (
        "At the next boot a driver of the host may take them first: it may use them, and not let go without a hang."
        if grabbed
        else "No driver of the host has them now; one that is installed later takes them at the next boot."
    )
    return Found(
        EARLY,
        WARNING if grabbed else NOTE,
        f"nothing gives {', '.join(facts.ids(late))} to vfio-pci at boot",
        risk,
        advice=Advice() if files else Advice(any=_by_hand(late)),
        remedies=(EarlyBinding(tuple(sorted(files.items()))),) if files else (),
        units=facts.ids(late),
        reboot=True,
    )


def _by_hand(units: list[inventory_pb2.Unit]) -> str:
    ids = sorted({f"{f.vendor_id:04x}:{f.device_id:04x}" for unit in units for f in unit.functions})
    return (
        f"echo 'options vfio-pci ids={','.join(ids)}' > /etc/modprobe.d/vfio-pci.conf\n"
        "and load vfio-pci in the initramfs. This takes every device with these ids, the host's own too."
    )


def _is_kept(facts: Facts, unit: inventory_pb2.Unit) -> bool:
    """Whether the host's own configuration names each GPU and NIC of the unit, by ids or by address."""
    return all(_is_named(facts, function) for function in _named(facts, unit))


def _named(facts: Facts, unit: inventory_pb2.Unit) -> list[inventory_pb2.PciFunction]:
    """The functions for whose sake there is a unit."""
    return [*gpus_of(unit), *(function for function in unit.functions if facts.pools(function))]


def _is_named(facts: Facts, function: inventory_pb2.PciFunction) -> bool:
    wanted = f"{function.vendor_id:04x}:{function.device_id:04x}"
    given = (facts.parameter("vfio-pci.ids") or facts.parameter("vfio_pci.ids") or "").lower().split(",")
    for line in facts.modprobe_lines:
        if line.startswith(("options vfio-pci ", "options vfio_pci ")):
            given += [i for word in line.split() if word.startswith("ids=") for i in word[4:].lower().split(",")]
    driverctl = facts.root.read(f"etc/driverctl.d/{function.address}") or ""
    return any(i == wanted or i.startswith(f"{wanted}:") for i in given) or driverctl.strip() == "vfio-pci"
