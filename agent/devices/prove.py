"""Proof by function that a unit is as at first sight, before and after a second bind to vfio-pci.

Decides whether a unit is clean; believes nothing that was said of a reset, and repairs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from .aer import SEVERITIES, AerCounts, read_aer, risen
from .baseline import Baseline, BindFailed, FunctionBaseline, NotClean, compare, sight
from .bind import Steps, binding, unbind
from .blocking import RunBlocking, in_own_thread, in_steps

LOOK_AGAIN_S = 0.2

T = TypeVar("T")
Compare = Callable[[FunctionBaseline, FunctionBaseline], None]


async def prove(
    sysfs: Sysfs,
    unit: inventory_pb2.Unit,
    baseline: Baseline,
    *,
    errors_before: Mapping[str, AerCounts] | None = None,
    comparison: Compare = compare,
    link_settles_s: float = 0.0,
    run_blocking: RunBlocking = in_own_thread,
) -> str:
    """Compare with first sight, bind anew, compare again; `errors_before`: AER counters from before the reset.

    A link that is not yet back is looked at again for `link_settles_s` seconds.

    Returns what was proven, for people. Raises NotClean with the function, the field, what was seen and what expected.
    Has no time limit of its own.
    """
    if [first.address for first in baseline.functions] != [function.address for function in unit.functions]:
        raise NotClean(unit.id, "unit", _addresses(unit), " ".join(first.address for first in baseline.functions))

    def look() -> None:
        for first in baseline.functions:
            comparison(first, sight(sysfs, first.address))

    def rebind() -> Steps:
        look()
        yield
        yield from _bind_anew(sysfs, unit)

    def look_again() -> Generator[None, None, Sequence[str]]:
        look()
        yield
        return _errors(sysfs, unit, errors_before or {})  # last, and once the link has settled

    await _settled(rebind, link_settles_s, run_blocking)
    noted = await _settled(look_again, link_settles_s, run_blocking)
    checks = ["config", "BARs", "command", _link(unit, baseline), "rebind ok", *noted]
    return ", ".join(checks)


def read_errors(sysfs: Sysfs, unit: inventory_pb2.Unit) -> dict[str, AerCounts]:
    """AER counters by function, to be compared with after the reset."""
    return {function.address: read_aer(sysfs, function.address) for function in unit.functions}


def _bind_anew(sysfs: Sysfs, unit: inventory_pb2.Unit) -> Steps:
    address = unit.id
    try:
        for address in _addresses(unit).split():
            unbind(sysfs, address)
            yield
        yield from binding(sysfs, unit)
    except BindFailed as error:
        raise NotClean(error.address, error.field, error.seen, error.expected) from error
    except OSError as error:
        seen = f"not to be unbound ({error.strerror or error})"
        raise NotClean(address, "driver", seen, "none") from error


async def _settled(
    steps: Callable[[], Generator[None, None, T]], link_settles_s: float, run_blocking: RunBlocking
) -> T:
    """What `steps`, which begin with a look, return; begun again for as long as a link may need to come back."""
    again = round(link_settles_s / LOOK_AGAIN_S)
    while True:
        try:
            return await in_steps(run_blocking, steps())
        except NotClean as error:
            if not (error.field.startswith("link") and again):
                raise
        again -= 1
        await asyncio.sleep(LOOK_AGAIN_S)


def _errors(sysfs: Sysfs, unit: inventory_pb2.Unit, before: Mapping[str, AerCounts]) -> Sequence[str]:
    """What counters say since `before`, for the proof. Raises NotClean for a fatal error: what it hit may be lost."""
    notes = []
    found = read_errors(sysfs, unit)
    for address, now in found.items():
        for severity in SEVERITIES:
            rise = risen(before[address], now, severity) if address in before else ""
            if rise and severity == "fatal":
                raise NotClean(address, "fatal AER errors during the reset", rise, "none")
            if rise:
                notes.append(f"{severity} AER errors of {address}: {rise}")
    read = any(found[address].counts for address in before)
    return notes or (["no AER errors"] if read else [])


def _link(unit: inventory_pb2.Unit, baseline: Baseline) -> str:
    gpu = next((first for first in baseline.functions if first.address == unit.id), baseline.functions[0])
    return f"link x{gpu.link_width} {gpu.link_speed_mts} MT/s" if gpu.link_width else "no link to compare"


def _addresses(unit: inventory_pb2.Unit) -> str:
    return " ".join(function.address for function in unit.functions)
