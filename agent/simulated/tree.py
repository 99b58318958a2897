"""Simulated hosts: a synthetic sysfs tree, as like the kernel's as we can tell, for machines without an IOMMU.

Only the tree is made up here; `simkernel.SimulatedSysfs` gives it the kernel's side effects. The tree holds `bus/`,
`devices/` and `kernel/` as the kernel has them, `.pristine/<address>/` what a reset brings back, `.faults/<address>` a
fault to inject (see simkernel), `.shape` what the tree was built from.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..inventory import gpus
from .pci import Place, SimFunction, audio_function, bridge_function, gpu_function, nic_function, write_function

MAX_NODES = 16
MAX_GPUS_PER_NODE = 12  # bus numbers: each node owns 256 / MAX_NODES of them
MAX_CPUS = 4096
BUSES_PER_NODE = 256 // MAX_NODES
NIC = "nic"  # no model of GPU is called that
DRIVERS = ("vfio-pci", "pcieport", "snd_hda_intel", "mlx5_core")

_GPUS = re.compile(r"\s*(?:([0-9]{1,4})\s*x\s*)?([a-z][a-z0-9-]*)\s*")


@dataclass(frozen=True, slots=True)
class HostShape:
    """What a simulated host has. GPUs, by model name, go to the nodes in turn. Raises ValueError for what cannot be."""

    gpus: tuple[str, ...] = ()
    numa_nodes: int = 2
    cores_per_node: int = 16
    threads_per_core: int = 2
    memory_mib_per_node: int = 256 * 1024
    hugepages_per_node: int = 0  # of 2 MiB; they are part of the node's memory

    def __post_init__(self) -> None:
        """Refuse what no tree can be built for, naming the field and its limits."""
        limits = (
            ("numa_nodes", self.numa_nodes, MAX_NODES),
            ("cores_per_node", self.cores_per_node, MAX_CPUS),
            ("threads_per_core", self.threads_per_core, 8),
            ("memory_mib_per_node", self.memory_mib_per_node, 2**31),
        )
        for name, value, most in limits:
            if not 1 <= value <= most:
                raise ValueError(f"{name} is {value}; it must be from 1 to {most}")
        if (cpus := self.numa_nodes * self.cores_per_node * self.threads_per_core) > MAX_CPUS:
            raise ValueError(f"{cpus} CPUs in all; a simulated host has at most {MAX_CPUS}")
        if not 0 <= 2 * self.hugepages_per_node <= self.memory_mib_per_node:
            raise ValueError(f"hugepages_per_node is {self.hugepages_per_node}; they must fit into the node's memory")
        if len(self.gpus) > self.numa_nodes * MAX_GPUS_PER_NODE:
            raise ValueError(
                f"{len(self.gpus)} GPUs on {self.numa_nodes} NUMA nodes; a node has room for {MAX_GPUS_PER_NODE}"
            )
        for model in self.gpus:
            _require_model(model)


def parse_gpus(text: str) -> tuple[str, ...]:
    """Models of "4xnvidia-a100-80gb,2xnvidia-h100-80gb", each as often as it is there; () for empty text.

    Raises ValueError, with what to write instead.
    """
    models: list[str] = []
    for part in text.split(",") if text.strip() else []:
        match = _GPUS.fullmatch(part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is no count and model; write for example 4xnvidia-a100-80gb")
        _require_model(match[2])
        models += [match[2]] * int(match[1] or 1)
    return tuple(models)


def parse_shape(text: str, base: HostShape | None = None) -> HostShape:
    """`base` (by default a host of 2 nodes) with the GPUs that `text` lists, as `parse_gpus` reads it."""
    return replace(base or HostShape(), gpus=parse_gpus(text))


def build_tree(root: Path, shape: HostShape) -> None:
    """Write the host's sysfs tree at `root`, all or nothing. A tree of the same shape keeps its state and its faults.

    Raises FileExistsError if `root` holds anything else.
    """
    if (root / ".shape").is_file() and (root / ".shape").read_text() == repr(shape):
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} holds something other than this simulated host; remove it or name another place")
    draft = root.with_name(f"{root.name}.{os.getpid()}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    _write_cpus(draft, shape)
    _write_nodes(draft, shape)
    _write_pci(draft, shape, zlib.crc32(str(root.resolve()).encode()))
    (draft / ".shape").write_text(repr(shape))
    draft.rename(root)


def host_functions(shape: HostShape, host: int = 0) -> Iterator[SimFunction]:
    """The host's PCI functions: each GPU with its audio function behind a root port of its own, and a NIC on node 0.

    `host`, 32 bits, makes the serial numbers differ from those of other hosts.
    """
    group = 1
    for node in range(shape.numa_nodes):
        root_bus = node * BUSES_PER_NODE
        models = shape.gpus[node :: shape.numa_nodes]
        for slot, model in enumerate([*models, *([NIC] if node == 0 else [])], start=1):
            place = Place(root_bus, slot, root_bus + slot, node, group)
            yield bridge_function(place)
            serial = host << 32 | place.bus + 1
            if model == NIC:
                yield nic_function(place, serial)
            else:
                yield from (gpu_function(model, place, serial), audio_function(place))
            group += 2


def _require_model(model: str) -> None:
    if model not in gpus.known_models():
        raise ValueError(f"no GPU model {model!r}; there are {', '.join(gpus.known_models())}")


def _write_pci(root: Path, shape: HostShape, host: int) -> None:
    (root / "bus/pci/devices").mkdir(parents=True)
    (root / "bus/pci/drivers_probe").write_text("")
    for driver in DRIVERS:
        for name in ("bind", "unbind", "new_id", "remove_id"):
            _write(root / "bus/pci/drivers" / driver / name, "")
    for name in (".faults", ".pristine"):
        (root / name).mkdir()
    for function in host_functions(shape, host):
        write_function(root, function)


def _cpu_numbers(shape: HostShape, node: int) -> list[tuple[int, ...]]:
    """The CPUs of each of the node's cores, numbered as x86 firmware does: all first threads, then all second ones."""
    cores = shape.numa_nodes * shape.cores_per_node
    first = node * shape.cores_per_node
    return [
        tuple(core + thread * cores for thread in range(shape.threads_per_core))
        for core in range(first, first + shape.cores_per_node)
    ]


