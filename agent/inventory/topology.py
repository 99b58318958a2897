"""CPUs and memory by NUMA node, as sysfs tells of them: text in, facts out.

Only what VMs may use comes out: CPUs that are online, not isolated, not reserved, in whole physical cores. A CPU whose
siblings cannot be read is left out with a note: to take a hyperthread for a core would sell one core twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from gpupool.v1 import inventory_pb2

from ..ports import Sysfs
from . import hugepages
from .attributes import Note

CPUS, NODES, MEMORY = "devices/system/cpu", "devices/system/node", "devices/system/memory"
MAX_CPU = 65535  # eight times the largest CONFIG_NR_CPUS: a bound on nonsense, not on machines
KIB_PER_MIB = BYTES_PER_KIB = 1024

_NODE = re.compile(r"node(0|[1-9][0-9]{0,3})")
_CPU = re.compile(r"cpu(0|[1-9][0-9]{0,4})")
_BLOCK = re.compile(r"memory[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_MEM_TOTAL = re.compile(r"^Node [0-9]+ MemTotal:\s+([0-9]{1,15}) kB$", re.MULTILINE)
_HEX = re.compile(r"[0-9a-f]{1,15}", re.IGNORECASE)
_DISTANCE = re.compile(r"[0-9]{1,3}")


def read_nodes(
    sysfs: Sysfs, note: Note, *, reserved_memory_mib: int = 0, reserved_cpus: Collection[int] = ()
) -> list[inventory_pb2.NumaNode]:
    """The host's NUMA nodes, sorted by id; a tree without nodes is one node 0.

    `reserved_memory_mib` is kept back on every node, and so is every core that has a thread in `reserved_cpus`.
    """
    online, isolated = _usable_cpus(sysfs, note)
    withheld = isolated.union(reserved_cpus)
    ids = sorted(int(match[1]) for entry in sysfs.list(NODES) if (match := _NODE.fullmatch(entry)))
    if not ids:
        note(f"{NODES}: no NUMA nodes; all CPUs and memory count as node 0")
    nodes = []
    taken: set[int] = set()
    for node in ids or [0]:
        cpus = [cpu for cpu in (_node_cpus(sysfs, node, note) if ids else sorted(online)) if cpu not in taken]
        pages, is_whole = hugepages.read(sysfs, f"{NODES}/node{node}/hugepages" if ids else hugepages.WHOLE_HOST, note)
        memory_kib = _node_memory_kib(sysfs, node, note) if ids else _block_memory_kib(sysfs, note)
        set_aside_kib = sum(size.total * size.size_kib for size in pages)
        if set_aside_kib > memory_kib:
            note(f"node {node}: {set_aside_kib} KiB are set aside as hugepages, of {memory_kib} KiB; no memory is left")
        if not is_whole:
            note(f"node {node}: how much is set aside as hugepages is unknown; its ordinary memory counts as none")
        memory_mib = (memory_kib - set_aside_kib) // KIB_PER_MIB - reserved_memory_mib if is_whole else 0
        nodes.append(
            inventory_pb2.NumaNode(
                id=node,
                cores=_cores(sysfs, [cpu for cpu in cpus if cpu in online], withheld, note),
                memory_mib=min(max(memory_mib, 0), 2**32 - 1),
                hugepages=pages,
                distances=_distances(sysfs, node, len(ids), note) if ids else (),
                isolated_cpus=sorted(isolated.intersection(cpus, online)),
            )
        )
        taken.update(cpus)
    return nodes


def cpu_list(text: str) -> list[int] | None:
    """CPU numbers of the kernel's list format ("0-3,8"), sorted; None if the text is none or repeats itself."""
    cpus: set[int] = set()
    named = 0
    for part in text.split(",") if text.strip() else []:
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        named += last - first + 1
        if not first <= last <= MAX_CPU or named > MAX_CPU + 1:
            return None
        cpus.update(range(first, last + 1))
    return sorted(cpus)


