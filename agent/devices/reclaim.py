"""Reclaiming devices: bind, reset, prove. A device is guilty until proven clean.

Decides how a unit is reset and whether the proof holds; never trusts a reset because the kernel called it done, and
never resets anything outside the unit. Every access to a sick device can block for as long as the kernel likes, so each
runs through `run_blocking`, by default in a daemon thread of its own: a reset that hangs holds up nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from . import pci
from .baseline import Baseline, BindFailed, DeviceError, FunctionBaseline, NotClean, compare, first_sight, sight
from .blocking import RunBlocking, in_own_thread
from .pci import DEVICES, KERNELS_CHOICE
from .units import BUS_METHODS, bridge_above, needs_bus_reset, reset_domain

__all__ = [
    "Baseline",
    "BindFailed",
    "DeviceError",
    "FunctionBaseline",
    "NotClean",
    "RunBlocking",
    "bind",
    "first_sight",
    "in_own_thread",
    "prove",
    "reclaim",
    "reset",
]

VFIO = "vfio-pci"
# Best first, by the kernel's names (pci_reset_fn_methods, drivers/pci/pci.c). A bus reset is stronger than `pm`, which
# only goes through D3hot and need not clear memory, but ours to use only when nothing outside the unit is on the bus.
METHODS = ("flr", "af_flr", "device_specific", "acpi", *sorted(BUS_METHODS), "pm", KERNELS_CHOICE)


async def bind(
    sysfs: Sysfs, unit: inventory_pb2.Unit, driver: str = VFIO, *, run_blocking: RunBlocking = in_own_thread
) -> None:
    """Give every function of the unit to `driver`. One that has it already is left alone. Raises BindFailed.

    Takes as long as the driver before needs to let go, which is for ever if a program uses the device: set a timeout.
    """
    for function in unit.functions:
        address = function.address
        try:
            await run_blocking(lambda address=address: _bind(sysfs, address, driver))  # type: ignore[misc]
        except OSError as error:
            raise BindFailed(address, "driver", f"not to be changed ({_text(error)})", driver) from error


async def reset(
    sysfs: Sysfs, unit: inventory_pb2.Unit, timeout_s: float, *, run_blocking: RunBlocking = in_own_thread
) -> str:
    """Reset every function of the unit, each by the best method that hits nothing outside the unit.

    Returns the methods used, joined by "+". Companions that have no reset of their own are passed over: the proof
    covers them. Raises NotClean if a GPU cannot be reset, the kernel refuses, or the whole unit takes more than
    `timeout_s` seconds.
    """
    used: dict[str, None] = {}
    address = unit.id
    try:
        async with asyncio.timeout(timeout_s):
            for step in await run_blocking(lambda: list(_resets(sysfs, unit))):
                address = step.address
                await run_blocking(step.write)
                used[step.method] = None
    except TimeoutError as error:
        raise NotClean(address, "reset", f"not done after {timeout_s:g} s", "done") from error
    except OSError as error:
        raise NotClean(address, "reset", f"refused ({_text(error)})", "done") from error
    return "+".join(used)


async def prove(
    sysfs: Sysfs, unit: inventory_pb2.Unit, baseline: Baseline, *, run_blocking: RunBlocking = in_own_thread
) -> str:
    """Prove by function that the unit is as at first sight, before and after a second bind to vfio-pci.

    Returns what was proven, for people. Raises NotClean with the function, the field, what was seen and what expected.
    """
    if [first.address for first in baseline.functions] != [function.address for function in unit.functions]:
        raise NotClean(unit.id, "unit", _addresses(unit), " ".join(first.address for first in baseline.functions))
    await run_blocking(lambda: _compare(sysfs, baseline))
    try:
        for function in unit.functions:
            address = function.address
            await run_blocking(lambda address=address: _unbind(sysfs, address))  # type: ignore[misc]
        await bind(sysfs, unit, run_blocking=run_blocking)
    except BindFailed as error:
        raise NotClean(error.address, error.field, error.seen, error.expected) from error
    except OSError as error:
        raise NotClean(address, "driver", f"not to be unbound ({_text(error)})", "none") from error
    await run_blocking(lambda: _compare(sysfs, baseline))
    return f"config, BARs, command, {_link(unit, baseline)}, rebind ok"


async def reclaim(
    sysfs: Sysfs,
    unit: inventory_pb2.Unit,
    baseline: Baseline,
    timeout_s: float,
    *,
    run_blocking: RunBlocking = in_own_thread,
) -> str:
    """Reset the unit and prove it clean; each of the two may take `timeout_s` seconds.

    Returns the proof ("flr; config, BARs, command, link x16 16000 MT/s, rebind ok"). Raises NotClean, and nothing else
    that a device could cause.
    """
    methods = await reset(sysfs, unit, timeout_s, run_blocking=run_blocking)
    try:
        async with asyncio.timeout(timeout_s):
            proof = await prove(sysfs, unit, baseline, run_blocking=run_blocking)
    except TimeoutError as error:
        raise NotClean(unit.id, "proof", f"not done after {timeout_s:g} s", "done") from error
    return f"{methods}; {proof}"


@dataclass(frozen=True, slots=True)
class _Reset:
    """One reset: of which function, by which method, and the write that does it."""

    address: str
    method: str
    write: Callable[[], None]


def _resets(sysfs: Sysfs, unit: inventory_pb2.Unit) -> Iterator[_Reset]:
    """The resets that the unit needs, in the order of addresses. One bus reset covers its whole domain."""
    everything = pci.read_functions(sysfs, lambda note: None)  # noqa: ARG005 - notes are the inventory's
    ours = {function.address for function in unit.functions}
    for gone in sorted(ours - {function.address for function in everything}):
        raise NotClean(gone, "function", "gone from sysfs", "there")
    covered: set[str] = set()
    for function in (found for found in everything if found.address in ours):
        domain = reset_domain(function, everything)
        whole = all(other.address in ours or other.is_bridge for other in everything if other.address in domain)
        bridge = bridge_above(function, everything)
        if function.address in covered:
            continue
        if whole and bridge and bridge.resets_buses and needs_bus_reset(function, everything):
            covered |= domain
            yield _Reset(function.address, "bus", _reset_below(sysfs, bridge.address))
        elif method := _method(function, whole=whole):
            yield _Reset(function.address, method, _reset_function(sysfs, function.address, method))
        elif function.is_gpu:
            listed = " ".join(function.reset_methods) or "none"
            raise NotClean(function.address, "reset method", listed, "one that hits nothing outside the unit")


def _method(function: pci.Function, *, whole: bool) -> str | None:
    usable = [name for name in METHODS if name in function.reset_methods and (whole or name not in BUS_METHODS)]
    return usable[0] if usable else None


def _reset_below(sysfs: Sysfs, bridge: str) -> Callable[[], None]:
    return lambda: sysfs.write(f"{DEVICES}/{bridge}/reset_subordinate", "1")


def _reset_function(sysfs: Sysfs, address: str, method: str) -> Callable[[], None]:
    """A reset by exactly `method`. Then the kernel's own list comes back, for it forgets what we do not choose."""
    base = f"{DEVICES}/{address}"

    def write() -> None:
        choose = sysfs.read(f"{base}/reset_method") is not None
        if choose:
            sysfs.write(f"{base}/reset_method", method)
        try:
            sysfs.write(f"{base}/reset", "1")
        finally:
            if choose:
                sysfs.write(f"{base}/reset_method", KERNELS_CHOICE)

    return write


