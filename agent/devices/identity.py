"""What a device unit is, wherever it sits: so that a quarantine follows the card, and not the PCI address.

Bus numbers are given out anew at each boot, so another card may sit at an address after one was plugged in or died.
Decides whether two sights are of one unit. Pure. It must never lose a quarantine on a guess: what cannot be told apart
counts as the same there, and as another where a VM is to get exactly what was decided on.

An identity reads "10de:20b5/10de:1533#48b02dffff123456+..." with one part for each device: the ids of its functions,
then its serial number, or "@" and the path of bridges to it. A GPU's UUID is in none: it can be read only while the
vendor's driver has the card, and an identity must not depend on who has it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpupool.v1 import records_pb2
from gpupool.v1.inventory_pb2 import PciFunction, Unit
from gpupool.v1.records_pb2 import UnitReport

_SERIAL = re.compile(r"[0-9a-f]{16}")
_NO_SERIALS = frozenset({"0" * 16, "f" * 16})  # never programmed, and what a dead device answers
PARKED = "gone-"


def identities(units: Iterable[Unit]) -> dict[str, str]:
    """The identity of each unit of a host, by unit id; no two are the same."""
    units = list(units)
    shared = frozenset(duplicate_serials(units))
    found = {unit.id: identity_of(unit.functions, not_serials=shared) for unit in units}
    times = Counter(found.values())
    for unit in units:  # a topology that puts two devices in one place: only their addresses tell them apart
        if times[found[unit.id]] > 1:
            found[unit.id] = f"{found[unit.id]} at {unit.id}"
    return found


def identity_of(functions: Iterable[PciFunction], *, not_serials: Iterable[str] = ()) -> str:
    """What these functions are: a unit's, all on one host. `not_serials`: numbers that several devices there have."""
    refused = frozenset(not_serials)
    devices: dict[str, list[PciFunction]] = defaultdict(list)
    for function in sorted(functions, key=lambda one: one.address):
        devices[_slot(function)].append(function)
    return "+".join(sorted(_device(members, refused) for members in devices.values()))


def duplicate_serials(units: Iterable[Unit]) -> dict[str, list[str]]:
    """Serial numbers that several devices claim, each with their functions' addresses: they name none of them.

    Functions of one device share theirs, and virtual functions their parent's (PCI Express Base Specification, 7.9.3).
    """
    claims: dict[str, list[PciFunction]] = defaultdict(list)
    for function in (function for unit in units for function in unit.functions):
        if (number := _serial(function)) and not function.physical_function:
            claims[number].append(function)
    return {
        number: sorted(function.address for function in claimed)
        for number, claimed in sorted(claims.items())
        if len({_slot(function) for function in claimed}) > 1
    }


def is_other(known: str, now: str) -> bool:
    """Whether these are certainly two different units. Where either is unknown, or has lost its serial, they are not.

    Nor is one that has gained or lost functions: a dying card's second function may be what died first. Without serial
    numbers, two cards of the same ids in the same place cannot be told apart.
    """
    if not known or not now or known == now:
        return False
    before, after = _parts(known), _parts(now)
    other_serials = before.serials and after.serials and not before.serials & after.serials
    return not before.ids & after.ids or bool(other_serials)


def mismatch(units: Sequence[str], decided: Sequence[str], present: Mapping[str, str]) -> str:
    """Why an allocation must not start: the first of its `units` that is not what was `decided` on; "": all are.

    `present`: this host's units and their identities. A decision that names no identities is not checked.
    """
    for unit, expected in zip(units, decided, strict=False):
        now = present.get(unit)
        if now is None:
            return f"unit {unit} is not on this host"
        if expected and now != expected:
            return f"device at {unit} is now {now or 'of unknown identity'}, the decision was for {expected}"
    return ""


def follow(present: Mapping[str, str], known: Mapping[str, UnitReport]) -> dict[str, UnitReport]:
    """What is known of each unit, by the id that it has now.

    `present`: unit ids and identities as of now; `known`: reports, by the ids that the units had. The result has every
    present unit, with the report of what sits there now (empty for a stranger), and every quarantined unit that is not
    here, under its old id, or a made-up one (`parked_id`) where another unit has that.
    """
    sources = {unit: _source(unit, present, known) for unit in present}
    result = {unit: _report(unit, present[unit], name, known) for unit, name in sources.items()}
    gone_along = {*sources.values()}
    for name, report in sorted(known.items()):
        if report.state != records_pb2.UNIT_STATE_QUARANTINED or name in gone_along:
            continue
        if report.identity and report.identity in present.values():
            continue  # the same unit is known under another id too
        result[parked_id(report.identity or name) if name in present else name] = report
    return result


