"""Reclaiming a unit: reset it and prove it clean, by ever stronger means, or say why it must be quarantined.

Decides what is tried and in which order: each function by its own reset; the buses that the unit has to itself; removal
and rediscovery. Each is followed by the proof, and only a proof ends it well. Never resets anything outside the unit;
never goes on after a call that hangs, for whatever came next would hang too. A device is guilty until proven clean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gpupool.v1 import inventory_pb2

from ..inventory.pcitree import PciTree
from ..ports import Sysfs
from .aer import AerCounts
from .baseline import Baseline, Final, NotClean, compare, compare_moved, first_sight, is_there, sight
from .bind import Refuse, bind
from .blocking import RunBlocking, in_steps
from .prove import Compare, prove, read_errors
from .rescan import rescan
from .reset import BUS_STEPS, Means, Step, by_bus, by_function

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds. `step`: for each of bind, reset, rediscovery and proof of the whole unit."""

    step_s: float = 90.0  # the kernel itself waits up to 60 s for a device after a reset (PCIE_RESET_READY_POLL_MS)
    idle_s: float = 10.0  # for an earlier call on the unit to come back: a look at its health may be under way
    rescan_s: float = 5.0  # the scan has ended by then, drivers and udev may still be at it
    link_s: float = 2.0  # for a link to be back; PCI Express Base 6.6.1 wants it up within 1 s


@dataclass(frozen=True, slots=True)
class Outcome:
    """A unit proven clean. `method` of the reset; empty: none was needed. `baseline`: to compare with from now on."""

    method: str
    proof: str
    baseline: Baseline


