"""Where a VM's memory comes from and how much of it is locked. Pure.

Memory is bound to the host's nodes strictly, cell by cell, and taken when the VM is made: a shortage is an error of the
start and not the end of a VM that has run for days.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from ..ports import GuestCell
from .element import add

OVERHEAD_MIB = 1024
_TABLES_SHARE = 128
_MAX_ALLOCATION_THREADS = 16


def locked_mib(memory_mib: int, functions: int, *, guest_iommu: bool) -> int:
    """How much memory the VM's process may lock, MiB: the limit that libvirt sets as its RLIMIT_MEMLOCK.

        times x RAM + RAM / 128 + 1024

    `times` is 1, or with a virtual IOMMU the number of passed functions: each then has an address space of its own, in
    which all of the guest's memory may be pinned, and VFIO counts every pinning (libvirt, src/qemu/qemu_domain.c,
    qemuDomainGetMemLockLimitBytes: factor x memory + 1 GiB). The 1 GiB is libvirt's allowance for QEMU itself. As
    libvirt makes the same number the cgroup's limit, RAM / 128 is added for page tables: the host's, KVM's and the
    IOMMU's hold 8 bytes for each page of 4 KiB (1/512 each), and newer kernels charge them.

    RAM is counted once although it is pinned, because a VM with passed functions is not locked with mlockall too: both
    count towards the same mm->locked_vm (vfio_iommu_type1.c, vfio_lock_acct), so together they would need it twice,
    and each mapped BAR as well (mm/mmap.c, do_mmap: mlock_future_ok is asked before the mapping's kind is known).
    """
    times = max(1, functions) if guest_iommu else 1
    return times * memory_mib + memory_mib // _TABLES_SHARE + OVERHEAD_MIB


def check_pages(cells: Sequence[GuestCell], hugepage_size_kib: int) -> None:
    """Raises ValueError if a cell has no memory, which QEMU cannot make, or no whole number of pages."""
    for cell in cells:
        if not cell.memory_mib:
            raise ValueError(f"NUMA node {cell.node} gives the VM cores but no memory, which QEMU cannot show")
        if hugepage_size_kib and cell.memory_mib * 1024 % hugepage_size_kib:
            raise ValueError(
                f"{cell.memory_mib} MiB of NUMA node {cell.node} is no whole number of hugepages of "
                f"{hugepage_size_kib} KiB; ask for a multiple"
            )


def memory_xml(domain: ET.Element, vcpus: int, *, limit_mib: int, hugepage_size_kib: int, lock: bool) -> None:
    """Backing, limit and binding. `lock`: by mlockall, for a VM whose memory no passed function pins."""
    tune = ET.SubElement(domain, "memtune")
    add(tune, "hard_limit", str(limit_mib), unit="MiB")
    backing = ET.SubElement(domain, "memoryBacking")
    if hugepage_size_kib:
        pages = ET.SubElement(backing, "hugepages")
        add(pages, "page", size=str(hugepage_size_kib), unit="KiB")
    if lock:
        add(backing, "locked")
    add(backing, "allocation", mode="immediate", threads=str(min(vcpus, _MAX_ALLOCATION_THREADS)))


def numa_xml(domain: ET.Element, cells: Sequence[GuestCell]) -> None:
    """Strict binding of each cell to its node. Cells of unknown node (-1) are not bound."""
    bound = [(index, cell) for index, cell in enumerate(cells) if cell.node >= 0]
    if not bound:
        return
    numa = ET.SubElement(domain, "numatune")
    nodes = ",".join(map(str, sorted({cell.node for _, cell in bound})))
    add(numa, "memory", mode="strict", nodeset=nodes)
    for index, cell in bound:
        add(numa, "memnode", cellid=str(index), mode="strict", nodeset=str(cell.node))
