"""What the agent adds to a VM's start: from an allocation in the store to virDomainCreate being called.

The real agent's loop and VM runtime: it sees the allocation, saves its records, waits for its report to be committed,
reads the image, checks the host, writes the VM's files, builds the XML. The store is in memory (for etcd's commit see
`store`), binding is left out (the kernel's time, and in the lab's timings), and the hypervisor only notes the call.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.vms.capacity import LinuxHost
from agent.vms.images import FILES
from agent.vms.runtime import Runtime
from gpupool.store import keys
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, FakeDevices, Rig
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.virtual_time import until

from .row import Row

STARTS, GPUS = 25, 8
UNITS = [f"0000:{bus:02x}:00.0" for bus in range(0x10, 0x10 + GPUS)]
TARGET_MS = 300


class _Bound(FakeDevices):
    """Devices that are bound already, on one node with cores."""

    reclaim_s = 0.0

    def inventory(self) -> inventory_pb2.Inventory:
        found = super().inventory()
        cores = [inventory_pb2.CpuCore(threads=[core, core + 64]) for core in range(64)]
        found.numa_nodes.append(inventory_pb2.NumaNode(id=0, cores=cores, memory_mib=1 << 20))
        return found

    async def bind(self, unit: inventory_pb2.Unit) -> None:  # noqa: ARG002 - the port's
        await asyncio.sleep(0)


class _Host(LinuxHost):
    """This machine, asked as a real one is; what it has too little of is overlooked."""

    def lock_limit_mib(self) -> int | None:
        super().lock_limit_mib()
        return None

    def online_cpus(self) -> frozenset[int] | None:
        super().online_cpus()
        return None


class _Vms(Runtime):
    def disconnect(self) -> None:
        """What the rig does to VMs whose agent is gone."""


async def run(tell: Callable[[str], None]) -> list[Row]:
    folder = Path(tempfile.mkdtemp(prefix="bench-start-"))
    try:
        return [
            Row("allocation in the store to create called", "ms", await _starts(folder, tell), target=f"< {TARGET_MS}")
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _starts(folder: Path, tell: Callable[[str], None]) -> list[float]:
    image = folder / "images/ubuntu"
    image.mkdir(parents=True)
    for file in FILES:
        (image / file).touch()
    (image / "manifest.json").write_text("{}")
    called: list[float] = []
    virt = FakeHypervisor(folder / "run", before={"create": lambda: called.append(time.monotonic())})
    rig = Rig(devices=_Bound(UNITS))
    rig.vms = _Vms(  # type: ignore[assignment]
        virt,
        run_dir=folder / "run",
        images=folder / "images",
        state_dir=folder / "state",
        cgroup=None,
        simulated=False,
        accel="kvm",
        host=_Host(os.getpid),
    )
    taken = []
    await rig.ready()
    try:
        for number in range(STARTS):
            begun = time.monotonic()
            _allocate(rig, f"j{number}.1")
            await until(lambda: len(called) > number)  # noqa: B023 - it is awaited here
            taken.append(1000 * (called[-1] - begun))
            tell(f"start: {taken[-1]:.1f} ms")
            await _end(rig, f"j{number}.1")
    finally:
        await rig.close()
        virt.kill_all()
    return taken


def _allocate(rig: Rig, name: str) -> None:
    """As the scheduler does, for a job that takes every unit of the host."""
    vm = job_pb2.VmOptions(user_data="#cloud-config\n", network=job_pb2.Network(kind=job_pb2.Network.USER))
    want = records_pb2.Allocation(
        id=name,
        job=name.partition(".")[0],
        attempt=1,
        host=HOST,
        session=rig.session,
        session_nonce=rig.agent.keeper.nonce,
        units=UNITS,
        pci_addresses=UNITS,
        numa_nodes=[0],
        memory_mib=1024,
        memory_mib_per_node=[1024],
        cores=[inventory_pb2.CpuCore(threads=[core, core + 64]) for core in range(32)],
        desired=records_pb2.DESIRED_RUN,
        spec=job_pb2.JobSpec(image="ubuntu", command=["true"], cpus=64, vm=vm),
    )
    rig.put(keys.allocation(HOST, name), want)


async def _end(rig: Rig, name: str) -> None:
    rig.stop(name)
    await until(lambda: rig.vm(name).state == records_pb2.ALLOCATION_STATE_ENDED)
    await until(lambda: all(rig.unit(unit).state == records_pb2.UNIT_STATE_FREE for unit in UNITS))
    rig.withdraw(name)
    await until(lambda: not rig.vm(name).state)