def _usable_cpus(sysfs: Sysfs, note: Note) -> tuple[frozenset[int], frozenset[int]]:
    """CPUs that are online, and those that the kernel's scheduler leaves alone (isolcpus)."""
    present = sorted(int(match[1]) for entry in sysfs.list(CPUS) if (match := _CPU.fullmatch(entry)))
    online = _read_list(sysfs, f"{CPUS}/online", note)
    if online is None:
        note(f"{CPUS}: which CPUs are online is unknown, so none may be used")
    isolated = frozenset((sysfs.read(f"{CPUS}/isolated") and _read_list(sysfs, f"{CPUS}/isolated", note)) or ())
    if isolated:
        note(f"{CPUS}: {len(isolated)} isolated CPUs (isolcpus) belong to something else; left out with their cores")
    if offline := sorted(set(present) - set(online or ())) if online is not None else []:
        note(f"{CPUS}: {len(offline)} CPUs are offline; left out")
    return frozenset(online or ()), isolated


def _read_list(sysfs: Sysfs, path: str, note: Note) -> list[int] | None:
    text = sysfs.read(path)
    cpus = None if text is None else cpu_list(text)
    if cpus is None:
        note(f"{path}: {'cannot be read' if text is None else f'{text[:40]!r} is no list of CPUs'}")
    return cpus


def _node_cpus(sysfs: Sysfs, node: int, note: Note) -> list[int]:
    """The node's CPUs, online or not; empty on a memory-only node, for which the kernel prints an empty list."""
    return _read_list(sysfs, f"{NODES}/node{node}/cpulist", note) or []


def _cores(sysfs: Sysfs, cpus: Iterable[int], withheld: frozenset[int], note: Note) -> list[inventory_pb2.CpuCore]:
    """Physical cores among the online `cpus`, by their first CPU. One offline thread does not lose the others."""
    left = set(cpus)
    cores = []
    for cpu in sorted(left):
        if cpu not in left:
            continue
        siblings = _siblings(sysfs, cpu, note)
        threads = sorted(left & set(siblings))
        left -= set(threads) | {cpu}
        if threads and not withheld & set(siblings):
            cores.append(inventory_pb2.CpuCore(threads=threads))
    return cores


def _siblings(sysfs: Sysfs, cpu: int, note: Note) -> list[int]:
    """All CPUs of the core that `cpu` belongs to, itself included; empty if that cannot be read."""
    base = f"{CPUS}/cpu{cpu}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the name before Linux 5.3
        siblings = cpu_list(sysfs.read(f"{base}/{name}") or "")
        if siblings and cpu in siblings:
            return siblings
    note(f"{base}: siblings of cpu{cpu} cannot be read; left out")
    return []


def _node_memory_kib(sysfs: Sysfs, node: int, note: Note) -> int:
    path = f"{NODES}/node{node}/meminfo"
    match = _MEM_TOTAL.search(sysfs.read(path) or "")
    if match is None:
        note(f"{path}: no MemTotal; the node's memory counts as none")
        return 0
    return int(match[1])


def _distances(sysfs: Sysfs, node: int, nodes: int, note: Note) -> list[int]:
    """To each node that is online, in the order of their ids; empty if the file does not speak of just those."""
    path = f"{NODES}/node{node}/distance"
    text = sysfs.read(path)
    words = (text or "").split()
    if len(words) != nodes or not all(map(_DISTANCE.fullmatch, words)):
        note(f"{path}: {'cannot be read' if text is None else f'{text[:40]!r} is no list of {nodes} distances'}")
        return []
    return [int(word) for word in words]


def _block_memory_kib(sysfs: Sysfs, note: Note) -> int:
    """Memory of a tree without nodes: its online memory blocks, which include what the kernel keeps for itself."""
    size = (sysfs.read(f"{MEMORY}/block_size_bytes") or "").removeprefix("0x")
    blocks = [entry for entry in sysfs.list(MEMORY) if _BLOCK.fullmatch(entry)]
    online = sum(1 for block in blocks if sysfs.read(f"{MEMORY}/{block}/state") == "online")
    if not _HEX.fullmatch(size) or not online:
        note(f"{MEMORY}: no memory blocks; memory counts as none")
        return 0
    note(f"{MEMORY}: memory counted in blocks, which is a little more than the kernel leaves to programs")
    return online * int(size, 16) // BYTES_PER_KIB


def node_of(numa_node: int, nodes: Iterable[inventory_pb2.NumaNode]) -> int:
    """`numa_node` if the host has it, else -1 (unknown): firmware may name nodes that do not exist."""
    return numa_node if any(node.id == numa_node for node in nodes) else -1
