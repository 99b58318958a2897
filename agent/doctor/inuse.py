"""Which units may be bound to vfio-pci at boot: those that the host itself makes no use of.

Stricter than what the agent does when a job comes, since a rule for the next boot acts when nobody can ask.
"""

from __future__ import annotations

from gpupool.v1 import inventory_pb2

from ..inventory import gpus
from .facts import Facts, gpus_of

STORAGE = 0x01  # base class
COMPANIONS = (0x04, 0x0C)  # multimedia, serial bus: a GPU's audio and USB-C


def bindable(facts: Facts) -> list[inventory_pb2.Unit]:
    """The units that a rule for the next boot may name."""
    return [unit for unit in facts.units if not host_use(facts, unit)]


def host_use(facts: Facts, unit: inventory_pb2.Unit) -> str:
    """What the host uses of the unit; "" if nothing."""
    if reason := facts.context.in_use.get(unit.id):
        return reason
    found = {f.address for f in gpus_of(unit)}
    slots = {_slot(address) for address in found}
    for function in unit.functions:
        if function.boot_vga:
            return f"{function.address} is the boot VGA"
        base_class = function.class_code >> 16
        if base_class == STORAGE:  # also where an operator says that it is a GPU
            return f"{function.address} is storage"
        if function.address in found:
            if gpus.is_management_display(function.vendor_id):
                return f"{function.address} is the management display"
            if screen := _screen(facts, function.address):
                return f"{function.address} drives the screen at {screen}"
            continue
        if facts.pools(function):  # its interface is down, or it would be in use
            continue
        companion = _slot(function.address) in slots and base_class in COMPANIONS
        if not companion and function.driver not in ("", "pci-stub") and "vfio" not in function.driver:
            return f"{function.address} is used through {function.driver}"
    return ""


def _screen(facts: Facts, address: str) -> str:
    """A connector of the GPU that shows a picture (drivers/gpu/drm/drm_sysfs.c: `enabled`); "" if none does."""
    base = f"sys/bus/pci/devices/{address}/drm"
    for card in facts.root.list(base):
        for connector in facts.root.list(f"{base}/{card}"):
            if connector.startswith(f"{card}-") and facts.root.read(f"{base}/{card}/{connector}/enabled") == "enabled":
                return connector
    return ""


def _slot(address: str) -> str:
    return address.rpartition(".")[0]
