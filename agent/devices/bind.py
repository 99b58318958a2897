"""Giving PCI functions to a driver, and back to the one that they would have.

Decides nothing about who may have a unit. It must never leave a function with an override that it was refused: each
function ends up whole, with the driver and the override, or as it was. Only `driver_override` is used, which names one
function: `new_id` would take every device of the same ids, the host's own too, and cannot be made undone for a device
that was plugged in meanwhile.

What the kernel does (drivers/base/dd.c, bus.c, driver.c, drivers/pci/pci-driver.c):
- An unbind calls the driver's remove, which cannot refuse. It pulls the device from under whoever uses it (NVMe, DRM),
  or waits for them, for ever if need be (nvidia, vfio-pci). So whoever unbinds has to know beforehand: `refuse`.
- The device's lock is held meanwhile, so that even reading `driver_override` waits. Therefore a function is unbound
  first and the override set after that: an unbind that hangs has left nothing behind but its thread.
- A newline clears the override; an empty write never reaches the driver core.
- `drivers_probe` succeeds whether or not a driver took the device: only the link tells.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from gpupool.v1 import inventory_pb2

from ..inventory.pci import DEVICES
from ..ports import Sysfs
from .baseline import BindFailed
from .blocking import RunBlocking, in_own_thread, in_steps

Steps = Generator[None, None, None]

VFIO = "vfio-pci"
NO_OVERRIDE = "(null)"  # as the kernel prints it
CLEAR = "\n"


class Refuse(Protocol):
    """Which of these functions must not be touched, and why, in words. None of them: they may be taken."""

    def __call__(self, addresses: Sequence[str], /) -> Mapping[str, str]:
        """Called where it may block, just before the functions change hands."""
        ...


async def bind(
    sysfs: Sysfs,
    unit: inventory_pb2.Unit,
    driver: str = VFIO,
    *,
    run_blocking: RunBlocking = in_own_thread,
    refuse: Refuse = lambda _addresses: {},
    first: Callable[[], None] = lambda: None,
) -> None:
    """Give every function of the unit to `driver`. One that has it already is left alone. `first`: a look before that.

    `refuse` is asked about all of them first, also about those that have the driver already: vfio-pci may serve a VM
    that is none of ours. Raises BindFailed with the function and what is in the way; then those that were moved are
    back where they were. Takes as long as the driver before needs to let go: set a timeout. Cancelled or killed at any
    point, it can be called again, or `release` be called.
    """
    await in_steps(run_blocking, binding(sysfs, unit, driver, refuse=refuse, first=first))


def binding(
    sysfs: Sysfs,
    unit: inventory_pb2.Unit,
    driver: str = VFIO,
    *,
    refuse: Refuse = lambda _addresses: {},
    first: Callable[[], None] = lambda: None,
) -> Steps:
    """`bind`, in blocking steps: each may hang, and what comes after it is another's to decide."""
    addresses = [function.address for function in unit.functions]
    with _told(unit.id, driver):
        todo = _look(sysfs, addresses, driver, refuse, first)
    moved: list[tuple[str, str]] = []
    try:
        for address, bound in todo:
            with _told(address, driver):
                if bound:
                    _let_go(sysfs, address, driver)
                    yield
                moved.append((address, _take(sysfs, address, driver)))
            yield
    except BindFailed:
        for address, before in reversed(moved):
            with suppress(BindFailed), _told(address, driver):  # the first failure is the one to tell of
                _give_back(sysfs, address, before)
        raise


async def release(sysfs: Sysfs, unit: inventory_pb2.Unit, *, run_blocking: RunBlocking = in_own_thread) -> None:
    """Clear every function's override and let it have the driver that it would have without us, if one is loaded.

    Raises BindFailed. Takes as long as whoever uses the device through vfio-pci. May be called again at any time.
    """
    await in_steps(run_blocking, _releasing(sysfs, [function.address for function in unit.functions]))


def _releasing(sysfs: Sysfs, addresses: Sequence[str]) -> Steps:
    for address in addresses:
        for step in (_clear, _unbind_vfio, _probe):
            with _told(address, "none"):
                step(sysfs, address)
            yield


def require_kept(sysfs: Sysfs, addresses: Sequence[str], driver: str = VFIO) -> None:
    """Raise BindFailed if a function does not have the driver and the override that it was left with."""
    for address in addresses:
        if _lacks(sysfs, address, driver):
            seen = f"{_driver(sysfs, address) or 'none'}, kept for {override(sysfs, address) or 'any'}"
            raise BindFailed(address, "driver", f"{seen}: somebody took it since its proof", driver)


def unbind(sysfs: Sysfs, address: str) -> None:
    """Take the function from its driver, if it has one. Raises OSError; may block for ever."""
    if sysfs.link_name(f"{DEVICES}/{address}/driver") is None:
        return
    try:
        sysfs.write(f"{DEVICES}/{address}/driver/unbind", address)
    except OSError:
        if sysfs.link_name(f"{DEVICES}/{address}/driver") is not None:  # else another was faster: as wanted
            raise


