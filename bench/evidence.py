"""From a host's death, or from the word on it, to the committed placement of its job elsewhere, by kind of evidence.

Hosts are records only, as their agents would have written them, and there are no VMs: what a VM's boot takes is in
`bench failover`. etcd (with fsync), two schedulers and the client are real processes; so is the program that switches
the power off, which only says that it did. There is no watchdog either: a session says that it has one, and that a real
one resets a machine by the lease's end is shown in the lab (tests/lab), not here.

The clock starts where nobody could know sooner: at the host's last moment for a lease, else at the commit or call that
brings the word. The default lease of 8 s is renewed every 2 s.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path

from gpupool.client import AsyncClient
from gpupool.embedded.cluster import EmbeddedCluster
from gpupool.embedded.daemons import remove_tree
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.store.port import Created, Delete, Op, Put
from gpupool.v1 import job_pb2, records_pb2
from tests.fakes.fence_program import fence_program

from .fleet import IMAGE, UNITS, inventory, unit_id, write_fleet
from .leader import ready
from .row import Row

RUNS = 5
TTL_S, RENEW_S = 8, 2.0
OTHERS = 100  # hosts that live and take no part: with fewer, what dies here would put the mass failure brake on
PATIENCE_S = 60.0


class _Host:
    """A host that is records: its session on a lease of its own."""

    def __init__(self, store: EtcdStore, name: str, model: str, *, simulated: bool, watchdog_s: int) -> None:
        self._store = store
        self.name = name
        self._model = model
        self._simulated = simulated
        self._watchdog_s = watchdog_s
        self._lease = 0
        self._heart: asyncio.Task[None] | None = None
        self.session = 0

    async def begin(self, boot: str = "b1", *, dead: bool = True) -> None:
        """A session, with an inventory and clean units."""
        self._lease = await self._store.grant(TTL_S)
        record = records_pb2.Session(
            boot_id=boot, address=f"{self.name}:1", ttl_s=TTL_S, watchdog_s=self._watchdog_s,
            guard=records_pb2.GUARD_KIND_HARDWARE if self._watchdog_s else records_pb2.GUARD_KIND_SOFT,
            simulated=self._simulated, vms_found_dead=dead,
        )  # fmt: skip
        put = Put(keys.session(self.name), record.SerializeToString(), self._lease)
        self.session = (await self._store.commit([Created(keys.session(self.name), 0)], [put])).revision
        self._heart = asyncio.create_task(self._beat())
        report = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_FREE, session=self.session, proof="flr")
        offer = inventory(self.session)
        for unit in offer.units:
            unit.model = self._model
        ops: list[Op] = [Put(keys.inventory(self.name), offer.SerializeToString())]
        ops += [Put(keys.unit(self.name, unit_id(n)), report.SerializeToString()) for n in range(UNITS)]
        await self._store.commit([], ops)

    async def _beat(self) -> None:
        while True:
            await self._store.renew(self._lease)
            await asyncio.sleep(RENEW_S)

    async def die(self) -> None:
        """No more renewals."""
        if self._heart is not None:
            self._heart.cancel()
            with suppress(asyncio.CancelledError):
                await self._heart

    async def leave(self) -> None:
        """The session's end, at once."""
        await self.die()
        await self._store.commit([], [Delete(keys.session(self.name))])


Way = Callable[["_Scene"], Awaitable[float]]


class _Scene:
    """A job that runs on `victim`; `standby` is free."""

    def __init__(self, store: EtcdStore, client: AsyncClient, number: int, *, simulated: bool, watchdog_s: int) -> None:
        self.store = store
        self.client = client
        self.number = number
        self.model = f"bench-{number}"  # which nobody else has
        self.victim = _Host(store, f"a{number}", self.model, simulated=simulated, watchdog_s=watchdog_s)
        self.standby = _Host(store, f"b{number}", self.model, simulated=simulated, watchdog_s=watchdog_s)

    async def set(self) -> str:
        await self.victim.begin()
        spec = job_pb2.JobSpec(
            name="bench", image=IMAGE, command=["true"], cpus=1, memory_mib=1024,
            gpus=job_pb2.GpuRequest(count=1, model=self.model),
        )  # fmt: skip
        job = (await self.client.submit(spec, allow_unavailable=True)).id
        key = keys.allocation(self.victim.name, f"{job}.1")
        while await self.store.get(key) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        running = records_pb2.VmReport(session=self.victim.session, state=records_pb2.ALLOCATION_STATE_RUNNING)
        await self.store.commit([], [Put(keys.vm(self.victim.name, f"{job}.1"), running.SerializeToString())])
        await self.standby.begin()
        await self._state(self.standby.name, records_pb2.HOST_STATE_READY)
        return job

    async def fencing(self) -> None:
        """The victim's session is gone, and nothing is known."""
        await self.victim.leave()
        await self._state(self.victim.name, records_pb2.HOST_STATE_FENCING)

    async def _state(self, host: str, state: int) -> None:
        while True:
            kv = await self.store.get(keys.host(host))
            if kv is not None and records_pb2.HostRecord.FromString(kv.value).state == state:
                return
            await asyncio.sleep(0.05)

    async def evidence(self) -> str:
        kv = await self.store.get(keys.host(self.victim.name))
        assert kv is not None
        found = records_pb2.HostRecord.FromString(kv.value).last_fence.evidence
        return job_pb2.Evidence.Name(found).removeprefix("EVIDENCE_")

    async def close(self, job: str) -> None:
        """The job is over; the standby lives on."""
        await self.client.cancel(job)
        await self.victim.die()