def _write_cpus(root: Path, shape: HostShape) -> None:
    base = root / "devices/system/cpu"
    last = shape.numa_nodes * shape.cores_per_node * shape.threads_per_core - 1
    every = f"0-{last}" if last else "0"
    for name, text in (("online", every), ("present", every), ("possible", every), ("offline", ""), ("isolated", "")):
        _write(base / name, f"{text}\n")
    _write(base / "smt/active", f"{int(shape.threads_per_core > 1)}\n")
    for node in range(shape.numa_nodes):
        for index, threads in enumerate(_cpu_numbers(shape, node)):
            siblings = ",".join(str(cpu) for cpu in threads)
            for cpu in threads:
                topology = base / f"cpu{cpu}/topology"
                _write(topology / "core_id", f"{index}\n")
                _write(topology / "physical_package_id", f"{node}\n")
                _write(topology / "core_cpus_list", f"{siblings}\n")
                _write(topology / "thread_siblings_list", f"{siblings}\n")


def _write_nodes(root: Path, shape: HostShape) -> None:
    base = root / "devices/system/node"
    last = shape.numa_nodes - 1
    for name in ("online", "possible", "has_cpu", "has_memory", "has_normal_memory"):
        _write(base / name, f"0-{last}\n" if last else "0\n")
    for node in range(shape.numa_nodes):
        cpus = sorted(cpu for threads in _cpu_numbers(shape, node) for cpu in threads)
        distance = " ".join("10" if other == node else "21" for other in range(shape.numa_nodes))
        total_kib = shape.memory_mib_per_node * 1024
        meminfo = f"Node {node} MemTotal: {total_kib:>14} kB\nNode {node} MemFree:  {total_kib:>14} kB\n"
        _write(base / f"node{node}/cpulist", ",".join(str(cpu) for cpu in cpus) + "\n")
        _write(base / f"node{node}/distance", f"{distance}\n")
        _write(base / f"node{node}/meminfo", meminfo)
        for size_kib, pages in ((2048, shape.hugepages_per_node), (1048576, 0)):
            for name in ("nr_hugepages", "free_hugepages"):
                _write(base / f"node{node}/hugepages/hugepages-{size_kib}kB/{name}", f"{pages}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