def override(sysfs: Sysfs, address: str) -> str:
    """The driver that the function is kept for; empty: for whichever knows its ids."""
    text = sysfs.read(f"{DEVICES}/{address}/driver_override") or ""
    return "" if text == NO_OVERRIDE else text


def _lacks(sysfs: Sysfs, address: str, driver: str) -> bool:
    """Whether the function needs work, by link and override: the link alone would not outlive the next probe."""
    if _driver(sysfs, address) != driver:
        if not sysfs.list(f"bus/pci/drivers/{driver}"):
            raise BindFailed(address, "driver", f"not loaded (modprobe {driver})", driver)
        return True
    return override(sysfs, address) != driver


def require_ready(sysfs: Sysfs, addresses: Sequence[str], refuse: Refuse, driver: str = VFIO) -> None:
    """Raise BindFailed unless every function is as it was left (`require_kept`) and `refuse` has no objection."""
    require_kept(sysfs, addresses, driver)
    _ask(sysfs, addresses, driver, refuse)


def _look(
    sysfs: Sysfs, addresses: Sequence[str], driver: str, refuse: Refuse, first: Callable[[], None]
) -> list[tuple[str, str]]:
    """The functions that need work, with the drivers that they have, once `refuse` has had its say on all."""
    first()
    todo = [(address, _driver(sysfs, address)) for address in addresses if _lacks(sysfs, address, driver)]
    _ask(sysfs, addresses, driver, refuse)
    return todo


def _ask(sysfs: Sysfs, addresses: Sequence[str], driver: str, refuse: Refuse) -> None:
    refused = refuse(addresses)
    for address in addresses:
        if reason := refused.get(address):
            bound = _driver(sysfs, address) or "none"
            raise BindFailed(
                address, "driver", f"{bound}, to be left alone: {reason}", f"{driver}, and nobody using it"
            )


def _let_go(sysfs: Sysfs, address: str, driver: str) -> None:
    if _driver(sysfs, address) != driver:
        unbind(sysfs, address)


def _take(sysfs: Sysfs, address: str, driver: str) -> str:
    """Set the override and probe; returns the override before. One call, so that it is whole even if nobody waits."""
    before = override(sysfs, address)
    try:
        _set(sysfs, address, driver)
    except (OSError, BindFailed):
        with suppress(OSError):  # the first failure is the one to tell of
            _give_back(sysfs, address, before)
        raise
    return before


def _set(sysfs: Sysfs, address: str, driver: str) -> None:
    sysfs.write(f"{DEVICES}/{address}/driver_override", driver)
    if _driver(sysfs, address) != driver:
        unbind(sysfs, address)  # a module that was loaded just now may have taken it
        _probe(sysfs, address)
    if (bound := _driver(sysfs, address)) != driver:
        raise BindFailed(address, "driver", bound or f"none{_why_not(sysfs, address)}", driver)


def _give_back(sysfs: Sysfs, address: str, before: str) -> None:
    """The override that it had, and the driver that goes with that.

    A function that was kept for our driver before stays so, even if the driver does not take it: a host's driver must
    not probe a device that may be sick.
    """
    if override(sysfs, address) != before:
        sysfs.write(f"{DEVICES}/{address}/driver_override", before or CLEAR)
        unbind(sysfs, address)
    _probe(sysfs, address)


def _clear(sysfs: Sysfs, address: str) -> None:
    if override(sysfs, address):
        sysfs.write(f"{DEVICES}/{address}/driver_override", CLEAR)
    if left := override(sysfs, address):
        raise BindFailed(address, "driver_override", left, "none")


def _unbind_vfio(sysfs: Sysfs, address: str) -> None:
    if "vfio" in _driver(sysfs, address):
        unbind(sysfs, address)


def _probe(sysfs: Sysfs, address: str) -> None:
    if not _driver(sysfs, address):
        sysfs.write("bus/pci/drivers_probe", address)


def _driver(sysfs: Sysfs, address: str) -> str:
    return sysfs.link_name(f"{DEVICES}/{address}/driver") or ""


def _why_not(sysfs: Sysfs, address: str) -> str:
    """Known reasons for which vfio-pci leaves a device alone without a word (drivers/vfio/pci/vfio_pci_core.c)."""
    base = f"{DEVICES}/{address}"
    if sysfs.link_name(f"{base}/iommu_group") is None:
        return " (it has no IOMMU group: is the IOMMU switched on?)"
    if (sysfs.read(f"{base}/sriov_numvfs") or "0") != "0":
        return " (it has SR-IOV virtual functions switched on)"
    return " (see the kernel's log)"


@contextmanager
def _told(address: str, driver: str) -> Iterator[None]:
    """The kernel's refusal as BindFailed."""
    try:
        yield
    except OSError as error:
        refused = error.strerror or str(error)
        raise BindFailed(address, "driver", f"not to be changed ({refused})", driver) from error
