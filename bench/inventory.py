"""Reading the inventory of a large host: 16 GPUs, 8 NUMA nodes, 400 PCI functions, in a directory tree on disk.

The ceiling is the time that the same files, folders and links take when nothing is done with them.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.inventory.read import Memory, read_inventory
from agent.inventory.sysfs import RealSysfs
from tests.fakes import big_host

from .row import Row

ROUNDS, PROCESSES = 40, 5
# In a process of its own: what reading adds to the largest size that the process had, in KiB and in objects.
MEMORY_OF_ONE = """
import sys, tracemalloc
from pathlib import Path
from agent.inventory.read import Memory, read_inventory
from agent.inventory.sysfs import RealSysfs
tree, traced = RealSysfs(Path(sys.argv[1])), sys.argv[2] == "traced"
if traced:
    tracemalloc.start()
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
found = read_inventory(tree, memory=Memory())
added = peak() - before
assert len(found.units) == 16
print(tracemalloc.get_traced_memory()[1] / 1024 if traced else added)
"""


class _Recording(RealSysfs):
    """Keeps what was asked for, so that it can be done again with nothing else."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[tuple[str, str, int, int]] = []

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        self.calls.append(("read", f"{self.root}/{path}", limit, offset))
        return super().read_bytes(path, limit, offset)

    def list(self, path: str) -> list[str]:
        self.calls.append(("list", f"{self.root}/{path}", 0, 0))
        return super().list(path)

    def link_target(self, path: str) -> str | None:
        self.calls.append(("link", f"{self.root}/{path}", 0, 0))
        return super().link_target(path)


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    return await asyncio.to_thread(_run, tell)


def _run(tell: Callable[[str], None]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="gpupool-bench-") as folder:
        root = Path(folder) / "sys"
        big_host.build(root)
        recording = _Recording(root)
        found = read_inventory(recording)
        assert (len(found.units), len(found.numa_nodes)) == (big_host.GPUS, big_host.NODES)
        tell(f"{len(recording.calls)} calls for {big_host.FUNCTIONS} functions; {found.ByteSize()} bytes")
        sysfs, memory = RealSysfs(root), Memory()
        read_inventory(sysfs, memory=memory)
        calls = {
            "inventory, first": lambda: read_inventory(sysfs),
            "inventory, later": lambda: read_inventory(sysfs, memory=memory),
            "the same files, raw": lambda: _again(recording.calls),
        }
        taken = _in_turn(calls)
        *ours, raw = taken.items()
        return [
            *(
                Row(f"{what}, {clock}", "ms", times[n], statistics.median(raw[1][n]), raw[0], "< 100 ms")
                for n, clock in enumerate(("elapsed", "CPU"))
                for what, times in ours
            ),
            Row("added to the process's peak", "MiB", _memory(root, "plain"), target="< 30 MiB"),
            Row("Python objects at the peak", "MiB", _memory(root, "traced")),
        ]


def _memory(root: Path, how: str) -> list[float]:
    command = [sys.executable, "-c", MEMORY_OF_ONE, str(root), how]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(PROCESSES)]
    return [float(output) / 1024 for output in outputs]


def _in_turn(calls: Mapping[str, Callable[[], object]]) -> dict[str, tuple[list[float], list[float]]]:
    """Elapsed and CPU milliseconds of each call. One after the other, so that what else runs hits all alike."""
    taken: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in calls}
    for _ in range(ROUNDS):
        for what, call in calls.items():
            elapsed, cpu = time.perf_counter(), time.thread_time()
            call()
            taken[what][0].append((time.perf_counter() - elapsed) * 1000)
            taken[what][1].append((time.thread_time() - cpu) * 1000)
    return taken


def _again(calls: list[tuple[str, str, int, int]]) -> None:
    for kind, path, limit, offset in calls:
        try:
            if kind == "read":
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.pread(file, limit, offset)
                finally:
                    os.close(file)
            elif kind == "list":
                os.listdir(path)  # noqa: PTH208 - the cheapest way is the point
            else:
                os.readlink(path)  # noqa: PTH115
        except OSError:
            pass
