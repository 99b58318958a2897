"""Hugepages of one size on one NUMA node: how many may be promised, though others on the host take pages too.

The host's own count of free pages is a reading: some of our VMs had their pages by then and some had not. What is
neither free nor ours then is somebody else's, and is not ours to promise. So

    may be promised = min(total, free in the reading + ours that were out of it) - everything lent

An allocation counts as out of the reading from the time that a reading finds it PREPARING, RUNNING or STOPPING, until
its VM is gone. A BOUND one cannot be: its agent touches nothing before PREPARING is on record. One that was PREPARING
and had not got its pages yet makes others' pages look fewer, by no more than its own, until the next reading; that
comes with the pages. The agent still looks before a start: a VM whose pages are gone does not start, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from .tables import AllocationState

MAY_HAVE_PAGES = frozenset({AllocationState.PREPARING, AllocationState.RUNNING, AllocationState.STOPPING})


@dataclass(frozen=True, slots=True)
class HugepagesFact:
    """What a host says of its pages of `size_kib` on `node`. `total` and `free` count pages."""

    node: int
    size_kib: int
    total: int
    free: int


@dataclass(slots=True)
class Pool:
    """See the module docstring. All in MiB, and whole pages."""

    total_mib: int
    seen_free_mib: int
    seen_ours_mib: int = 0
    lent_mib: int = 0

    @property
    def usable_mib(self) -> int:
        """What is not in other hands."""
        return min(self.total_mib, self.seen_free_mib + self.seen_ours_mib)

    @property
    def free_mib(self) -> int:
        """What may be promised; below zero if others took what was promised already."""
        return self.usable_mib - self.lent_mib

    def lend(self, mib: int, *, seen: bool) -> None:
        """Account for an allocation's pages, or with a negative `mib` for their return."""
        self.lent_mib += mib
        if seen:
            self.seen_ours_mib += mib


def pool_of(fact: HugepagesFact) -> Pool:
    """The pool that a reading describes, with nothing lent."""
    return Pool(fact.total * fact.size_kib // 1024, min(fact.free, fact.total) * fact.size_kib // 1024)


def size_name(size_kib: int) -> str:
    """As people say it: "2 MiB", "1 GiB"."""
    for unit, kib in (("GiB", 1024 * 1024), ("MiB", 1024)):
        if size_kib % kib == 0:
            return f"{size_kib // kib} {unit}"
    return f"{size_kib} KiB"
