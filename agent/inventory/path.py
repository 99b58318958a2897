"""Where a PCI function sits: the bridges above it, from the target of its link under bus/pci/devices.

The kernel's device tree is the truth here: it holds for virtual functions on buses that no bridge register names, and
for domains that a device such as Intel's VMD opens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# pci_create_root_bus, drivers/pci/probe.c: "pci%04x:%02x".
_ROOT_BUS = re.compile(r"pci([0-9a-f]{4,8}:[0-9a-f]{2})")
_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


@dataclass(frozen=True, slots=True)
class Path:
    """`root_bus`: "dddd:bb" of the host bridge; `bridges`: addresses from the root port down, none on a root bus."""

    root_bus: str
    bridges: tuple[str, ...]


def parse_path(target: str, address: str) -> Path | None:
    """The path of the function `address` from its link's target; None if the target does not lead to it.

    "../../../devices/pci0000:20/0000:20:00.0/0000:21:00.0" is ("0000:20", ("0000:20:00.0",)). Of several host bridges
    the last counts: a VMD controller has one below itself.
    """
    parts = target.split("/")
    if parts[-1] != address:
        return None
    roots = [index for index, part in enumerate(parts) if _ROOT_BUS.fullmatch(part)]
    if not roots:
        return None
    bridges = tuple(parts[roots[-1] + 1 : -1])
    sensible = all(map(_FUNCTION.fullmatch, bridges)) and len({*bridges, address}) == len(bridges) + 1
    return Path(parts[roots[-1]].removeprefix("pci"), bridges) if sensible else None
