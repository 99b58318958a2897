"""Memory: how much may be locked, hugepages by node, and what moves pages about."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .facts import Facts
from .model import NOTE, PROBLEM, WARNING, Advice, Found, Memlock, ok, unknown

MEMLOCK, HUGEPAGES, TUNING = "memlock", "hugepages", "memory-tuning"
LIBVIRT_DAEMONS = ("libvirtd", "virtqemud")
CAP_SYS_RESOURCE = 1 << 24  # linux/capability.h: may raise limits of other processes
SMALLEST_VM_BYTES = 256 << 20  # below this no guest fits at all
KIB = 1024
DEFAULT_HUGEPAGE_KIB = 2048  # x86's; hosts with others say default_hugepagesz or hugepagesz
ANYWHERE = -1  # in place of a node: the kernel chooses

_LIMIT = re.compile(r"^Max locked memory\s+(\S+)\s+(\S+)", re.MULTILINE)
_CAPABILITIES = re.compile(r"^CapEff:\s*([0-9a-f]{1,16})$", re.MULTILINE)
_PAGES = re.compile(r"[0-9]{1,9}")
_PAGES_BY_NODE = re.compile(r"[0-9]{1,4}:[0-9]{1,9}(?:,[0-9]{1,4}:[0-9]{1,9})*")
_SIZE = re.compile(r"([0-9]{1,7})([KMG])", re.IGNORECASE)


def memlock(facts: Facts) -> Iterator[Found]:
    """Whether libvirt can let QEMU lock a whole guest's memory: by its own limit, or by raising QEMU's."""
    daemons = facts.processes(*LIBVIRT_DAEMONS)
    if not daemons:
        yield unknown(MEMLOCK, "neither libvirtd nor virtqemud runs, so its limit is not known")
        return
    pid, name = daemons[0]
    limit = _LIMIT.search(facts.root.read(f"proc/{pid}/limits") or "")
    capabilities = _CAPABILITIES.search(facts.root.read(f"proc/{pid}/status") or "")
    hard = limit[2] if limit else ""
    if hard != "unlimited" and not hard.isdecimal():
        yield unknown(MEMLOCK, f"the limits of {name} cannot be read")
        return
    needed = max((node.memory_mib for node in facts.inventory.numa_nodes), default=0) << 20
    if hard == "unlimited" or int(hard) >= max(needed, SMALLEST_VM_BYTES):
        yield ok(MEMLOCK, f"{name} may lock {'any amount' if hard == 'unlimited' else _mib(int(hard))}")
        return
    remedies = (Memlock(name, pid),)
    if capabilities and int(capabilities[1], 16) & CAP_SYS_RESOURCE:
        yield Found(
            MEMLOCK,
            NOTE,
            f"{name} itself may lock {_mib(int(hard))}, but it may raise QEMU's limit (CAP_SYS_RESOURCE)",
            "A hardened service file that takes this capability away makes every VM with a device fail to start.",
            remedies=remedies,
        )
        return
    seen = f"{name} may lock {_mib(int(hard))}, and may not raise QEMU's limit (no CAP_SYS_RESOURCE)"
    risk = (
        "All of a VM's memory is locked while it owns a device. A VM with more than the limit does not start: "
        '"cannot limit '
        'locked memory", or VFIO_MAP_DMA "Cannot allocate memory".'
    )
    yield Found(MEMLOCK, PROBLEM if int(hard) < SMALLEST_VM_BYTES else WARNING, seen, risk, remedies=remedies)


def hugepages(facts: Facts) -> Iterator[Found]:
    """Which nodes have hugepages, and whether the nodes of units go without."""
    nodes = facts.inventory.numa_nodes
    have = {node.id: [page for page in node.hugepages if page.total] for node in nodes}
    if missing := list(_missing(facts)):
        yield Found(
            HUGEPAGES,
            WARNING,
            f"the kernel was told to set aside {'; '.join(missing)}",
            "Memory was too small or too fragmented; jobs that ask for hugepages wait.",
            Advice(
                any="Ask for fewer pages, or for 1 GiB pages only on the kernel's command line, where memory is "
                "whole still."
            ),
        )
        return
    told = "; ".join(
        f"node {node}: {', '.join(f'{page.total} of {_size(page.size_kib)}' for page in pages)}"
        for node, pages in sorted(have.items())
        if pages
    )
    near = sorted({unit.numa_node for unit in facts.units if unit.numa_node in have})
    without = [node for node in near if not have[node]]
    if not told:
        yield Found(HUGEPAGES, NOTE, "none are set aside", _SLOWER, Advice(any=_SET_ASIDE))
    elif without:
        yield Found(
            HUGEPAGES,
            WARNING,
            f"{told}; none on {', '.join(f'node {node}' for node in without)}, which has GPUs",
            "Jobs that ask for hugepages cannot use these GPUs with memory near them: they wait, or lose NUMA "
            "locality.",
            Advice(any=_SET_ASIDE),
        )
    else:
        yield ok(HUGEPAGES, told)


_SLOWER = (
    "Guests use 4 KiB pages, or transparent hugepages where there are some: more TLB misses, slower starts of large "
    "VMs. Jobs that ask for hugepages wait."
)
_SET_ASIDE = (
    "gpupool doctor --fix --hugepages 4096      # of 2 MiB, on every node with memory: 8 GiB each\n"
    "1 GiB pages: default_hugepagesz=1G hugepagesz=1G hugepages=N on the kernel's command line."
)


def _missing(facts: Facts) -> Iterator[str]:
    """What the command line asks for and the host does not have, size by size, node by node where it names nodes."""
    for (size_kib, node), asked in _asked_at_boot(facts).items():
        here = [each for each in facts.inventory.numa_nodes if node in (ANYWHERE, each.id)]
        got = sum(page.total for each in here for page in each.hugepages if page.size_kib == size_kib)
        if got < asked:
            where = "" if node == ANYWHERE else f" on node {node}"
            yield f"{asked} pages of {_size(size_kib)}{where} and has {got}"


def _asked_at_boot(facts: Facts) -> dict[tuple[int, int], int]:
    """Pages that the command line asks for, by size in KiB and node. What it does not say clearly is left out.

    As the kernel reads it (mm/hugetlb.c): a number is of the size named last, or else of the default size; one that
    is said twice counts once, the first time.
    """
    default = _kib(facts.parameter("default_hugepagesz") or "") or DEFAULT_HUGEPAGE_KIB
    size, asked = default, dict[tuple[int, int], int]()
    for word in facts.words:
        name, _, value = word.partition("=")
        if name in ("hugepagesz", "default_hugepagesz"):
            size = _kib(value)
        elif name == "hugepages" and size:
            for node, pages in _by_node(value):
                asked.setdefault((size, node), pages)
    return asked


def _by_node(value: str) -> Iterator[tuple[int, int]]:
    """Node and pages: "64", or "0:32,1:32"."""
    if _PAGES.fullmatch(value):
        yield ANYWHERE, int(value)
    elif _PAGES_BY_NODE.fullmatch(value):
        for part in value.split(","):
            node, _, pages = part.partition(":")
            yield int(node), int(pages)


def _kib(size: str) -> int:
    """A size as kernel parameters have it, such as 1G; 0 if it is none."""
    match = _SIZE.fullmatch(size)
    return int(match[1]) << {"K": 0, "M": 10, "G": 20}[match[2].upper()] if match else 0


def tuning(facts: Facts) -> Iterator[Found]:
    """KSM, swap and transparent hugepages, as far as they harm VMs whose memory is locked."""
    vm = "sys/kernel/mm"
    found = False
    if facts.root.read(f"{vm}/ksm/run") == "1":
        found = True
        yield Found(
            TUNING,
            NOTE,
            "KSM is running",
            "It scans memory for nothing, since that of VMs with devices is pinned, and shared pages let one VM learn "
            "of another's by timing.",
            Advice(any="echo 2 > /sys/kernel/mm/ksm/run; and systemctl disable --now ksm ksmtuned, where they exist"),
        )
    if len((facts.root.read("proc/swaps") or "").splitlines()) > 1:
        found = True
        yield Found(
            TUNING,
            NOTE,
            "the host swaps",
            "VMs' memory stays, as it is locked: under pressure agent, libvirt and guard are swapped out, and a guard "
            "that waits for a disk kills late.",
            Advice(
                any="Keep memory for the host (--reserved-memory-mib) and go without swap: swapoff -a, and edit "
                "/etc/fstab"
            ),
        )
    if "[never]" in (facts.root.read(f"{vm}/transparent_hugepage/enabled") or ""):
        found = True
        yield Found(
            TUNING,
            NOTE,
            "transparent hugepages are off",
            "VMs without hugepages of their own use 4 KiB pages: more TLB misses, in the CPU and in the IOMMU.",
            Advice(any="echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
        )
    if not found:
        yield ok(TUNING, "nothing shares, swaps or splits VMs' memory")


def _mib(count: int) -> str:
    return f"{count >> 20} MiB" if count >> 20 else f"{count // KIB} KiB"


def _size(size_kib: int) -> str:
    return (
        f"{size_kib >> 20} GiB" if size_kib >> 20 else f"{size_kib >> 10} MiB" if size_kib >> 10 else f"{size_kib} KiB"
    )