def _bind(sysfs: Sysfs, address: str, driver: str) -> None:
    base = f"{DEVICES}/{address}"
    if not sysfs.list(f"bus/pci/drivers/{driver}"):
        raise BindFailed(address, "driver", f"not loaded (modprobe {driver})", driver)
    if sysfs.read(f"{base}/driver_override") != driver:
        sysfs.write(f"{base}/driver_override", driver)
    if sysfs.link_name(f"{base}/driver") != driver:
        _unbind(sysfs, address)
        sysfs.write("bus/pci/drivers_probe", address)
    # drivers_probe succeeds even if no driver took the device, so only the link tells.
    if (bound := sysfs.link_name(f"{base}/driver")) != driver:
        raise BindFailed(address, "driver", bound or "none", driver)


def _unbind(sysfs: Sysfs, address: str) -> None:
    if sysfs.link_name(f"{DEVICES}/{address}/driver") is not None:
        sysfs.write(f"{DEVICES}/{address}/driver/unbind", address)


def _compare(sysfs: Sysfs, baseline: Baseline) -> None:
    for first in baseline.functions:
        compare(first, sight(sysfs, first.address))


def _link(unit: inventory_pb2.Unit, baseline: Baseline) -> str:
    gpu = next((first for first in baseline.functions if first.address == unit.id), baseline.functions[0])
    return f"link x{gpu.link_width} {gpu.link_speed_mts} MT/s" if gpu.link_width else "no link to compare"


def _addresses(unit: inventory_pb2.Unit) -> str:
    return " ".join(function.address for function in unit.functions)


def _text(error: OSError) -> str:
    return error.strerror or str(error)
