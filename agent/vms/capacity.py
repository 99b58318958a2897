"""Whether the host has what a VM needs, asked before it is made, so that the reason is said and not found in a log.

It refuses only what cannot succeed: what the scheduler's arithmetic, or a promise of hugepages, has lost touch with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ..domain.memory import locked_mib
from ..domain.shape import DomainShape
from ..inventory.topology import cpu_list

_CAP_SYS_RESOURCE = 24  # linux/capability.h
_RECLAIMABLE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
_FIELD = re.compile(r"^Node \d+ ([\w()]+):\s+(\d+) kB$", re.MULTILINE)
_CAPABILITIES = re.compile(r"^CapEff:[ \t]+([0-9a-f]{1,16})$", re.MULTILINE)


class HostState(Protocol):
    """What is read of the host. None: it cannot be read, and nothing is concluded from it."""

    def free_mib(self, node: int) -> int | None:
        """Memory of the node that is free or could be: page cache counts."""
        ...

    def free_pages(self, node: int, size_kib: int) -> int | None:
        """Free hugepages of that size on the node."""
        ...

    def lock_limit_mib(self) -> int | None:
        """The most that QEMU may be allowed to lock; None also if there is no limit."""
        ...

    def online_cpus(self) -> frozenset[int] | None:
        """The host's CPUs that are on."""
        ...


def shortages(shape: DomainShape, host: HostState) -> Iterator[str]:
    """What the host lacks for the VM, with what to do about it."""
    online = host.online_cpus()
    if online is not None and (off := sorted(set(shape.plan().pins) - online)):
        yield f"host CPUs {off} of this VM are offline; bring them back (chcpu -e) or restart the agent"
    for cell in (cell for cell in shape.cells if cell.node >= 0):
        yield from _memory(cell.node, cell.memory_mib, shape.options.hugepage_size_kib, host)
    need = locked_mib(shape.memory_mib, len(shape.functions), guest_iommu=shape.options.guest_iommu)
    if (limit := host.lock_limit_mib()) is not None and need > limit:
        yield (
            f"the VM needs to lock {need} MiB, and QEMU's limit is {limit} MiB: raise it (LimitMEMLOCK=infinity in the "
            "unit of libvirtd or virtqemud, or of the agent where it runs libvirt itself)"
        )


def _memory(node: int, memory_mib: int, size_kib: int, host: HostState) -> Iterator[str]:
    if size_kib:
        need, pages = memory_mib * 1024 // size_kib, host.free_pages(node, size_kib)
        if pages is not None and pages < need:
            file = f"/sys/devices/system/node/node{node}/hugepages/hugepages-{size_kib}kB/nr_hugepages"
            yield (
                f"NUMA node {node} has {pages} free hugepages of {size_kib} KiB, the VM needs {need}: "
                f"somebody else took them; free them, or raise {file}"
            )
    elif (free := host.free_mib(node)) is not None and free < memory_mib:
        yield f"NUMA node {node} has {free} MiB that are free or can be freed, the VM needs {memory_mib}"


class LinuxHost:
    """Implements HostState here; `libvirtd` gives the pid of the process that starts QEMU, 0 for this one."""

    def __init__(self, libvirtd: Callable[[], int | None], root: Path = Path("/")) -> None:
        self._libvirtd = libvirtd
        self._nodes = root / "sys/devices/system/node"
        self._online = root / "sys/devices/system/cpu/online"
        self._proc = root / "proc"

    def free_mib(self, node: int) -> int | None:
        """See HostState."""
        text = _read(self._nodes / f"node{node}/meminfo") or ""
        fields = {name: int(kib) for name, kib in _FIELD.findall(text)}
        return sum(fields.get(name, 0) for name in _RECLAIMABLE) // 1024 if "MemFree" in fields else None

    def free_pages(self, node: int, size_kib: int) -> int | None:
        """See HostState. A size that the node has no pool of has no page."""
        folder = self._nodes / f"node{node}/hugepages"
        if not folder.is_dir():
            return None
        text = _read(folder / f"hugepages-{size_kib}kB/free_hugepages")
        return int(text) if text and text.strip().isdecimal() else 0

    def lock_limit_mib(self) -> int | None:
        """See HostState: libvirt raises QEMU's limit, beyond its own only with CAP_SYS_RESOURCE."""
        pid = self._libvirtd()
        if pid is None:
            return None
        pid = pid or os.getpid()
        status = _read(self._proc / str(pid) / "status") or ""
        capabilities = _CAPABILITIES.search(status)
        if capabilities is None or int(capabilities[1], 16) >> _CAP_SYS_RESOURCE & 1:
            return None
        limits = _read(self._proc / str(pid) / "limits") or ""
        line = next((line for line in limits.splitlines() if line.startswith("Max locked memory")), "")
        hard = line.split()[-2] if line else "unlimited"
        return int(hard) >> 20 if hard.isdecimal() else None

    def online_cpus(self) -> frozenset[int] | None:
        """See HostState."""
        cpus = cpu_list(_read(self._online) or "")
        return frozenset(cpus) if cpus else None  # none at all cannot be: something runs this


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return None
