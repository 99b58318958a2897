"""Hugepages of one NUMA node, or of a host without nodes, by size (Documentation/admin-guide/mm/hugetlbpage.rst)."""

from __future__ import annotations

import re

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from .attributes import Note, decimal, parsed

WHOLE_HOST = "kernel/mm/hugepages"
MOST_PAGES = 2**32 - 1

_SIZE = re.compile(r"hugepages-([1-9][0-9]{0,8})kB")


def read(sysfs: Sysfs, directory: str, note: Note) -> tuple[list[inventory_pb2.Hugepages], bool]:
    """Pages by size, the smallest first, and whether that is all of them.

    A size of which the number cannot be read is left out, with a note: how much memory it takes is unknown then.
    """
    sizes = sorted(int(match[1]) for entry in sysfs.list(directory) if (match := _SIZE.fullmatch(entry)))
    found, is_whole = [], True
    for size_kib in sizes:
        base = f"{directory}/hugepages-{size_kib}kB"
        total, free = (
            parsed(sysfs, f"{base}/{name}", lambda text: decimal(text, 0, MOST_PAGES), -1, note)
            for name in ("nr_hugepages", "free_hugepages")
        )
        is_whole = is_whole and total >= 0
        if total >= 0 and free > total:
            note(f"{base}: {free} pages are free, of {total}; none counts as free")
        if total >= 0:
            found.append(
                inventory_pb2.Hugepages(size_kib=size_kib, total=total, free=free if 0 <= free <= total else 0)
            )
    return found, is_whole
