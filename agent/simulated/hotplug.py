"""Removing functions from a simulated host's tree, and finding them again, as drivers/pci/remove.c and probe.c do.

A function that is removed waits in `.removed/`, with its directory and where that was.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

REMOVED, PLACE = ".removed", "place"
DEVICES = "bus/pci/devices"


def remove(root: Path, address: str) -> None:
    """Take the function, which has no driver, out of the tree."""
    link = root / DEVICES / address
    home = link.resolve()
    kept = root / REMOVED / address
    kept.mkdir(parents=True)
    (kept / PLACE).write_text(str(home.relative_to(root.resolve())))
    if (home / "iommu_group").is_symlink():
        (home / "iommu_group" / "devices" / address).unlink(missing_ok=True)
    link.unlink()
    home.rename(kept / "home")


def removed_below(root: Path, directory: Path) -> list[str]:
    """Functions that were removed from `directory`, or from below it."""
    waiting = sorted((root / REMOVED).glob(f"*/{PLACE}"))
    return [
        place.parent.name
        for place in waiting
        if (root.resolve() / place.read_text()).is_relative_to(directory.resolve())
    ]


def find_again(root: Path, address: str) -> Path:
    """Put the function back where it was, without a driver or an override; returns its directory."""
    kept = root / REMOVED / address
    home = root / (kept / PLACE).read_text()
    (kept / "home").rename(home)
    shutil.rmtree(kept)
    (home / "driver_override").write_text("(null)\n")
    link = root / DEVICES / address
    link.symlink_to(os.path.relpath(home, link.parent))
    if (home / "iommu_group").is_symlink():
        member = (home / "iommu_group" / "devices").resolve() / address
        member.symlink_to(os.path.relpath(home.resolve(), member.parent))
    return home
