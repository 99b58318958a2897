"""All checks of a host, in order, as findings. A check that fails itself is a finding too, and harms no other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from gpupool.v1 import inventory_pb2, scheduler_pb2

from ..devices.blocking import in_own_thread
from ..inventory.sysfs import told
from . import bars, cpu, groups, host, iommu, memory, nics, store, units, vfio, virt
from .facts import Context, Facts
from .model import ANY, DEBIAN, OK, RHEL, UNKNOWN, Found, accepted, ok
from .remedies import possible, steps

_log = logging.getLogger(__name__)

Check = Callable[[Facts], Iterator[Found]]

# What a made-up unit depends on just as a real one does.
HOST_CHECKS: dict[str, Check] = {
    host.CGROUP: host.cgroup,
    host.PANIC: host.panic,
    host.CLOCK: host.clock,
    host.CONFINEMENT: host.confinement,
    virt.LIBVIRT: virt.libvirt,
    virt.QEMU: virt.qemu,
    cpu.VIRTUALISATION: cpu.virtualisation,
    cpu.NESTED: cpu.nested,
}
HARDWARE_CHECKS: dict[str, Check] = {
    iommu.IOMMU: iommu.iommu,
    iommu.REMAPPING: iommu.remapping,
    units.UNITS: units.offered,
    groups.GROUPS: groups.groups,
    bars.ABOVE_4G: bars.bars,
    units.RESET: units.resets,
    units.BOOT_VGA: units.boot_vga,
    units.NUMA: units.numa,
    nics.NICS: nics.nics,
    vfio.MODULES: vfio.modules,
    vfio.CONFLICT: vfio.conflict,
    vfio.EARLY: vfio.early,
    memory.MEMLOCK: memory.memlock,
    memory.HUGEPAGES: memory.hugepages,
    memory.TUNING: memory.tuning,
    host.WATCHDOG: host.watchdog,
    host.RESERVED: host.reserved,
}
NAMES = (*HARDWARE_CHECKS, *HOST_CHECKS, store.ETCD)
ACCEPTABLE = (iommu.REMAPPING, groups.GROUPS)  # whose problem an operator may take upon himself


async def examine(context: Context) -> list[inventory_pb2.Finding]:
    """Judge the host. Findings of one check stand together; never raises for what the host is like."""
    facts = Facts(context)
    return [message(found, facts) for found in await diagnose(context, facts)]


async def diagnose(context: Context, facts: Facts | None = None) -> list[Found]:
    """The same with the remedies, for `--fix`."""
    facts = facts or Facts(context)
    found = await in_own_thread(lambda: list(_judge(facts)))
    return [accepted(each, context.accept) for each in (*found, await store.etcd(context))]


def report(
    host: str, at_s: float, context: Context, findings: Iterable[inventory_pb2.Finding]
) -> scheduler_pb2.DoctorReport:
    """Findings as the contract has them. `at_s` is Unix time."""
    return scheduler_pb2.DoctorReport(host=host, at_s=at_s, system=Facts(context).system, findings=findings)


def to_store(findings: Iterable[inventory_pb2.Finding]) -> list[inventory_pb2.Finding]:
    """What belongs into the inventory: all but what is fine or not known."""
    return [finding for finding in findings if finding.level not in (OK, UNKNOWN)]


def _judge(facts: Facts) -> Iterator[Found]:
    checks = HOST_CHECKS if facts.context.simulated else HARDWARE_CHECKS | HOST_CHECKS
    if facts.context.simulated:
        yield ok(units.UNITS, "simulated: checks of the hardware are left out")
    for name, check in checks.items():
        try:
            yield from list(check(facts))
        except Exception as exc:  # noqa: BLE001 - whatever a strange host does to one check, the others must be heard
            _log.exception("check %s failed", name)
            yield Found(name, UNKNOWN, f"this check failed: {exc!r}; please report it")


def message(found: Found, facts: Facts) -> inventory_pb2.Finding:
    """The finding as the contract has it."""
    return inventory_pb2.Finding(
        check=found.check,
        level=found.level,
        seen=told(found.seen),
        risk=found.risk,
        fixes=_fixes(found),
        fixable=any(possible(remedy, facts.system, facts.root.read) for remedy in found.remedies),
        units=found.units,
        reboot=found.reboot,
    )


def _fixes(found: Found) -> list[inventory_pb2.Fix]:
    """The steps by system; one text for any where they do not differ."""
    advice = found.advice
    by_system = {
        system: "\n".join(filter(None, (*(steps(remedy, system) for remedy in found.remedies), own)))
        for system, own in ((DEBIAN, advice.debian), (RHEL, advice.rhel))
    }
    if by_system[DEBIAN] == by_system[RHEL]:
        by_system = {ANY: "\n".join(filter(None, (by_system[DEBIAN], advice.any)))}
    else:
        by_system[ANY] = advice.any
    return [inventory_pb2.Fix(system=system, steps=text) for system, text in by_system.items() if text]
