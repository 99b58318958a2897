"""One host with fake hardware and a real agent on a memory store, on the event loop's time."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.agent import Agent, Parts
from agent.devices.host import DeviceError
from agent.timing import Identity, Limits, Timing
from agent.work.volumes import VolumeError
from gpupool.store import keys
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Committed, Delete, Each, Guard, KeyValue, Op, Put, Snapshot, Unavailable
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from tests.fakes.virtual_time import until
from tests.fakes.vms import FakeClock, FakeGuard, FakeVms

HOST = "h1"
UNIT = "0000:01:00.0"
OTHER = "0000:02:00.0"
T = TypeVar("T")


async def inline(call: Callable[[], T], /) -> T:
    """Implements RunBlocking where nothing blocks and no thread is allowed."""
    return call()


class MemoryRecords:
    """Implements agent.state.Records; copies, as a file would."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, dict[str, Any]]] = {}
        self.full = ""

    def load(self, kind: str) -> dict[str, dict[str, Any]]:
        return copy.deepcopy(self.kinds.get(kind, {}))

    def save(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        self.kinds.setdefault(kind, {})[name] = copy.deepcopy(dict(record))

    def remove(self, kind: str, name: str) -> None:
        self.kinds.get(kind, {}).pop(name, None)

    def no_room(self) -> str:
        return self.full


class FakeDevices:
    """Implements agent.hardware.Devices. `faults`: why a unit's reclaim fails; `unbindable`: why its bind does."""

    def __init__(self, units: Sequence[str] = (UNIT, OTHER)) -> None:
        self.units = list(units)
        self.faults: dict[str, str] = {}
        self.unbindable: dict[str, str] = {}
        self.sick: dict[str, str] = {}
        self.dead: dict[str, str] = {}  # what a look at a unit that nobody has tells
        self.tolls: dict[str, str] = {}  # what befell a unit in use and no look has told of
        self.reclaimed: list[str] = []
        self.looks: list[list[str]] = []  # at who else uses units, each with the units of that look
        self.reclaim_s = 2.0
        self.recalled: dict[str, records_pb2.UnitHistory] = {}

    def inventory(self) -> inventory_pb2.Inventory:
        functions = {unit: [inventory_pb2.PciFunction(address=unit)] for unit in self.units}
        units = [
            inventory_pb2.Unit(id=unit, functions=functions[unit], model="nvidia-a100-80gb") for unit in self.units
        ]
        return inventory_pb2.Inventory(units=units)

    async def used_by(self, units: Sequence[inventory_pb2.Unit]) -> Mapping[str, str]:
        self.looks.append([unit.id for unit in units])
        return {}

    async def bind(self, unit: inventory_pb2.Unit, used: Mapping[str, str] | None = None) -> None:
        await asyncio.sleep(0.1)
        if reason := self.unbindable.get(unit.id):
            raise DeviceError(unit.id, "driver", reason, "vfio-pci")

    async def reclaim(self, unit: inventory_pb2.Unit, *, used: bool = True, allocation: str = "") -> str:
        await asyncio.sleep(self.reclaim_s)
        self.reclaimed.append(unit.id)
        self.tolls.pop(unit.id, None)
        if reason := self.faults.get(unit.id):
            raise DeviceError(unit.id, "config", reason, "as at first sight")
        return "flr; fake checks" if used else "no reset needed; fake checks"

    async def toll(self, unit: inventory_pb2.Unit) -> str:
        return self.tolls.get(unit.id, "")

    async def health(self, units: Sequence[inventory_pb2.Unit], *, in_use: bool = True) -> Mapping[str, str]:
        wrong = self.sick if in_use else self.dead
        return {unit.id: wrong[unit.id] for unit in units if unit.id in wrong}

    def history(self, unit: inventory_pb2.Unit) -> records_pb2.UnitHistory:
        return records_pb2.UnitHistory(reclaims=self.reclaimed.count(unit.id))

    def recall(self, identity: str, history: records_pb2.UnitHistory) -> None:
        self.recalled[identity] = history


class FakeLogs:
    """Implements agent.logs.LogSink."""

    def __init__(self) -> None:
        self.lines: dict[str, list[tuple[str, str]]] = {}
        self.closed: list[str] = []

    def append(self, allocation: str, lines: Iterable[tuple[str, str]]) -> None:
        self.lines.setdefault(allocation, []).extend(lines)

    def close(self, allocation: str) -> None:
        self.closed.append(allocation)


class FakeVolumes:
    """Implements agent.volumes.VolumeStore. `wrong`: why no volume can be made."""

    wrong = ""

    async def ensure(self, job: str, name: str, size_mib: int) -> str:
        await asyncio.sleep(0)
        if self.wrong:
            raise VolumeError(self.wrong)
        return f"/volumes/{job}/{name}.img"


class OutageStore(MemoryStore):
    """A memory store that can be away, or not renew leases."""

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(backend)
        self.away = False
        self.no_renewals = False

    def _check(self) -> None:
        if self.away:
            raise Unavailable("away")

    async def get(self, key: str) -> KeyValue | None:
        self._check()
        return await super().get(key)

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        self._check()
        return await super().list(prefix, each)

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        self._check()
        return await super().commit(guards, ops)

    async def grant(self, ttl_s: int) -> int:
        self._check()
        return await super().grant(ttl_s)

    async def renew(self, lease: int) -> int:
        self._check()
        if self.no_renewals:
            raise Unavailable("no renewals")
        return await super().renew(lease)


@dataclass
class Rig:
    """The host. Fields may be changed before `boot`; a second `Rig` on the same backend is another machine."""

    backend: MemoryBackend = field(default_factory=MemoryBackend)
    boot_id: str = "boot-1"
    address: str = "10.0.0.1:50152"
    machine: str = "m1"
    timing: Timing = field(default_factory=lambda: Timing(ttl_s=15, renew_s=4.0, kill_margin_s=3.0))
    limits: Limits = field(default_factory=Limits)
    images: list[str] = field(default_factory=lambda: ["ubuntu"])
    devices: FakeDevices = field(default_factory=FakeDevices)
    volumes: FakeVolumes = field(default_factory=FakeVolumes)
    unguarded: str = ""  # the site's policy

    def __post_init__(self) -> None:
        self.store = OutageStore(self.backend)
        self.clock = FakeClock()
        self.vms = FakeVms()
        self.guard = FakeGuard(self.vms, self.clock.boot)
        self.records = MemoryRecords()
        self.logs = FakeLogs()
        self.agent: Agent
        self._task: asyncio.Task[Any] | None = None

    async def boot(self) -> int:
        """Start the agent, and wait for its session and for its units to be proven."""
        parts = Parts(
            self.store, self.vms, self.guard, self.clock, self.devices, self.records, self.logs, self.volumes,
            lambda: self.images, run_blocking=inline,
        )  # fmt: skip
        me = Identity(HOST, self.boot_id, self.address, "test", machine=self.machine)
        self.agent = Agent(me, self.timing, self.limits, parts, unguarded=self.unguarded)
        self._task = asyncio.create_task(self.agent.run())
        await until(lambda: self.session)
        return self.session

    async def ready(self) -> int:
        """Boot, and wait until every unit is reported free."""
        await self.boot()
        await until(lambda: all(self.unit(unit).state == records_pb2.UNIT_STATE_FREE for unit in self.devices.units))
        return self.session

    async def kill_agent(self) -> None:
        """The agent's process is gone; VMs, guard and state files stay."""
        self.vms.disconnect()
        assert self._task
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    async def close(self) -> None:
        if self._task:
            assert not self._task.done(), self._task.exception()
            await self.kill_agent()

    @property
    def session(self) -> int:
        """The one in the store."""
        kv = self.backend.get(keys.session(HOST))
        return kv.create_revision if kv and self.agent.keeper.session == kv.create_revision else 0

    def allocate(
        self,
        name: str = "j1.1",
        units: Sequence[str] = (UNIT,),
        session: int | None = None,
        nonce: str | None = None,
        **spec: Any,
    ) -> None:
        """As the scheduler does; `nonce` None: the session's."""
        allocation = records_pb2.Allocation(
            id=name, job=name.partition(".")[0], attempt=1, host=HOST, units=units, pci_addresses=units,
            session=self.session if session is None else session,
            session_nonce=self.agent.keeper.nonce if nonce is None else nonce,
            memory_mib=1024, desired=records_pb2.DESIRED_RUN,
            spec=job_pb2.JobSpec(**{"image": "ubuntu", "command": ["true"], "cpus": 2, **spec}),
        )  # fmt: skip
        self.put(keys.allocation(HOST, name), allocation)

    def stop(self, name: str = "j1.1", reason: str = "cancelled", grace_s: int = 0) -> None:
        """Ask for the end, as the scheduler does."""
        kv = self.backend.get(keys.allocation(HOST, name))
        assert kv
        allocation = records_pb2.Allocation.FromString(kv.value)
        allocation.desired, allocation.stop_reason = records_pb2.DESIRED_STOP, reason
        allocation.stop_grace_s = grace_s
        self.put(keys.allocation(HOST, name), allocation)

    def withdraw(self, name: str = "j1.1") -> None:
        """Delete the allocation, as the scheduler does."""
        self.backend.commit([], [Delete(keys.allocation(HOST, name))])

    def put(self, key: str, message: Any) -> None:
        self.backend.commit([], [Put(key, message.SerializeToString())])

    def vm(self, name: str = "j1.1") -> records_pb2.VmReport:
        """The report in the store; empty if there is none."""
        kv = self.backend.get(keys.vm(HOST, name))
        return records_pb2.VmReport.FromString(kv.value) if kv else records_pb2.VmReport()

    def unit(self, unit: str = UNIT) -> records_pb2.UnitReport:
        """The report in the store; empty if there is none."""
        kv = self.backend.get(keys.unit(HOST, unit))
        return records_pb2.UnitReport.FromString(kv.value) if kv else records_pb2.UnitReport()

    def session_record(self) -> records_pb2.Session:
        kv = self.backend.get(keys.session(HOST))
        return records_pb2.Session.FromString(kv.value) if kv else records_pb2.Session()

    async def running(self, name: str = "j1.1") -> None:
        await until(lambda: self.vm(name).state == records_pb2.ALLOCATION_STATE_RUNNING)

    async def ended(self, name: str = "j1.1", within_s: float = 120.0) -> records_pb2.VmReport:
        await until(lambda: self.vm(name).state == records_pb2.ALLOCATION_STATE_ENDED, within_s)
        return self.vm(name)
