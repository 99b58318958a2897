"""A simulated host's devices, without threads where nothing hangs and without waiting where nothing is to come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from agent.devices.baseline import Baseline, first_sight
from agent.devices.bind import bind
from agent.devices.host import Policy, SysfsDevices
from agent.devices.reclaim import Patience
from agent.inventory.read import read_inventory
from agent.simulated.kernel import SimulatedSysfs
from agent.simulated.tree import HostShape, build_tree
from gpupool.v1 import inventory_pb2
from tests.fakes.agent_rig import MemoryRecords

T = TypeVar("T")
GPU, AUDIO, PORT = "0000:01:00.0", "0000:01:00.1", "0000:00:01.0"
DEVICES = "bus/pci/devices"
CHECKS = "config, BARs, command, link x16 16000 MT/s, rebind ok"
QUICK = Patience(step_s=5, idle_s=0, rescan_s=0, link_s=0)


def simulated_host(root: Path, gpus: int = 1) -> SimulatedSysfs:
    """A host on one NUMA node; each GPU has an audio function, and a root port of its own."""
    build_tree(root, HostShape(("nvidia-a100-80gb",) * gpus, numa_nodes=1, cores_per_node=1, threads_per_core=1))
    return SimulatedSysfs(root)


def unit_of(sysfs: SimulatedSysfs, index: int = 0) -> inventory_pb2.Unit:
    return read_inventory(sysfs).units[index]


def methods(sysfs: SimulatedSysfs, address: str, listed: str) -> None:
    """Have the kernel offer these reset methods for a function; empty: none."""
    for base in (f"{DEVICES}/{address}", f".pristine/{address}"):
        for name in ("reset_method", "reset"):
            file = sysfs.root / base / name
            file.write_text(f"{listed}\n" if name == "reset_method" else "")
            if not listed:
                file.unlink()


def used_by_a_vm(sysfs: SimulatedSysfs, *addresses: str) -> None:
    for address in addresses or (GPU, AUDIO):
        sysfs.scribble(address)


async def _inline(call: Callable[[], T]) -> T:
    return call()


def inline(call: Callable[[], T], /) -> Awaitable[T]:
    return _inline(call)


def devices(sysfs: SimulatedSysfs, **options: Any) -> SysfsDevices:
    options.setdefault("policy", Policy(patience=QUICK))
    options.setdefault("run_blocking", inline)
    options.setdefault("hot_reset", sysfs.hot_reset)
    return SysfsDevices(sysfs, options.pop("records", None) or MemoryRecords(), **options)


async def known(sysfs: SimulatedSysfs, index: int = 0) -> tuple[inventory_pb2.Unit, Baseline]:
    """The unit as the agent first meets it, bound, and its baseline."""
    unit = unit_of(sysfs, index)
    await bind(sysfs, unit, run_blocking=inline)
    return unit, first_sight(sysfs, unit)
