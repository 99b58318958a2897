"""The operator of a simulated site: honest, attentive, and the only one who ends what waits for a person.

Every so often it looks at what is stored and at the machines themselves. It confirms a host's death only when it has
seen that no VM runs there and that the session is over; it releases brakes and held jobs, lets hosts in that were held
out, and switches on what fencing switched off. In some seeds it drains hosts, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from google.protobuf.message import Message

from gpupool.store import keys
from gpupool.store.port import Put, Store, StoreError, Unmodified
from gpupool.v1 import job_pb2, records_pb2
from tests.sim.hardware import Machine
from tests.sim.sealed import WALL_EPOCH_S
from tests.sim.world import World

M = TypeVar("M", bound=Message)
NAME = "operator"


class Operator:
    """See the module docstring. Until `calm_s` it is slow, and may drain; after that it ends all that waits."""

    def __init__(
        self, world: World, machines: Mapping[str, Machine], calm_s: float, alive: Callable[[str], bool]
    ) -> None:
        self._alive = alive  # whether any VM lives on a machine of that name
        self._world = world
        self._machines = machines
        self._calm_s = calm_s
        self._rng = world.rng(NAME)
        self._at_work = self._rng.random() < 0.5  # from the beginning, not only when all is calm
        self._drains = self._rng.random() < 0.3
        self._disarms = self._rng.random() < 0.2
        self._drained: set[str] = set()

    async def main(self) -> None:
        """Look, act, rest."""
        store = self._world.store(NAME)
        while True:
            calm = self._world.loop.time() >= self._calm_s
            await asyncio.sleep(15.0 if calm else self._rng.uniform(20.0, 90.0))
            if not calm and not self._at_work:
                continue
            try:
                await self._round(store, calm=self._world.loop.time() >= self._calm_s)
            except StoreError as exc:
                self._world.trace(f"cannot work: {exc}")

    async def _round(self, store: Store, *, calm: bool) -> None:
        for name in self._machines:
            await self._host(store, name, calm=calm)
        for job in await _held_jobs(store):
            await self._want(store, keys.job_intent(job), records_pb2.JobIntent(), self._release_job)
        await self._arm(store, calm=calm)
        cluster = await store.get(keys.CLUSTER)
        if cluster is not None and records_pb2.ClusterRecord.FromString(cluster.value).HasField("brake"):
            await self._want(store, keys.CLUSTER_INTENT, records_pb2.ClusterIntent(), self._release_brake)

    async def _arm(self, store: Store, *, calm: bool) -> None:
        kv = await store.get(keys.CLUSTER_INTENT)
        disarmed = kv is not None and records_pb2.ClusterIntent.FromString(kv.value).disarmed
        wanted = self._disarms and not calm and self._rng.random() < 0.4
        if disarmed != wanted:

            def change(intent: records_pb2.ClusterIntent) -> None:
                intent.disarmed, intent.at_s, intent.by, intent.reason = wanted, self._wall(), NAME, "planned work"

            await self._want(store, keys.CLUSTER_INTENT, records_pb2.ClusterIntent(), change)

    async def _host(self, store: Store, name: str, *, calm: bool) -> None:
        machine, kv = self._machines[name], await store.get(keys.host(name))
        record = records_pb2.HostRecord.FromString(kv.value) if kv is not None else records_pb2.HostRecord()
        session = await store.get(keys.session(name))
        over = session is None or session.create_revision != record.session
        if record.state == records_pb2.HOST_STATE_FENCING and over and not self._alive(name):
            await self._want(store, keys.host_intent(name), records_pb2.HostIntent(), _confirm(record.session))
        if record.held_out:
            await self._want(store, keys.host_intent(name), records_pb2.HostIntent(), self._let_in)
        if calm and machine.fence.cuts and not self._world.powered(name):
            machine.fence.cuts = 0
            self._world.loop.call_in(self._world.loop.world, self._world.power_on, name)
        if name in self._drained and (calm or self._rng.random() < 0.5):
            self._drained.discard(name)
            await self._want(store, keys.host_intent(name), records_pb2.HostIntent(), lambda i: i.ClearField("drain"))
        elif self._drains and not calm and self._rng.random() < 0.3:
            self._drained.add(name)
            await self._want(store, keys.host_intent(name), records_pb2.HostIntent(), self._drain)

    async def _want(self, store: Store, key: str, intent: M, change: Callable[[M], None]) -> None:
        kv = await store.get(key)
        if kv is not None:
            intent.ParseFromString(kv.value)
        change(intent)
        self._world.trace(f"wants {key}: {type(intent).__name__}")
        guard = Unmodified(key, kv.mod_revision if kv is not None else 0)
        await store.commit([guard], [Put(key, intent.SerializeToString(deterministic=True))])

    def _wall(self) -> float:
        return WALL_EPOCH_S + self._world.loop.time()

    def _release_job(self, intent: records_pb2.JobIntent) -> None:
        intent.released_s, intent.by = self._wall(), NAME

    def _release_brake(self, intent: records_pb2.ClusterIntent) -> None:
        intent.brake_released_s, intent.brake_by = self._wall(), NAME

    def _let_in(self, intent: records_pb2.HostIntent) -> None:
        intent.uncordoned_s = self._wall()

    def _drain(self, intent: records_pb2.HostIntent) -> None:
        intent.drain.CopyFrom(records_pb2.Drain(at_s=self._wall(), by=NAME, reason="drill", grace_s=5))


async def _held_jobs(store: Store) -> list[str]:
    found = [(keys.parse(kv.key), kv) for kv in (await store.list(keys.JOBS)).items]
    statuses = [(key[1][0], kv) for key, kv in found if key is not None and key[0] is keys.Kind.JOB_STATUS]
    return [job for job, kv in statuses if job_pb2.JobStatus.FromString(kv.value).hold]


def _confirm(session: int) -> Callable[[records_pb2.HostIntent], None]:
    def confirm(intent: records_pb2.HostIntent) -> None:
        intent.confirmed_dead_session, intent.confirmed_by, intent.confirmed_reason = session, NAME, "looked at it"

    return confirm
