"""Whether a host and its units are as a job's Rules demand: pure looks at one host, part of `fit`.

It knows the host and the shape, never the job: what depends on one job alone is `own.py`'s word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..state.facts import UnitFact
from ..state.hosts import Host
from ..state.jobs import Request
from ..state.reasons import Reason, Refusal
from ..state.rules import DRIVER, HOST, Labels, Nic, Rules, Within, has, means, shown

_NIC = {
    Nic.ANY: "with a NIC",
    Nic.NUMA_NODE: "with a NIC on its NUMA node",
    Nic.PCIE_ROOT: "with a NIC below its PCIe root",
    Nic.SWITCH: "with a NIC behind its switch",
}
_WHERE = {Within.NUMA_NODE: "on one NUMA node", Within.PCIE_ROOT: "below one PCIe root"}


def labels_of(host: Host) -> Labels:
    """The site's labels of the host, and its name as one."""
    labels = host.inventory.labels if host.inventory is not None else ()
    return labels if any(name == HOST for name, _ in labels) else (*labels, (HOST, host.name))


def host_refusal(host: Host, rules: Rules) -> Refusal | None:
    """The first demand on the host, or on who is there, that it does not meet."""
    if (rules.hosts or rules.not_hosts or rules.driver) and (refusal := _label_refusal(host, rules)) is not None:
        return refusal
    if rules.whole_host and host.allocations:
        there = "1 VM is" if len(host.allocations) == 1 else f"{len(host.allocations)} VMs are"
        return Refusal(Reason.HOST_NOT_EMPTY, f"wants the whole host, {there} there")
    for pattern in rules.apart:
        if any(means(pattern, label) for label in host.company.labels):
            return Refusal(Reason.APART_FROM_JOBS, f"is to be apart from jobs with {shown(pattern)}, one is there")
    for pattern in rules.near:
        if not any(means(pattern, label) for label in host.company.labels):
            return Refusal(Reason.NOT_NEAR_JOBS, f"is to be near a job with {shown(pattern)}, none is there")
    return None


def _label_refusal(host: Host, rules: Rules) -> Refusal | None:
    labels = labels_of(host)
    for pattern in rules.hosts:
        if not has(labels, pattern):
            mine = ", ".join(value for name, value in labels if name == pattern[0])
            found = f"it has {pattern[0]}={mine}" if mine else f"it has no label {pattern[0]}"
            return Refusal(Reason.HOST_LABELS, f"wants {shown(pattern)}, {found}")
    for pattern in rules.not_hosts:
        if has(labels, pattern):
            return Refusal(Reason.HOST_LABELS, f"must not have {shown(pattern)}")
    if rules.driver and not has(labels, (DRIVER, rules.driver)):
        mine = dict(labels).get(DRIVER, "")
        found = f"it has {mine}" if mine else f"it has no label {DRIVER}"
        return Refusal(Reason.DRIVER_MISMATCH, f"wants GPU driver {rules.driver}, {found}")
    return None


def wanted_units(host: Host, request: Request) -> list[UnitFact] | Refusal:
    """The units of the models and the vendor that will do, whatever their state."""
    rules = request.rules
    if rules is None:  # as most ask, and often
        found = [unit for unit in host.units.values() if request.model in ("", unit.model)]
        if found:
            return found
    units = list(host.units.values())
    if rules is not None and rules.vendor:
        units = [unit for unit in units if unit.vendor == rules.vendor]
        if not units:
            have = ", ".join(sorted({unit.vendor or "unknown" for unit in host.units.values()})) or "none"
            return Refusal(Reason.VENDOR_MISMATCH, f"wants GPUs of {rules.vendor}, it has {have}")
    models = rules.models if rules is not None and rules.models else (request.model,)
    matching = [unit for unit in units if unit.model in models or models == ("",)]
    if not matching:
        have = ", ".join(sorted({unit.model for unit in units})) or "none"
        return Refusal(Reason.MODEL_MISMATCH, f"wants {' or '.join(models) or 'a GPU'}, it has {have}")
    return _with_nics(matching, request, rules) if rules is not None and rules.nic else matching


def _with_nics(units: list[UnitFact], request: Request, rules: Rules) -> list[UnitFact] | Refusal:
    """Those of the units that have a network adapter of their own as near as the job wants."""
    near = [unit for unit in units if unit.nic >= rules.nic]
    if len(near) >= request.gpus:
        return near
    others = "" if rules.nic is Nic.ANY else f"; {sum(unit.nic > 0 for unit in units)} with any"
    detail = f"wants {request.gpus}, each {_NIC[rules.nic]}, it has {len(near)}{others}"
    return Refusal(Reason.NIC_TOO_FAR, detail)


def place_of(unit: UnitFact, within: Within) -> str:
    """Where it sits, as far as `within` asks; "": nobody knows, which is not good enough for any demand."""
    if within is Within.PCIE_ROOT:
        return unit.root
    return str(unit.node) if unit.node >= 0 else ""


def parts_of(units: Iterable[UnitFact], within: Within) -> list[tuple[str, list[UnitFact]]]:
    """The units by where they sit: the smallest parts first, so that large ones stay."""
    by_place: dict[str, list[UnitFact]] = {}
    for unit in units:
        if place := place_of(unit, within):
            by_place.setdefault(place, []).append(unit)
    return sorted(by_place.items(), key=lambda item: (len(item[1]), item[0]))


def together(groups: Iterable[list[UnitFact]], within: Within) -> list[list[UnitFact]]:
    """Each group, all of one model, cut by where its units sit."""
    return [part for units in groups for _, part in parts_of(units, within)]


def scattered(
    gpus: int, usable: Sequence[Sequence[UnitFact]], free: Sequence[Sequence[UnitFact]], within: Within
) -> Refusal:
    """Enough are free, or would be, but not together."""
    could = max((len(part) for part in together(map(list, usable), within)), default=0)
    now = max((len(part) for part in together(map(list, free), within)), default=0)
    unknown = Counter(place_of(unit, within) == "" for units in usable for unit in units)[True]
    where = f"needs {gpus} {_WHERE[within]}"
    if could < gpus:
        blind = f"; of {unknown} nobody knows where they sit" if unknown else ""
        return Refusal(Reason.UNITS_SCATTERED, f"{where}, it has {could} there at most{blind}")
    return Refusal(Reason.UNITS_SCATTERED, f"{where}, {now} of {could} there are free")
