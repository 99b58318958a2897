"""Proof by function that a unit is as at first sight, before and after a second bind to vfio-pci.

Decides whether a unit is clean; believes nothing that was said of a reset, and repairs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from .aer import SEVERITIES, AerCounts, read_aer, risen
from .baseline import Baseline, BindFailed, FunctionBaseline, NotClean, compare, sight
from .bind import bind, unbind
from .blocking import RunBlocking, in_own_thread

LOOK_AGAIN_S = 0.2

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
    await _compare(sysfs, baseline, comparison, link_settles_s, run_blocking)
    address = unit.id
    try:
        for address in _addresses(unit).split():
            await run_blocking(lambda address=address: unbind(sysfs, address))  # type: ignore[misc]
        await bind(sysfs, unit, run_blocking=run_blocking)
    except BindFailed as error:
        raise NotClean(error.address, error.field, error.seen, error.expected) from error
    except OSError as error:
        seen = f"not to be unbound ({error.strerror or error})"
        raise NotClean(address, "driver", seen, "none") from error
    await _compare(sysfs, baseline, comparison, link_settles_s, run_blocking)
    noted = await run_blocking(lambda: _errors(sysfs, unit, errors_before or {}))  # last, and once the link has settled
    checks = ["config", "BARs", "command", _link(unit, baseline), "rebind ok", *noted]
    return ", ".join(checks)


def read_errors(sysfs: Sysfs, unit: inventory_pb2.Unit) -> dict[str, AerCounts]:
    """AER counters by function, to be compared with after the reset."""
    return {function.address: read_aer(sysfs, function.address) for function in unit.functions}


async def _compare(
    sysfs: Sysfs, baseline: Baseline, comparison: Compare, link_settles_s: float, run_blocking: RunBlocking
) -> None:
    def look() -> None:
        for first in baseline.functions:
            comparison(first, sight(sysfs, first.address))

    for again in reversed(range(1 + round(link_settles_s / LOOK_AGAIN_S))):
        try:
            return await run_blocking(look)
        except NotClean as error:
            if not (error.field.startswith("link") and again):
                raise
        await asyncio.sleep(LOOK_AGAIN_S)
    return None


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