class Exhausted(NotClean):
    """Nothing helped. Its fields are those of the last failure, its text has all of them."""

    def __init__(self, failures: Sequence[tuple[str, NotClean]]) -> None:
        last = failures[-1][1]
        super().__init__(last.address, last.field, last.seen, last.expected)
        self.args = ("; ".join(f"{means}: {failure}" for means, failure in failures),)


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The reclaim of one unit.

    `look` reads anew what a reset of the unit could hit, and waits for no other that hangs; `run_blocking` is told to
    be at work on this unit; `scrub` is the operator's command.
    """

    unit: inventory_pb2.Unit
    means: Means
    look: Callable[[], Awaitable[PciTree]]
    run_blocking: RunBlocking
    patience: Patience
    refuse: Refuse = lambda _addresses: {}
    scrub: Callable[[], Awaitable[None]] | None = None

    async def run(self, baseline: Baseline | None, *, used: bool = True) -> Outcome:
        """Reset and prove; without a baseline, take it after the reset. A unit that was not `used` is only proven.

        May be repeated after having been cut short anywhere. Raises DeviceError, and nothing else that a device could
        cause.
        """
        failures: list[tuple[str, NotClean]] = []
        try:
            if outcome := await self._in_place(baseline, failures, used=used):
                return outcome
            if outcome := await self._found_anew(baseline, failures):
                return outcome
        except NotClean as error:
            failures.append(("then", error))
        raise Exhausted(failures) if len(failures) > 1 else failures[0][1]

    async def bind(self, *, look_first: bool = False) -> None:
        """Give the unit to vfio-pci, if it is all there. Raises DeviceError."""
        first = self._require_all if look_first else lambda: None
        binding = bind(self._sysfs, self.unit, run_blocking=self.run_blocking, refuse=self.refuse, first=first)
        await self._limited("bind", binding)

    @property
    def _sysfs(self) -> Sysfs:
        return self.means.sysfs

    async def _in_place(
        self, baseline: Baseline | None, failures: list[tuple[str, NotClean]], *, used: bool
    ) -> Outcome | None:
        """By proof alone if that will do, else by resets. None if all failed; why is in `failures`."""
        tree = await self.look()
        try:
            await self.bind(look_first=True)
        except Final:
            raise
        except NotClean as error:
            failures.append(("reset", error))
            return None
        if baseline is not None and not used:
            try:
                return Outcome("", f"no reset needed; {await self._prove(baseline, compare)}", baseline)
            except Final:
                raise
            except NotClean as error:
                failures.append(("unused", error))
        return await self._climb(baseline, tree, compare, failures)

    async def _found_anew(self, baseline: Baseline | None, failures: list[tuple[str, NotClean]]) -> Outcome | None:
        """Remove the functions, find them again, then resets. As `_in_place`."""
        tree = await self.look()
        wait_s = self.patience.rescan_s
        found = rescan(self._sysfs, self.unit, tree, wait_s, run_blocking=self.run_blocking)
        try:
            await self._limited("remove and rescan", found)
        except OSError as error:
            raise _refused(self.unit.id, "remove and rescan", error) from error
        await self.bind()
        outcome = await self._climb(baseline, await self.look(), compare_moved, failures)
        if outcome is None:
            return None
        moved = await self._limited("proof", self.run_blocking(lambda: _moved(self._sysfs, outcome.baseline)))
        return Outcome(f"remove and rescan, {outcome.method}", f"remove and rescan, {outcome.proof}", moved)

    async def _climb(
        self,
        baseline: Baseline | None,
        tree: PciTree,
        comparison: Compare,
        failures: list[tuple[str, NotClean]],
    ) -> Outcome | None:
        """Each function by its own means, then by the bus. None if neither helps; why is in `failures`."""
        tried: set[str] = set()
        for plan in (by_function, by_bus):
            steps: list[Step] = []
            try:
                steps = plan(self.means, self.unit, tree)
                if steps and not (plan is by_bus and tried and tried <= BUS_STEPS):
                    tried = {step.method for step in steps}
                    return await self._attempt(steps, baseline, comparison)
            except Final:
                raise
            except NotClean as error:
                failures.append((_names(steps) or "reset", error))
        return None

    async def _attempt(self, steps: Sequence[Step], baseline: Baseline | None, comparison: Compare) -> Outcome:
        """Reset, scrub, prove."""
        errors = await self._limited("reset", in_steps(self.run_blocking, self._reset(steps)))
        await self.bind(look_first=True)  # a slot that took the reset for an unplugging has found the functions anew
        if self.scrub:
            await self.scrub()
        if baseline is None:
            first = self.run_blocking(lambda: first_sight(self._sysfs, self.unit))
            baseline = await self._limited("first sight", first)
        proof = await self._prove(baseline, comparison, errors)
        return Outcome(_names(steps), f"{_names(steps)}; {proof}", baseline)

    def _require_all(self) -> None:
        for function in self.unit.functions:
            if not is_there(self._sysfs, function.address):
                raise NotClean(function.address, "function", "gone from sysfs", "there")

    def _reset(self, steps: Sequence[Step]) -> Generator[None, None, dict[str, AerCounts]]:
        """Returns the error counters from before."""
        errors = read_errors(self._sysfs, self.unit)
        for step in steps:
            yield
            try:
                step.do()
            except OSError as error:
                raise _refused(step.address, "reset", error) from error
        return errors

    async def _prove(
        self, baseline: Baseline, comparison: Compare, errors: Mapping[str, AerCounts] | None = None
    ) -> str:
        proof = prove(
            self._sysfs,
            self.unit,
            baseline,
            errors_before=errors,
            comparison=comparison,
            link_settles_s=self.patience.link_s,
            run_blocking=self.run_blocking,
        )
        return await self._limited("proof", proof)

    async def _limited(self, what: str, doing: Awaitable[T]) -> T:
        """Await it for as long as a step may take. Raises Final if it takes longer: it hangs in the kernel."""
        limit_s = self.patience.step_s
        try:
            async with asyncio.timeout(limit_s):
                return await doing
        except TimeoutError as error:
            raise Final(self.unit.id, what, f"not done after {limit_s:g} s", "done") from error


def _moved(sysfs: Sysfs, baseline: Baseline) -> Baseline:
    """The baseline with the addresses that the kernel gave to BARs now."""
    now = {first.address: sight(sysfs, first.address) for first in baseline.functions}
    return Baseline(
        tuple(
            replace(first, bars=now[first.address].bars, resources=now[first.address].resources)
            for first in baseline.functions
        )
    )


def _names(steps: Sequence[Step]) -> str:
    return "+".join(dict.fromkeys(step.method for step in steps))


def _refused(address: str, what: str, error: OSError) -> NotClean:
    return NotClean(address, what, f"refused ({error.strerror or error})", "done")
