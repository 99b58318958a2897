"""What a check finds, and what would mend it, as values. Decides nothing.

A remedy says what should hold (these modules loaded, these kernel parameters set); `remedies` turns it into files and
commands of one family of systems, and from these come both the steps that people read and what `--fix` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from gpupool.v1 import inventory_pb2

OK, NOTE, WARNING, PROBLEM, UNKNOWN = (
    inventory_pb2.FINDING_LEVEL_OK,
    inventory_pb2.FINDING_LEVEL_NOTE,
    inventory_pb2.FINDING_LEVEL_WARNING,
    inventory_pb2.FINDING_LEVEL_PROBLEM,
    inventory_pb2.FINDING_LEVEL_UNKNOWN,
)
DEBIAN, RHEL, ANY = "debian", "rhel", "any"
SYSTEMS = (DEBIAN, RHEL)


@dataclass(frozen=True, slots=True)
class LoadModules:
    """Kernel modules, now and after each boot. `purpose` names the file."""

    purpose: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KernelParameters:
    """Words on the kernel's command line."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EarlyBinding:
    """Files, path below the root and text, which give units to vfio-pci before any other driver looks at them."""

    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Blacklist:
    """Drivers that are not loaded by themselves any more."""

    drivers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel setting, now and after each boot."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Memlock:
    """No limit of locked memory for this service; for its process `pid` at once."""

    service: str
    pid: int


@dataclass(frozen=True, slots=True)
class SetHugepages:
    """`count` pages of `size_kib` on each of these NUMA nodes, now and after each boot."""

    size_kib: int
    count: int
    nodes: tuple[int, ...]


Remedy = LoadModules | KernelParameters | EarlyBinding | Blacklist | Sysctl | Memlock | SetHugepages


@dataclass(frozen=True, slots=True)
class Advice:
    """Steps for a person, by system; `any` where they are the same everywhere or outside the system (firmware)."""

    any: str = ""
    debian: str = ""
    rhel: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What one check found. `units` empty: it is about the whole host.

    Texts must not change while nothing has: findings are stored with the inventory, which is written when it differs.
    """

    check: str
    level: inventory_pb2.FindingLevel.ValueType
    seen: str
    risk: str = ""
    advice: Advice = Advice()
    remedies: tuple[Remedy, ...] = ()
    units: tuple[str, ...] = ()
    reboot: bool = False
    acceptable: bool = False  # a PROBLEM that an operator may take upon himself, see `accepted`


def ok(check: str, seen: str) -> Found:
    """A check that found nothing wrong."""
    return Found(check, OK, seen)


def unknown(check: str, seen: str, advice: str = "") -> Found:
    """A check that could not find out."""
    return Found(check, UNKNOWN, seen, advice=Advice(advice))


def accepted(found: Found, accept: Collection[str]) -> Found:
    """The finding as a warning, if the operator accepted this check's problem by name."""
    if found.level != PROBLEM or not found.acceptable or found.check not in accept:
        return found
    return replace(found, level=WARNING, seen=f"{found.seen} (accepted by the operator)")


def keep_out(findings: Iterable[inventory_pb2.Finding], units: Iterable[inventory_pb2.Unit]) -> dict[str, str]:
    """Why each of these units must not be handed out, by unit id; units without a problem are not in it."""
    problems = sorted((f for f in findings if f.level == PROBLEM), key=lambda f: (f.check, f.seen))
    reasons = {
        unit.id: "; ".join(f"{f.check}: {f.seen}" for f in problems if not f.units or unit.id in f.units)
        for unit in units
    }
    return {unit: reason for unit, reason in sorted(reasons.items()) if reason}
