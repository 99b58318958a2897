"""What the agent adds to a VM's start: from an allocation in the store to virDomainCreate being called.

The real agent's loop, devices and VM runtime: it sees the allocation, saves its records, waits for its report to be
committed, looks who uses the units (through every open file of a busy host), binds them, reads the image, checks the
host, writes the VM's files, builds the XML. The store is in memory (for etcd's commit see `store`). sysfs is a
simulated host's, so that binding takes the agent's time and not the kernel's (for that see the lab's timings); /proc is
made up, with as many processes and open files as a busy host has. The hypervisor only notes the call.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from agent.devices import holders
from agent.devices.host import SysfsDevices
from agent.inventory.sysfs import RealSysfs
from agent.simulated.kernel import SimulatedSysfs
from agent.simulated.tree import HostShape, build_tree
from agent.vms.capacity import LinuxHost
from agent.vms.images import FILES
from agent.vms.runtime import Runtime
from gpupool.store import keys
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, MemoryRecords, Rig
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.virtual_time import until

from .row import Row

STARTS, GPUS, CORES = 25, 8, 64
TARGET_MS = 300
PROCESSES, FILES_EACH = 600, 25  # and so 15,000 open files
OPENED = ("/dev/null", "socket:[{}]", "anon_inode:[eventpoll]", "/var/log/journal/{}.journal", "/usr/lib/x86/{}.so")


class _Devices(SysfsDevices):
    """A simulated host's, with 8 GPUs and their audio functions on one node."""

    def __init__(self, root: Path) -> None:
        build_tree(root / "sys", HostShape(("nvidia-a100-80gb",) * GPUS, 1, CORES, memory_mib_per_node=1 << 20))
        _write_proc(root / "proc")
        refuse = partial(holders.refusals, RealSysfs(root), ours={os.getpid()})
        sysfs = SimulatedSysfs(root / "sys")
        super().__init__(sysfs, MemoryRecords(), refuse=self._timed(refuse))
        self.units = [unit.id for unit in self.inventory().units]
        self.functions = [one.address for unit in self.inventory().units for one in unit.functions]

    def _timed(
        self, refuse: Callable[[Sequence[str]], Mapping[str, str]]
    ) -> Callable[[Sequence[str]], Mapping[str, str]]:
        self.looks_ms: list[float] = []

        def ask(addresses: Sequence[str]) -> Mapping[str, str]:
            begun = time.monotonic()
            found = refuse(addresses)
            self.looks_ms.append(1000 * (time.monotonic() - begun))
            return found

        return ask


def _write_proc(root: Path) -> None:
    """Processes with open files, as links: a busy host has hundreds of the one and tens of thousands of the other."""
    for pid in range(1000, 1000 + PROCESSES):
        home = root / str(pid) / "fd"
        home.mkdir(parents=True)
        (root / str(pid) / "cmdline").write_bytes(b"/usr/sbin/daemon\0")
        for number in range(FILES_EACH):
            (home / str(number)).symlink_to(OPENED[number % len(OPENED)].format(pid * FILES_EACH + number))


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
        devices = _Devices(folder / "host")
        taken, cpu, looks = await _starts(folder, devices, tell)
        return [
            Row("allocation in the store to create called, 8 units", "ms", taken, target=f"< {TARGET_MS}"),
            Row("of it, the processor's time", "ms", cpu),
            Row("of it, the look at 15,000 open files", "ms", looks),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _starts(folder: Path, devices: _Devices, tell: Callable[[str], None]) -> tuple[list[float], ...]:
    image = folder / "images/ubuntu"
    image.mkdir(parents=True)
    for file in FILES:
        (image / file).touch()
    (image / "manifest.json").write_text("{}")
    called: list[float] = []
    virt = FakeHypervisor(folder / "run", before={"create": lambda: called.append(time.monotonic())})
    rig = Rig(devices=devices)  # type: ignore[arg-type]
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
    cpu: list[float] = []
    looks: list[float] = []
    try:
        for number in range(STARTS):
            devices.looks_ms.clear()  # those of reclaims
            begun, busy = time.monotonic(), time.process_time()
            _allocate(rig, devices, f"j{number}.1")
            await until(lambda: len(called) > number)  # noqa: B023 - it is awaited here
            taken.append(1000 * (called[-1] - begun))
            cpu.append(1000 * (time.process_time() - busy))
            looks += devices.looks_ms
            tell(f"start: {taken[-1]:.1f} ms, looks at open files: {len(devices.looks_ms)}")
            await _end(rig, devices, f"j{number}.1")
    finally:
        await rig.close()
        virt.kill_all()
    return taken, cpu, looks


def _allocate(rig: Rig, devices: _Devices, name: str) -> None:
    """As the scheduler does, for a job that takes every unit of the host."""
    vm = job_pb2.VmOptions(user_data="#cloud-config\n", network=job_pb2.Network(kind=job_pb2.Network.USER))
    want = records_pb2.Allocation(
        id=name,
        job=name.partition(".")[0],
        attempt=1,
        host=HOST,
        session=rig.session,
        session_nonce=rig.agent.keeper.nonce,
        units=devices.units,
        pci_addresses=devices.functions,
        numa_nodes=[0],
        memory_mib=1024,
        memory_mib_per_node=[1024],
        cores=[inventory_pb2.CpuCore(threads=[core, core + CORES]) for core in range(32)],
        desired=records_pb2.DESIRED_RUN,
        spec=job_pb2.JobSpec(image="ubuntu", command=["true"], cpus=64, vm=vm),
    )
    rig.put(keys.allocation(HOST, name), want)


async def _end(rig: Rig, devices: _Devices, name: str) -> None:
    rig.stop(name)
    await until(lambda: rig.vm(name).state == records_pb2.ALLOCATION_STATE_ENDED)
    await until(lambda: all(rig.unit(unit).state == records_pb2.UNIT_STATE_FREE for unit in devices.units))
    rig.withdraw(name)
    await until(lambda: not rig.vm(name).state)
