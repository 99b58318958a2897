"""What a function has been cut into, or is a part of: SR-IOV virtual functions and mediated devices."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..ports import Sysfs
from .attributes import Attributes, Note, decimal

MOST_VIRTUAL = 65535  # the width of TotalVFs (PCI Express Base Specification, 9.3.3)
MOST_MDEV_TYPES = 256

_VIRTUAL = re.compile(r"virtfn[0-9]{1,5}")
_MDEV_TYPE = re.compile(r"[\x21-\x7e]{1,80}")  # "nvidia-63", "i915-GVTg_V5_4"


@dataclass(frozen=True, slots=True)
class Sharing:
    """`parent`: of a virtual function, empty if its link makes no sense; `present`: virtual functions by address."""

    is_virtual: bool = False
    parent: str = ""
    total: int = 0
    switched_on: int = 0
    present: tuple[str, ...] = ()
    mdev_types: tuple[str, ...] = ()
    mdevs_in_use: int = 0


def read(sysfs: Sysfs, found: Attributes, canonical: Callable[[str], str | None], note: Note) -> Sharing:
    """SR-IOV (Documentation/ABI/testing/sysfs-bus-pci) and mdev (Documentation/driver-api/vfio-mediated-device.rst)."""

    def linked(name: str) -> str:
        target = sysfs.link_name(f"{found.base}/{name}") or ""
        if (address := canonical(target)) is None:
            note(f"{found.base.rpartition('/')[2]}: {name} points to {target[:40]!r}, which is no PCI address")
        return address or ""

    links = sorted(name for name in found.names if _VIRTUAL.fullmatch(name))
    types = _mdev_types(sysfs, found)
    return Sharing(
        is_virtual="physfn" in found.names,
        parent=linked("physfn") if "physfn" in found.names else "",
        total=found.get("sriov_totalvfs", lambda text: decimal(text, 0, MOST_VIRTUAL), 0),
        switched_on=found.get("sriov_numvfs", lambda text: decimal(text, 0, MOST_VIRTUAL), 0),
        present=tuple(sorted(address for name in links if (address := linked(name)))),
        mdev_types=types,
        mdevs_in_use=sum(len(sysfs.list(f"{found.base}/mdev_supported_types/{kind}/devices")) for kind in types),
    )


def _mdev_types(sysfs: Sysfs, found: Attributes) -> tuple[str, ...]:
    if "mdev_supported_types" not in found.names:
        return ()
    names = sysfs.list(f"{found.base}/mdev_supported_types")
    return tuple(name for name in names if _MDEV_TYPE.fullmatch(name))[:MOST_MDEV_TYPES]
