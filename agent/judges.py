"""Who has a say in what a real host offers: those who use its devices, and doctor. Wiring of both to the survey."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from gpupool.store.port import Store
from gpupool.v1.inventory_pb2 import Inventory
from gpupool.v1.scheduler_pb2 import DoctorReport

from .config import Config
from .devices import holders
from .devices.blocking import in_own_thread
from .devices.nodes import Root
from .doctor.examine import examine, report, to_store
from .doctor.facts import Context
from .doctor.machine import LiveMachine
from .doctor.model import keep_out
from .inventory.sysfs import RealSysfs
from .ports import Clock, VmRuntime, VmRuntimeError
from .survey import Judge, Judgement

_log = logging.getLogger(__name__)
USERS_S = 30.0  # between two looks at all open files, of which a busy host has tens of thousands
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

        It is asked when no VM of ours may have them, so nobody is excepted.
        """
        return holders.refusals(self._root, addresses, ours=(), foreign=self._foreign)


class Doctor:
    """Keeps out what doctor calls a problem, and has its findings told."""

    def __init__(self, config: Config, store: Store, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._due = 0.0
        self._units: list[tuple[str, str]] = []
        self._last = Judgement()

    async def __call__(self, inventory: Inventory) -> Judgement:
        """See survey.Judge. Examines when it is due, or when other units are there than last time."""
        units = [(unit.id, unit.identity) for unit in inventory.units]
        if self._clock.boot() >= self._due or units != self._units:
            findings = await examine(self._context(inventory))
            self._last = Judgement(to_store(findings), keep_out(findings, inventory.units))
            self._due, self._units = self._clock.boot() + DOCTOR_S, units
        return self._last

    async def report(self, inventory: Inventory) -> DoctorReport:
        """A fresh examination, whole."""
        context = self._context(inventory)
        return report(self._config.name, self._clock.wall(), context, await examine(context))

    def _context(self, inventory: Inventory) -> Context:
        config = self._config
        return Context(
            RealSysfs(Path("/")),
            LiveMachine(),
            inventory,
            store=self._store,
            endpoints=config.etcd,
            ttl_s=config.timing.ttl_s,
            accept=frozenset(config.accept),
            simulated=config.simulate is not None,
            reserved_cpus=config.reserved_cpus,
        )


def judges(config: Config, users: Users, doctor: Doctor) -> list[Judge]:
    """Those who judge this host. Nobody uses the devices of a simulated one."""
    return [doctor] if config.simulate is not None else [doctor, users]
