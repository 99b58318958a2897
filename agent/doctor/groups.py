"""IOMMU groups that hold more than a GPU: what comes along, and which bridge is to blame."""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.v1 import inventory_pb2

from . import acs
from .facts import Facts, gpus_of
from .model import PROBLEM, WARNING, Advice, Found, ok

GROUPS = "iommu-groups"
HOST_FREE = frozenset({"", "pci-stub"})  # and vfio's: the host makes no use of such a function

_WHOLE = (
    "Devices of one group can reach each other's memory past the IOMMU (peer-to-peer DMA), so they go to one VM "
    "together: jobs that want less wait or waste the rest."
)
_ADVICE = (
    "Switch ACS on in the firmware's set-up (\"ACS Enable\", beside the IOMMU's settings), or move the card to a slot "
    "with\n"
    "a root port of its own. Do not use pcie_acs_override: it hides the sharing, and the devices reach each other "
    "still."
)


def groups(facts: Facts) -> Iterator[Found]:
    """Units that hold several slots because of their IOMMU group, with the bridges that do not separate them."""
    if (override := facts.parameter("pcie_acs_override")) is not None:
        yield Found(
            GROUPS,
            PROBLEM,
            f"the kernel was started with pcie_acs_override={override}: groups look smaller than they are",
            "Devices of different VMs may read and write each other's memory past the IOMMU (peer-to-peer DMA).",
            Advice(
                any=f"Take pcie_acs_override from the kernel's command line and reboot; or the operator takes "
                f"the risk: "
                f"--accept {GROUPS}"
            ),
            units=facts.ids(),
            reboot=True,
            acceptable=True,
        )
    shared = [unit for unit in facts.units if _shares(unit)]
    for unit in shared:
        yield _shared(facts, unit)
    if not shared and override is None:
        yield ok(GROUPS, "each unit's group holds one card only" if facts.units else "no units")


def _shared(facts: Facts, unit: inventory_pb2.Unit) -> Found:
    gpus = [f.address for f in gpus_of(unit)]
    gpu_slots = {_slot(f) for f in gpus_of(unit)}
    strangers = [f for f in _in_the_groups(unit) if _slot(f) not in gpu_slots]
    used = [f for f in strangers if f.driver not in HOST_FREE and "vfio" not in f.driver]
    beside = f" and {', '.join(f.address for f in strangers)}" if strangers else ""
    seen = f"{', '.join(gpus)}{beside} share an IOMMU group; {_blame(facts, unit)}"
    if used:
        names = ", ".join(f"{f.address} ({f.driver})" for f in used)
        risk = f"The host uses {names}, which would have to go to the VM too: the unit cannot be handed out."
        return Found(GROUPS, PROBLEM, seen, risk, Advice(any=_ADVICE), units=(unit.id,), reboot=True)
    return Found(GROUPS, WARNING, seen, _WHOLE, Advice(any=_ADVICE), units=(unit.id,), reboot=True)


def _blame(facts: Facts, unit: inventory_pb2.Unit) -> str:
    """The bridges above the unit's functions that do not separate, each with the reason."""
    bridges = sorted({bridge for function in unit.functions for bridge in function.path})
    reasons = {
        bridge: acs.why_shared(facts.root.read_bytes(f"sys/bus/pci/devices/{bridge}/config", acs.CONFIG_BYTES))
        for bridge in bridges
    }
    told = [f"{bridge}: {reason}" for bridge, reason in reasons.items() if reason]
    if told:
        return "; ".join(told)
    return "every bridge above it has ACS on" if bridges else "which bridge does not separate them is not known"


def _slot(function: inventory_pb2.PciFunction) -> str:
    return function.address.rpartition(".")[0]


def _in_the_groups(unit: inventory_pb2.Unit) -> list[inventory_pb2.PciFunction]:
    """The functions in the groups of the unit's GPUs. A NIC that goes with it has a group of its own."""
    groups = {function.iommu_group for function in gpus_of(unit)}
    return [function for function in unit.functions if function.iommu_group in groups]


def _shares(unit: inventory_pb2.Unit) -> bool:
    """Whether slots of the unit are in one group, and not only in one reset domain."""
    functions = _in_the_groups(unit)
    groups = {function.iommu_group for function in functions}
    return min(groups, default=-1) >= 0 and len(groups) < len({_slot(function) for function in functions})
