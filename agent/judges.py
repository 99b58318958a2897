"""Who has a say in what a real host offers: those who use its devices, doctor, and NVIDIA's library. Wiring of them
to the survey.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from gpupool.store.port import Store
from gpupool.v1.inventory_pb2 import Inventory, Unit
from gpupool.v1.scheduler_pb2 import DoctorReport

from .config import Config
from .devices import holders, nvml
from .devices.blocking import in_own_thread
from .devices.history import identity_name
from .devices.nodes import Root
from .doctor.examine import examine, report, to_store
from .doctor.facts import Context
from .doctor.machine import LiveMachine
from .doctor.model import keep_out
from .doctor.vfio import has_host_driver
from .inventory.sysfs import RealSysfs
from .ports import Clock, Sysfs, VmRuntime, VmRuntimeError
from .survey import Judge, Judgement
from .work.records import Records

_log = logging.getLogger(__name__)
USERS_S = 30.0  # between two looks at all open files, of which a busy host has tens of thousands
NVML_S = 60.0  # between two looks by NVIDIA's library, which wakes a GPU that nobody uses
DOCTOR_S = 300.0  # between two full examinations; what changes by the second, others tell


class Users:
    """Keeps out units that somebody else uses: programs of the host, mounts, VMs that are not ours.

    `ours` are the processes of our own VMs.
    """

    def __init__(
        self,
        runtime: VmRuntime,
        clock: Clock,
        ours: Callable[[], Collection[int]],
        root: Root | None = None,
    ) -> None:
        self._runtime = runtime
        self._clock = clock
        self._ours = ours
        self._root = root or RealSysfs(Path("/"))
        self._foreign: Mapping[str, str] = {}
        self._due = 0.0
        self._seen: list[str] = []
        self._last = Judgement()

    async def __call__(self, inventory: Inventory) -> Judgement:
        """See survey.Judge. Looks when it is due, or when other units are there than last time."""
        seen = [unit.SerializeToString(deterministic=True).hex() for unit in inventory.units]
        if self._clock.boot() >= self._due or seen != self._seen:
            try:
                self._foreign = await self._runtime.foreign_devices()
            except VmRuntimeError as exc:
                _log.warning("cannot see the VMs of others, going by what was known: %s", exc)
            used = await in_own_thread(lambda: holders.in_use(self._root, inventory.units, self._foreign, self._ours()))
            self._last = Judgement(keep_out=used)
            self._due, self._seen = self._clock.boot() + USERS_S, seen
        return self._last

    def refuse(self, addresses: Sequence[str]) -> Mapping[str, str]:
        """Why functions must not be taken from whoever has them now: programs as of now, VMs as last seen.

        It is asked when no VM of ours may have them, so nobody is excepted but the agent itself: what it has open
        (by NVIDIA's library) it lets go of in a moment.
        """
        return holders.refusals(self._root, addresses, ours={os.getpid()}, foreign=self._foreign)


class Doctor:
    """Keeps out what doctor calls a problem, and has its findings told. `ours`: as for Users."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        ours: Callable[[], Collection[int]],
        root: Sysfs | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._ours = ours
        self._root = root or RealSysfs(Path("/"))
        self._due = 0.0
        self._units: list[tuple[str, str]] = []
        self._last = Judgement()

    async def __call__(self, inventory: Inventory) -> Judgement:
        """See survey.Judge. Examines when it is due, or when other units are there than last time."""
        units = [(unit.id, unit.identity) for unit in inventory.units]
        if self._clock.boot() >= self._due or units != self._units:
            findings = await examine(await self._context(inventory))
            self._last = Judgement(to_store(findings), keep_out(findings, inventory.units))
            self._due, self._units = self._clock.boot() + DOCTOR_S, units
        return self._last

    async def report(self, inventory: Inventory) -> DoctorReport:
        """A fresh examination, whole."""
        context = await self._context(inventory)
        return report(self._config.name, self._clock.wall(), context, await examine(context))

    async def _context(self, inventory: Inventory) -> Context:
        config = self._config
        driven = [] if config.simulate is not None else [unit for unit in inventory.units if has_host_driver(unit)]
        return Context(
            self._root,
            LiveMachine(),
            inventory,
            store=self._store,
            endpoints=config.etcd,
            ttl_s=config.timing.ttl_s,
            accept=frozenset(config.accept),
            simulated=config.simulate is not None,
            reserved_cpus=config.reserved_cpus,
            nics=config.nics,
            in_use=await in_own_thread(lambda: holders.in_use(self._root, driven, {}, self._ours())) if driven else {},
        )


class Nvml:
    """Tells what NVIDIA's library says of GPUs that the host's nvidia driver has, and had: vfio-pci tells neither how
    much memory a card has nor that it is sick. Keeps no unit out. Costs nothing where no GPU has that driver.
    """

    def __init__(
        self, clock: Clock, records: Records, read: Callable[[], Sequence[nvml.GpuFacts]] = nvml.read_gpus
    ) -> None:
        self._clock = clock
        self._records = records
        self._read = read
        self._due = 0.0
        self._known = records.load(_NVML)

    async def __call__(self, inventory: Inventory) -> Judgement:
        """See survey.Judge."""
        seen = {one.address: unit for unit in inventory.units for one in unit.functions if one.driver == nvml.DRIVER}
        if seen and self._clock.boot() >= self._due:
            for gpu in await in_own_thread(self._read):
                if gpu.address in seen:
                    self._learn(seen[gpu.address], gpu)
            self._due = self._clock.boot() + NVML_S
        known = {unit.id: facts for unit in inventory.units if (facts := self._known.get(identity_name(unit)))}
        return Judgement(
            memory_mib={unit: facts["memory_mib"] for unit, facts in known.items()},
            memory_source="nvml",
            notes=[f"by NVIDIA's driver: {facts['sick']}" for facts in known.values() if facts["sick"]],
        )

    def _learn(self, unit: Unit, gpu: nvml.GpuFacts) -> None:
        """For after the agent has bound the unit, and for the next agent. Of several GPUs the last sick one is told."""
        facts = {"memory_mib": gpu.memory_mib, "sick": nvml.sick(gpu)}
        if facts != self._known.get(identity_name(unit)):
            self._records.save(_NVML, identity_name(unit), facts)
            self._known[identity_name(unit)] = facts


_NVML = "nvml"


def judges(config: Config, users: Users, doctor: Doctor, told: Nvml) -> list[Judge]:
    """Those who judge this host. Nobody uses the devices of a simulated one."""
    return [doctor] if config.simulate is not None else [doctor, users, told]