def parked_id(identity: str) -> str:
    """An id to keep a quarantined unit under that is not here, and whose address another unit has now."""
    return PARKED + hashlib.sha256(identity.encode()).hexdigest()[:16]


def _source(unit: str, present: Mapping[str, str], known: Mapping[str, UnitReport]) -> str:
    """The id under which the unit is known: where its identity is, a quarantine before anything else; empty: nowhere.

    Failing that, where a quarantined unit has a device in common with it (units grow and shrink with IOMMU groups and
    with what their cards show of themselves), or under its own id, if nothing speaks against that it is the same one.
    """
    identity, quarantined = present[unit], records_pb2.UNIT_STATE_QUARANTINED
    if names := [name for name, report in known.items() if identity and report.identity == identity]:
        return min(names, key=lambda name: (known[name].state != quarantined, name != unit, name))
    if kin := [name for name, one in known.items() if one.state == quarantined and _overlap(one.identity, identity)]:
        return min(kin, key=lambda name: (name != unit, name))
    if unit not in known or is_other(before := known[unit].identity, identity):
        return ""
    others = [one for name, one in present.items() if name != unit]
    return "" if before and any(before == one or _overlap(before, one) for one in others) else unit


def _report(unit: str, identity: str, name: str, known: Mapping[str, UnitReport]) -> UnitReport:
    """What is known under `name`, without what is about the address: the last allocation is of whoever sat there.

    A card that is dead answers no serial number any more: the one that it had is kept.
    """
    report = UnitReport()
    if name:
        report.CopyFrom(known[name])
    if name != unit:
        report.ClearField("allocation")
    if not _parts(report.identity).serials or _parts(identity).serials:
        report.identity = identity
    return report


def _device(functions: Sequence[PciFunction], refused: frozenset[str]) -> str:
    ids = ",".join(
        f"{one.vendor_id:04x}:{one.device_id:04x}/{one.subsystem_vendor_id:04x}:{one.subsystem_device_id:04x}"
        for one in functions
    )
    numbers = sorted({number for one in functions if (number := _serial(one))} - refused)
    return f"{ids}#{'#'.join(numbers)}" if numbers else f"{ids}@{_place(functions[0])}"


def _place(function: PciFunction) -> str:
    """The way to the device by device and function numbers, which are wired; of bus numbers, only the host bridge's."""
    if not function.root_bus:
        return f"?{_slot(function)}"
    steps = [*(bridge.rpartition(":")[2] for bridge in function.path), _slot(function).rpartition(":")[2]]
    return "/".join([function.root_bus, *steps])


def _slot(function: PciFunction) -> str:
    return function.address.rpartition(".")[0]


def _serial(function: PciFunction) -> str:
    """The serial number; empty where there is none, or one that means nothing."""
    text = function.serial.lower().replace("-", "")
    return text if _SERIAL.fullmatch(text) and text not in _NO_SERIALS else ""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an identity, or one device in it, is made of. `place`: of a device without serial number."""

    ids: frozenset[str]  # of functions
    serials: frozenset[str]
    place: str = ""


def _parts(identity: str) -> _Parts:
    devices = [_device_parts(text) for text in identity.split("+")]
    return _Parts(
        frozenset[str]().union(*(device.ids for device in devices)),
        frozenset[str]().union(*(device.serials for device in devices)),
    )


def _device_parts(text: str) -> _Parts:
    rest, _, place = text.partition("@")
    ids, *numbers = rest.split("#")
    return _Parts(frozenset(ids.split(",")), frozenset(numbers), place)


def _overlap(known: str, now: str) -> bool:
    """Whether a device is in both: one with functions of the same ids, and the same serial number or the same place."""
    if not known or not now:
        return False
    return any(
        one.ids & other.ids and (one.serials & other.serials or (one.place and one.place == other.place))
        for one in map(_device_parts, known.split("+"))
        for other in map(_device_parts, now.split("+"))
    )
