"""A sysfs tree that answers for some functions from memory, so that reading all of it waits for none of them.

Reading an attribute of a function that is being reset waits until the reset is over, for ever if that hangs. The
inventory is read for all other functions' sake, so it must not touch that one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from ..inventory.pci import DEVICES
from ..ports import Sysfs

_T = TypeVar("_T")
_BELOW = f"{DEVICES}/"
# What the kernel knows of the function without asking it or locking it: these may always be read.
HARMLESS = frozenset(
    {"vendor", "device", "class", "subsystem_vendor", "subsystem_device", "resource", "numa_node", "boot_vga"}
)


class Remembered:
    """What was last read of each function."""

    def __init__(self, sysfs: Sysfs) -> None:
        self.sysfs = sysfs
        self.answers: dict[str, dict[tuple[str, str], object]] = {}

    def without(self, addresses: Collection[str]) -> Sysfs:
        """The tree, with functions at `addresses` as they were before they were set aside."""
        return _Remembering(self, frozenset(addresses))


class _Remembering:
    """Implements ports.Sysfs."""

    def __init__(self, memory: Remembered, aside: frozenset[str]) -> None:
        self._memory = memory
        self._sysfs = memory.sysfs
        self._aside = aside

    def read(self, path: str) -> str | None:
        return self._answer("read", path, lambda: self._sysfs.read(path), None)

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        return self._answer(f"{limit} at {offset}", path, lambda: self._sysfs.read_bytes(path, limit, offset), None)

    def list(self, path: str) -> list[str]:
        found = self._answer("list", path, lambda: self._sysfs.list(path))
        if path != DEVICES:
            return found
        remembered = set(self._memory.answers)
        for gone in remembered - set(found) - self._aside:
            self._memory.answers.pop(gone, None)
        return sorted({*found, *(remembered & self._aside)})  # one that is removed will be back

    def link_name(self, path: str) -> str | None:
        return self._answer("link_name", path, lambda: self._sysfs.link_name(path))

    def link_target(self, path: str) -> str | None:
        return self._answer("link_target", path, lambda: self._sysfs.link_target(path))

    def write(self, path: str, text: str) -> None:
        self._sysfs.write(path, text)

    def _answer(self, kind: str, path: str, ask: Callable[[], _T], *otherwise: _T) -> _T:
        """What `ask` says, or said when the function was last not set aside.

        If there is no memory, `otherwise`; without that (directories and links wait for nothing) ask all the same.
        """
        if not path.startswith(_BELOW):
            return ask()
        parts = path.split("/")  # a Path would cost more than the reading
        answers = self._memory.answers.setdefault(parts[3], {})
        key = (kind, path)
        if parts[3] not in self._aside:
            answers[key] = ask()
        elif key not in answers:
            return ask() if parts[-1] in HARMLESS or not otherwise else otherwise[0]
        return answers[key]  # type: ignore[return-value]
