"""The network functions that the agent pools (`--nic`): whether each goes to VMs with a GPU, and if not, why.

What the early-boot rules do with them is `vfio.early`'s to say. Never guesses at a pair: units say who has which.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.v1 import inventory_pb2, job_pb2

from ..inventory.pairing import REFUSED, SPARE
from ..inventory.units import OWN_METHODS
from .facts import Facts
from .model import NOTE, WARNING, Advice, Found, ok

NICS = "nics"
_WAIT = "Jobs that ask for a GPU with a network adapter of its own find one less, or wait."
_SWITCH_ON = (
    "Virtual functions have to be made before the agent starts, at each boot:\n"
    "echo 8 > /sys/bus/pci/devices/ADDRESS/sriov_numvfs"
)


def nics(facts: Facts) -> Iterator[Found]:
    """Every network function that was named to the agent, by address or by ids."""
    choice = facts.context.nics
    if not choice:
        yield ok(NICS, "none are pooled (--nic)")
        return
    found = list(_missing(facts))
    for function in (one for one in facts.inventory.nics if facts.pools(one)):
        found += _judged(facts, function)
    yield from found or [ok(NICS, f"each goes to VMs with its GPU: {_pairs(facts)}")]


def _missing(facts: Facts) -> Iterator[Found]:
    """What was named, and is not there."""
    there = {one.address: (one.vendor_id, one.device_id) for one in facts.inventory.nics}
    choice = facts.context.nics
    named = [address for address in sorted(choice.addresses) if address not in there]
    named += [f"{vendor:04x}:{device:04x}" for vendor, device in sorted(choice.ids - set(there.values()))]
    could = [one.address for one in facts.inventory.nics if one.sriov_total and not one.sriov_present]
    advice = _SWITCH_ON.replace("ADDRESS", could[0]) if could else "`lspci -Dnn | grep -i net` lists what there is."
    for name in named:
        yield Found(NICS, WARNING, f"this host has no network function {name} (--nic)", _WAIT, Advice(any=advice))


def _judged(facts: Facts, function: inventory_pb2.PciFunction) -> Iterator[Found]:
    unit = facts.unit_with(function.address)
    if unit is None:
        yield _unpaired(facts, function)
    elif function.address in facts.context.in_use.get(unit.id, ""):
        yield Found(
            NICS,
            WARNING,
            f"the host uses what it pools: {facts.context.in_use[unit.id]}",
            f"{unit.id}, the GPU that it goes with, is not offered either.",
            Advice(any="Take the interface down and out of the host's network configuration, or do not name it."),
            units=(unit.id,),
        )
    elif function.physical_function and _is_probed(facts, function):
        yield _fleeting(function, unit)


def _unpaired(facts: Facts, function: inventory_pb2.PciFunction) -> Found:
    said = [line.removeprefix(f"{function.address}: ") for line in facts.inventory.notes if function.address in line]
    if any(line == SPARE for line in said):
        seen = f"{function.address} goes with no GPU: none that is near it is without a NIC"
        return Found(NICS, NOTE, seen, "It is not used.", Advice(any="A NIC in the slot beside another GPU would be."))
    why = next(
        (line.removeprefix(REFUSED) for line in said if line.startswith(REFUSED)), "the inventory's notes say why"
    )
    return Found(NICS, WARNING, f"{function.address} is not handed out: {why}", _WAIT, Advice(any=_way_out(function)))


def _way_out(function: inventory_pb2.PciFunction) -> str:
    if function.sriov_present:
        return f"Name its virtual functions ({', '.join(function.sriov_present[:2])} ...), or switch them off."
    if not OWN_METHODS.intersection(function.reset_methods):
        return "Pool virtual functions, which have a reset of their own (FLR), or another adapter."
    return "A slot with ACS above it makes a group of its own; or name the rest of its group too."


def _is_probed(facts: Facts, function: inventory_pb2.PciFunction) -> bool:
    """Whether drivers of the host look at the virtual functions of this adapter (ABI: sriov_drivers_autoprobe).

    The rules for the boot cannot come first there: the function is made while its driver may be loaded already.
    """
    parent = f"sys/bus/pci/devices/{function.physical_function}"
    return facts.root.read(f"{parent}/sriov_drivers_autoprobe") == "1" and bool(facts.modules_for(function))


def _fleeting(function: inventory_pb2.PciFunction, unit: inventory_pb2.Unit) -> Found:
    parent = f"/sys/bus/pci/devices/{function.physical_function}"
    return Found(
        NICS,
        NOTE,
        f"{function.address} is a virtual function: a driver of the host may take it whenever it is made anew",
        "The agent takes it from that driver before a VM has it; programs that have begun to use it meanwhile make its "
        "GPU unfit.",
        Advice(any=f"Before virtual functions are made, at each boot:\necho 0 > {parent}/sriov_drivers_autoprobe"),
        units=(unit.id,),
        reboot=True,
    )


def _pairs(facts: Facts) -> str:
    pooled = {one.address for one in facts.inventory.nics if facts.pools(one)}
    return ", ".join(
        f"{unit.nic} with {unit.id} ({_nearness(unit)})" for unit in facts.inventory.units if unit.nic in pooled
    )


def _nearness(unit: inventory_pb2.Unit) -> str:
    try:
        return job_pb2.NicLocality.Name(unit.nic_locality).removeprefix("NIC_LOCALITY_").lower()
    except ValueError:  # of a newer agent
        return "near"
