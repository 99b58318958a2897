"""A pool without daemons: facts are written as agents would write them, and what the scheduler wrote is read back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from gpupool.store import keys
from gpupool.store.memory import MemoryBackend, MemoryStore
from gpupool.store.port import Change, Committed, Delete, Each, Guard, KeyValue, Op, Poll, Put, Snapshot, Unavailable
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2

WALL = 1_700_000_000.0
FINAL = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}


def wall() -> float:
    return WALL


def spec(name: str = "", *, gpus: int = 1, cpus: int = 1, mib: int = 1024, image: str = "img") -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        name=name, image=image, command=["true"], cpus=cpus, memory_mib=mib, gpus=job_pb2.GpuRequest(count=gpus)
    )


class Pool:
    """The store, and the hands of users and agents on it."""

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self.store = MemoryStore(self.backend)

    async def put(self, *ops: Put) -> int:
        return (await self.store.commit([], ops)).revision

    # As an agent

    async def join(self, host: str, *, gpus: int = 2, boot: str = "b1", dead: bool = True) -> int:
        """A session with its inventory; every unit is reported clean. Returns the session's id."""
        record = records_pb2.Session(
            boot_id=boot, address="127.0.0.1:1", guard=records_pb2.GUARD_KIND_SOFT, simulated=True, vms_found_dead=dead
        )
        await self.leave(host)
        session = await self.put(Put(keys.session(host), record.SerializeToString()))
        cores = [inventory_pb2.CpuCore(threads=[2 * n, 2 * n + 1]) for n in range(8)]
        inventory = inventory_pb2.Inventory(
            session=session,
            numa_nodes=[inventory_pb2.NumaNode(id=0, cores=cores, memory_mib=65536)],
            units=[
                inventory_pb2.Unit(id=f"u{n}", model="a100", gpu_memory_mib=81920, identity=f"{host}-sn{n}")
                for n in range(gpus)
            ],
            images=["img"],
        )
        free = records_pb2.UnitReport(state=records_pb2.UNIT_STATE_FREE, session=session).SerializeToString()
        await self.put(
            Put(keys.inventory(host), inventory.SerializeToString()),
            *(Put(keys.unit(host, f"u{n}"), free) for n in range(gpus)),
        )
        return session

    async def leave(self, host: str) -> None:
        await self.store.commit([], [Delete(keys.session(host))])

    async def report(
        self, allocation: records_pb2.Allocation, state: int, outcome: int = 0, exit_code: int | None = None
    ) -> None:
        report = records_pb2.VmReport(session=allocation.session, exit_code=exit_code)
        report.state, report.outcome = state, outcome  # type: ignore[assignment]
        await self.put(Put(keys.vm(allocation.host, allocation.id), report.SerializeToString()))

    async def clean(self, allocation: records_pb2.Allocation) -> None:
        free = records_pb2.UnitReport(
            state=records_pb2.UNIT_STATE_FREE, session=allocation.session, allocation=allocation.id
        )
        await self.put(*(Put(keys.unit(allocation.host, u), free.SerializeToString()) for u in allocation.units))

    async def finish(self, allocation: records_pb2.Allocation, exit_code: int = 0) -> None:
        """The allocation's command exits, and its units are clean."""
        await self.report(allocation, records_pb2.ALLOCATION_STATE_ENDED, job_pb2.OUTCOME_EXITED, exit_code)
        if allocation.units:
            await self.clean(allocation)

    # As a user

    async def submit(self, job: str, wanted: job_pb2.JobSpec | None = None) -> None:
        record = records_pb2.JobRecord(spec=wanted or spec(), submitted_s=WALL)
        await self.put(Put(keys.job_spec(job), record.SerializeToString()))

    # What is stored

    def status(self, job: str) -> job_pb2.JobStatus:
        kv = self.backend.get(keys.job_status(job))
        return job_pb2.JobStatus.FromString(kv.value) if kv is not None else job_pb2.JobStatus()

    def allocations(self) -> list[records_pb2.Allocation]:
        return [records_pb2.Allocation.FromString(kv.value) for kv in self.backend.list(keys.ALLOCATIONS).items]

    def host(self, name: str) -> records_pb2.HostRecord:
        kv = self.backend.get(keys.host(name))
        return records_pb2.HostRecord.FromString(kv.value) if kv is not None else records_pb2.HostRecord()


Commit = Callable[[], Awaitable[Committed]]


class HookedStore:
    """A MemoryStore; `on_commit` is called in place of each commit, with the real one; `down` makes all fail."""

    def __init__(self, backend: MemoryBackend) -> None:
        self.inner = MemoryStore(backend)
        self.down = False
        self.on_commit: Callable[[Sequence[Op], Commit], Awaitable[Committed]] = lambda _, commit: commit()

    def _up(self) -> MemoryStore:
        if self.down:
            raise Unavailable("etcd is away")
        return self.inner

    async def get(self, key: str) -> KeyValue | None:
        return await self._up().get(key)

    async def list(self, prefix: str, each: Each | None = None) -> Snapshot:
        return await self._up().list(prefix, each)

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Committed:
        return await self.on_commit(ops, lambda: self._up().commit(guards, ops))

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncGenerator[Sequence[Change], None]:
        async with aclosing(self.inner.watch(prefix, after_revision=after_revision)) as batches:
            async for batch in batches:
                yield batch

    async def grant(self, ttl_s: int) -> int:
        return await self._up().grant(ttl_s)

    async def renew(self, lease: int) -> int:
        return await self._up().renew(lease)

    async def revoke(self, lease: int) -> None:
        await self._up().revoke(lease)

    async def learn_members(self) -> None:
        await self._up().learn_members()

    async def poll_members(self) -> Poll:
        return await self.inner.poll_members()

    async def close(self) -> None:
        await self.inner.close()

    @property
    def max_ops(self) -> int:
        return self.inner.max_ops