async def _lease(scene: _Scene) -> float:
    await asyncio.sleep(0.4 * (scene.number % 5))  # at different moments between two renewals
    begun = time.perf_counter()
    await scene.victim.die()
    return begun


async def _agent(scene: _Scene) -> float:
    """The agent is back on the same boot, and has seen that no VM is left."""
    await scene.fencing()
    begun = time.perf_counter()
    await scene.victim.begin("b1")
    return begun


async def _boot(scene: _Scene) -> float:
    await scene.fencing()
    begun = time.perf_counter()
    await scene.victim.begin("b2", dead=False)
    return begun


async def _operator(scene: _Scene) -> float:
    await scene.fencing()
    begun = time.perf_counter()
    await scene.client.confirm_dead(scene.victim.name, "bench", by="bench")
    return begun


async def _power(scene: _Scene) -> float:
    """The session ends, and the leader has the host switched off."""
    begun = time.perf_counter()
    await scene.victim.leave()
    return begun


KINDS: dict[str, tuple[Way, bool, int, str]] = {  # how; whether the host is simulated; its watchdog's seconds; since
    "LEASE_EXPIRED_WATCHDOG": (_lease, False, 4, "last moment (lease of 8 s, a hardware watchdog on record only)"),
    "LEASE_EXPIRED_GUARDED": (_lease, True, 0, "last moment (lease of 8 s, soft guard)"),
    "AGENT_REPORTED_DEAD": (_agent, False, 0, "agent back on the same boot"),
    "OTHER_BOOT": (_boot, False, 0, "agent back on another boot"),
    "OPERATOR": (_operator, False, 0, "confirm-dead called"),
    "POWER_OFF": (_power, False, 0, "session's end (a fence program that answers at once)"),  # the last: _power_file
}


async def run(tell: Callable[[str], None]) -> list[Row]:
    """See the module docstring."""
    folder = Path(tempfile.mkdtemp(prefix="gpupool-bench-"))
    power = {"--power": str(_power_file(folder))}
    cluster = EmbeddedCluster(folder, images=folder, hosts={}, scheduler_options=power)
    rows, scenes = [], list[_Scene]()
    try:
        await cluster.start()
        store = EtcdStore([cluster.etcd.endpoint])
        await write_fleet(store, OTHERS)
        async with AsyncClient(cluster.server) as client:
            await ready(client, OTHERS)
            for kind, (way, simulated, watchdog_s, since) in KINDS.items():
                took = []
                for _ in range(RUNS):
                    (folder / "power").write_text("on\n")
                    scene = _Scene(store, client, len(scenes), simulated=simulated, watchdog_s=watchdog_s)
                    scenes.append(scene)
                    took.append(await _one(scene, way, kind))
                tell(f"{kind}: {', '.join(f'{s:.2f}' for s in took)} s")
                rows.append(Row(f"{kind}: {since} to placed elsewhere", "s", took))
            for scene in scenes:
                await scene.standby.die()
        await store.close()
    finally:
        await cluster.stop()
        remove_tree(folder)
    return rows


def _power_file(folder: Path) -> Path:
    """For the victims of the last kind."""
    program, first = fence_program(folder), RUNS * (len(KINDS) - 1)
    hosts = {
        f"a{number}": {"device": str(program), "parameters": {"ip": "10.0.0.1", "plug": f"a{number}"}}
        for number in range(first, first + RUNS)
    }
    file = folder / "power.yaml"
    file.write_text(json.dumps({"hosts": hosts}))  # JSON is YAML
    return file


async def _one(scene: _Scene, way: Way, kind: str) -> float:
    async with asyncio.timeout(PATIENCE_S):
        job = await scene.set()
        revision = (await scene.store.list(keys.LEADER)).revision
        placed = asyncio.create_task(_placed(scene.store, f"/{job}.2", revision))
        begun = await way(scene)
        took_s = await placed - begun
        while (found := await scene.evidence()) != kind:
            assert found in ("UNSPECIFIED", kind), found
            await asyncio.sleep(0.05)
        await scene.close(job)
    return took_s


async def _placed(store: EtcdStore, suffix: str, revision: int) -> float:
    """When an allocation with that end of its key is first seen."""
    async with aclosing(store.watch(keys.ALLOCATIONS, after_revision=revision)) as batches:
        async for changes in batches:
            if any(change.kv is not None and change.key.endswith(suffix) for change in changes):
                return time.perf_counter()
    raise AssertionError("the watch ended")
