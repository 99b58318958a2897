"""Several hosts' agents in one process, on made-up GPUs and libvirt's test driver: `python -m bench.agents`, for
`bench lifecycle` only.

Sessions, the worker, the ledger in files, binding, resets and proofs on a simulated host's sysfs tree, reports and
watches are the real ones, each host's its own. Not there: threads and children for calls that may block, a guard's
process (no VM has one that it could kill), the agent's gRPC service, hugepages and capacity checks, doctor.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import signal
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from agent.agent import Agent, Parts
from agent.clock import BootClock
from agent.config import list_images
from agent.devices.host import SysfsDevices
from agent.inventory.read import read_inventory
from agent.simulated.kernel import SimulatedSysfs
from agent.simulated.tree import build_tree, parse_shape
from agent.timing import Identity, Limits, timing_of
from agent.work.logs import LogStore
from agent.work.records import FileRecords
from agent.work.volumes import DirectoryVolumes
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Store
from gpupool.v1.inventory_pb2 import Unit

from .testdriver import TestDriverVms

T = TypeVar("T")
RECLAIMS = 8
INVENTORY_S = 60.0  # 32 hosts' surveys on one machine would be measured, at their real pace of 5 s


async def at_once(call: Callable[[], T], /) -> T:
    """Implements RunBlocking: nothing hangs in a made-up tree, and threads of 16 hosts in one process would be measured
    (on a real host each call that may block has a thread or a child of its own).
    """
    await asyncio.sleep(0)
    return call()


class Devices(SysfsDevices):
    """At most RECLAIMS at a time in this process: an answer of the store would wait behind a turn of each of them. On a
    real host they are in threads and children.
    """

    gate = asyncio.Semaphore(RECLAIMS)

    async def reclaim(self, unit: Unit, *, used: bool = True, allocation: str = "") -> str:
        """See SysfsDevices."""
        async with self.gate:
            return await super().reclaim(unit, used=used, allocation=allocation)


class NoGuard:
    """Implements ports.Guard where no VM has a process."""

    def __init__(self) -> None:
        self.deadline = 0.0

    def extend(self, deadline_boot_s: float, limit_boot_s: float = 0.0) -> None:  # noqa: ARG002 - the port's
        """See Guard."""
        self.deadline = max(self.deadline, deadline_boot_s)

    def watchdog_s(self) -> float:
        """See Guard."""
        return 0.0

    def refused(self) -> str:
        """See Guard."""
        return ""

    def alive(self) -> bool:
        """See Guard."""
        return True

    async def ensure(self) -> None:
        """See Guard."""


def agent(name: str, store: Store, root: Path, images: Path, gpus: str) -> Agent:
    """The agent of one host, all of whose state is in a folder of its own."""
    folder = root / name
    folder.mkdir(parents=True)
    tree = folder / "sysfs"
    build_tree(tree, parse_shape(gpus))
    sysfs, clock, boot = SimulatedSysfs(tree), BootClock(), str(uuid.uuid4())
    records = FileRecords(folder, boot)
    devices = Devices(sysfs, records, read=partial(read_inventory), hot_reset=sysfs.hot_reset, run_blocking=at_once)
    parts = Parts(
        store, TestDriverVms(folder, images), NoGuard(), clock, devices, records, LogStore(folder / "logs", clock),
        DirectoryVolumes(None, name), lambda: list_images(images), run_blocking=at_once,
    )  # fmt: skip
    me = Identity(name, boot, "127.0.0.1:9", "bench", simulated=True)
    return Agent(me, timing_of("patient", watchdog=False), Limits(), parts, inventory_s=INVENTORY_S)


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    store = EtcdStore([options.etcd])
    names = [f"h{number:03}" for number in range(options.first, options.first + options.hosts)]
    agents = [agent(name, store, options.folder, options.images, options.gpus) for name in names]
    tasks = [asyncio.create_task(one.run()) for one in agents]
    ending = asyncio.create_task(stop.wait())
    await asyncio.wait({*tasks, ending}, return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, ending):
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()
    for result in results:
        if isinstance(result, Exception):
            raise result


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--etcd", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--gpus", default="8xnvidia-a100-80gb")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--profile", type=Path, help="where to leave a cProfile of the event loop's thread")
    options = parser.parse_args()
    if not options.profile:
        asyncio.run(serve(options))
        return
    with cProfile.Profile(time.thread_time) as profile:
        asyncio.run(serve(options))
    profile.dump_stats(options.profile)


if __name__ == "__main__":
    main()
