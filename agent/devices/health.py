"""Whether a unit is still well, in use or not: pure judgement over sights, and the reading of them.

Decides what counts as sick; ends no VM and resets nothing. Reading disturbs nobody: it wakes no device and changes no
register.

What is *not* taken for a fault, and why:
- A link that is slower than at first. Guest drivers slow it down while the GPU is idle (NVIDIA's P8 runs at 2.5 GT/s).
- One sight of a device that does not answer, or of a narrower link. A guest's driver may reset its GPU, which drops off
  the bus for a moment, or train its link anew. Two sights in a row count.
- A config space that cannot be read in time. The kernel holds such reads up while it resets the device.
- Of a unit that nobody uses: any link, as vfio-pci puts an idle device to sleep and its port after it; a function that
  is not there, which is the inventory's to tell; and one in D3cold, as a look at it would switch its power on.
- Correctable and nonfatal errors (AER): by definition the link is still reliable (PCI Express Base, 6.2.2). The proof
  of the next reclaim tells of them.

What a unit looked like when its VM got it, or when it was last proven clean, is on record: an agent that was restarted
meanwhile compares with that, and not with what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gpupool.v1.inventory_pb2 import Unit

from ..inventory.attributes import link_width
from ..inventory.pci import DEVICES
from ..ports import Sysfs
from ..work.records import Records
from .aer import AerCounts, read_aer, risen

HEADER_HEAD = 12  # ids, command, status, class: of the ids alone a virtual function's read 0xffff
_KIND = "sights"


@dataclass(frozen=True, slots=True)
class Vitals:
    """One sight of a function in use. `answers`: None if its config space could not be read in time."""

    address: str
    present: bool
    answers: bool | None = None
    width: int = 0  # lanes; 0: unknown, or the link is down
    errors: AerCounts = field(default_factory=AerCounts)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vitals:
        """The inverse of `to_dict`."""
        return replace(
            cls(data["address"], data["present"], data["answers"], data["width"]), errors=AerCounts(**data["errors"])
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Not `dataclasses.asdict`, which copies all that is in it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"errors": {"counts": self.errors.counts}}


def read_vitals(sysfs: Sysfs, address: str) -> Vitals:
    """The function as it is now."""
    header = sysfs.read_bytes(f"{DEVICES}/{address}/config", HEADER_HEAD)
    if header is None and not sysfs.list(f"{DEVICES}/{address}"):
        return Vitals(address, present=False)
    answers = None if not header or len(header) < 2 else set(header) != {0xFF}
    width = link_width(sysfs.read(f"{DEVICES}/{address}/current_link_width") or "") or 0
    return Vitals(address, present=True, answers=answers, width=width, errors=read_aer(sysfs, address))


def judge(first: Vitals, before: Vitals, now: Vitals) -> str:
    """What is wrong with the function, for people; empty: nothing. `first`: when the VM got it; `before`: last time."""
    if not now.present:
        return f"{now.address} has vanished from the bus"
    if now.answers is False and before.answers is False:
        return f"{now.address} does not answer: its config space reads 0xff throughout"
    if rise := risen(first.errors, now.errors, "fatal"):
        return f"{now.address} had fatal PCIe errors (AER): {rise}"
    if now.answers and max(now.width, before.width) < first.width:
        lanes = f"x{now.width}" if now.width else "none"
        return f"{now.address}: link width fell to {lanes} from x{first.width}"
    return ""


class HealthWatch:
    """Keeps the sights of units. Reading may block, so all of it but `end` is for a thread."""

    def __init__(self, sysfs: Sysfs, records: Records) -> None:
        self._sysfs = sysfs
        self._records = records
        self._first: dict[str, Vitals] = {}
        self._before: dict[str, Vitals] = {}
        self._idle: dict[str, Vitals] = {}
        self._last: dict[str, AerCounts] = {}  # at the last toll
        for record in records.load(_KIND).values():
            known = self._first if record["in_use"] else self._idle
            known |= {sight["address"]: Vitals.from_dict(sight) for sight in record["sights"]}

    def begin(self, unit: Unit) -> None:
        """Look at the unit as its VM gets it: what is wrong later is wrong against this."""
        self._forget(unit)
        self._first |= self._note(unit, in_use=True)

    def rest(self, unit: Unit) -> None:
        """Look at the unit as its proof leaves it: what befalls it while nobody has it does so against this."""
        self._forget(unit)
        self._idle |= {address: replace(sight, width=0) for address, sight in self._note(unit, in_use=False).items()}

    def look(self, unit: Unit) -> str:
        """What is wrong with the unit; empty: nothing. One that was never begun (the agent is new) begins now."""
        if not any(function.address in self._first for function in unit.functions):
            self.begin(unit)
        return "; ".join(found for function in unit.functions if (found := self._look(function.address)))

    def glance(self, unit: Unit) -> str:
        """What is wrong with a unit that nobody uses; empty: nothing. The second of two sights counts, as in `look`."""
        return "; ".join(found for function in unit.functions if (found := self._glance(function.address)))

    def toll(self, unit: Unit) -> str:
        """What befell a unit while its VM had it, and a look may have come too early for; empty: nothing.

        The kernel counts errors whoever looks. Of all other faults the proof tells.
        """
        self._last |= {one: read_aer(self._sysfs, one) for one in _addresses(unit) if one in self._first}
        rises = self._rises(unit, "fatal")
        return "; ".join(f"{address} had fatal PCIe errors (AER): {rise}" for address, rise in rises.items())

    def noted(self, unit: Unit) -> str:
        """Errors that `toll` saw and that make it neither sick nor unclean, for the proof. Reads nothing."""
        found = [
            f"{severity} AER errors of {address} in use: {rise}"
            for severity in ("nonfatal", "correctable")
            for address, rise in self._rises(unit, severity).items()
        ]
        return ", ".join(found)

    def end(self, unit: Unit) -> None:
        """Forget the unit: what its next VM finds is another first sight."""
        self._forget(unit)
        self._records.remove(_KIND, unit.id)

    def _forget(self, unit: Unit) -> None:
        for function in unit.functions:
            for known in (self._first, self._before, self._idle, self._last):
                known.pop(function.address, None)

    def _note(self, unit: Unit, *, in_use: bool) -> dict[str, Vitals]:
        """Each function as it is now, put on record."""
        sights = {function.address: read_vitals(self._sysfs, function.address) for function in unit.functions}
        record = {"in_use": in_use, "sights": [sight.to_dict() for sight in sights.values()]}
        self._records.save(_KIND, unit.id, record)
        return sights

    def _rises(self, unit: Unit, severity: str) -> dict[str, str]:
        """Which errors each function had from when the VM got it until the last toll."""
        found = {
            one: risen(self._first[one].errors, self._last[one], severity)
            for one in _addresses(unit)
            if one in self._first and one in self._last
        }
        return {address: rise for address, rise in found.items() if rise}

    def _glance(self, address: str) -> str:
        before = self._idle.pop(address, None)
        if self._sysfs.read(f"{DEVICES}/{address}/power_state") == "D3cold":
            return ""
        now = replace(read_vitals(self._sysfs, address), width=0)
        if not now.present:
            return ""
        self._idle[address] = now
        return judge(before, before, now) if before else ""

    def _look(self, address: str) -> str:
        now = read_vitals(self._sysfs, address)
        first = self._first.setdefault(address, now)
        found = judge(first, self._before.get(address, first), now)  # an agent that is new has seen it once only
        self._before[address] = now
        return found


def _addresses(unit: Unit) -> list[str]:
    return [function.address for function in unit.functions]
