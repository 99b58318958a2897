"""PCIe advanced error reporting: the counters that the kernel keeps for each function. Pure, apart from reading them.

A counter begins at 0 when the kernel finds the function, and goes up only. Format and names:
Documentation/ABI/testing/sysfs-bus-pci-devices-aer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..inventory.attributes import decimal
from ..inventory.pci import DEVICES
from ..ports import Sysfs

SEVERITIES = ("fatal", "nonfatal", "correctable")
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class AerCounts:
    """Errors so far, by severity and name. A severity that is not there could not be read: the device may have none."""

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def read_aer(sysfs: Sysfs, address: str, severities: Sequence[str] = SEVERITIES) -> AerCounts:
    """The function's counters of these severities."""
    texts = {name: sysfs.read(f"{DEVICES}/{address}/aer_dev_{name}") for name in severities}
    return AerCounts({name: parse(text) for name, text in texts.items() if text})


def parse(text: str) -> dict[str, int]:
    """Counters of one file ("Surprise Down Error 1"), without the totals; a line that makes no sense is left out."""
    pairs = (line.rpartition(" ") for line in text.splitlines())
    counts = {name.strip(): decimal(count, 0, MOST) for name, _, count in pairs if not name.startswith("TOTAL_ERR")}
    return {name: count for name, count in counts.items() if name and count is not None}


def risen(before: AerCounts, now: AerCounts, severity: str) -> str:
    """Which counters of a severity went up, for people ("Surprise Down Error +1"); empty: none.

    Counters that are lower than before began anew, so all of them counts.
    """
    then, counts = before.counts.get(severity, {}), now.counts.get(severity, {})
    rises = {name: count - (then.get(name, 0) if then.get(name, 0) <= count else 0) for name, count in counts.items()}
    return ", ".join(f"{name} +{rise}" for name, rise in sorted(rises.items()) if rise > 0)
