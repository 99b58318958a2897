"""A real cluster to break: what the tests of it share. Every wait is for an event, with a generous limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpupool.client import AsyncClient
from gpupool.client.requests import finished
from gpupool.embedded.cluster import EmbeddedCluster, SimulatedHost
from gpupool.store import keys
from gpupool.store.etcd import EtcdStore
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

PATIENCE_S = 90.0
IMAGE = "debian-numpy"
A100, T4 = "nvidia-a100-80gb", "nvidia-t4"
FREE = records_pb2.UNIT_STATE_FREE
FOREVER = "echo up; while :; do sleep 1; done"


def job(script: str, *, gpus: int = 1, model: str = A100, **fields: Any) -> job_pb2.JobSpec:
    """A job that runs a shell script in the guest."""
    return job_pb2.JobSpec(
        **{"image": IMAGE, "command": ["sh", "-c", script], "cpus": 1, "memory_mib": 160, "stop_grace_s": 4, **fields},
        gpus=job_pb2.GpuRequest(count=gpus, model=model),
    )


def processes(text: str) -> set[int]:
    """Processes that live and whose command line has `text` in it."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and text.encode() in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
    return found - {os.getpid()}


@contextlib.contextmanager
def brief_folder() -> Iterator[Path]:
    """UNIX sockets allow no long paths such as pytest's. No process may name it in its command line in the end."""
    folder = Path(tempfile.mkdtemp(prefix="e2e-", dir="/tmp"))
    try:
        yield folder
        left = {
            pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:300] for pid in processes(f"{folder}/")
        }
        assert not left, f"these were left: {left}"
    finally:
        for pid in processes(f"{folder}/"):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def vms(job_id: str) -> dict[int, int]:
    """Attempt -> process of each QEMU of the job that lives. The comma ends the name on QEMU's command line."""
    attempts = range(1, 6)
    return {n: pid for n in attempts for pid in processes(f"guest=gpupool-{job_id}.{n},")}


async def until(holds: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """What `holds` returns, awaited if need be, once it is true."""
    result = None
    async with asyncio.timeout(within_s):
        while not result:
            result = holds()
            if isinstance(result, Awaitable):
                result = await result
            await asyncio.sleep(0 if result else 0.05)
    return result


@contextlib.asynccontextmanager
async def one_vm_at_a_time(job_id: str) -> AsyncGenerator[list[int]]:
    """Looks at the machine's processes all the time: never may two VMs of the job live. Yields the attempts seen."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            alive = vms(job_id)
            assert len(alive) < 2, f"VMs of attempts {sorted(alive)} live at once"
            seen.extend(n for n in alive if n not in seen)
            await asyncio.sleep(0.01)

    watch = asyncio.create_task(look())
    try:
        yield seen
    finally:
        watch.cancel()
        failure = (await asyncio.gather(watch, return_exceptions=True))[0]
        if isinstance(failure, Exception):
            raise failure


class Fleet:
    """The cluster, a client of it, and a look into its store."""

    def __init__(self, cluster: EmbeddedCluster, client: AsyncClient, store: EtcdStore) -> None:
        self.cluster = cluster
        self.client = client
        self.store = store
        self.etcd = cluster.etcd
        self.hosts = cluster.hosts

    async def submit(self, script: str, **fields: Any) -> str:
        return (await self.client.submit(job(script, **fields))).id

    async def reaches(self, job_id: str, state: job_pb2.JobState.ValueType, attempt: int = 1) -> job_pb2.Job:
        async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(self.client.watch()) as changes:
            async for found in changes:
                if found.id == job_id and found.status.attempt_count >= attempt:
                    if found.status.state == state:
                        return found
                    assert not finished(found), f"it was to become {state}: {found.status}"
        raise AssertionError("unreachable")

    async def runs(self, job_id: str, attempt: int = 1) -> SimulatedHost:
        """The host on which the job's attempt runs, once it does."""
        found = await self.reaches(job_id, job_pb2.JOB_STATE_RUNNING, attempt)
        return self.hosts[found.status.attempts[-1].host]

    async def ends(self, job_id: str) -> job_pb2.JobStatus:
        return (await self.client.wait(job_id, timeout_s=PATIENCE_S)).status

    async def prints(self, job_id: str, text: str, attempt: int = 0) -> str:
        """The first line of the job's output that has `text` in it."""
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines(job_id, attempt, follow=True):
                if text in line:
                    return line
        raise AssertionError(f"the output of {job_id} ended without {text!r}: {await self.output(job_id, attempt)}")

    async def output(self, job_id: str, attempt: int = 0) -> list[str]:
        return [line async for line in self._lines(job_id, attempt, follow=False)]

    async def _lines(self, job_id: str, attempt: int, *, follow: bool) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.client.logs(job_id, attempt, follow=follow)) as chunks:
            async for chunk in chunks:
                for line in chunk.lines:
                    yield line.text

    async def session(self, host: SimulatedHost) -> int:
        """The session's id; 0: it has none."""
        kv = await self.store.get(keys.session(host.name))
        return kv.create_revision if kv else 0

    async def units(self, host: SimulatedHost) -> dict[str, scheduler_pb2.UnitView]:
        return {view.unit.id: view for view in await self.client.units(host.name)}

    async def all_free(self, hosts: Iterable[SimulatedHost] = ()) -> None:
        """Returns once these hosts, or all, are READY with every unit proven clean in their present session."""

        async def free() -> bool:
            views = [view for view in await self.client.units() if view.host in names]
            return all(view.state == FREE and view.current and not view.allocation for view in views)

        names = {host.name for host in hosts} or set(self.hosts)
        await self.cluster.ready(names)
        await until(free)

    def inject(self, host: SimulatedHost, unit: str, fault: str | None) -> None:
        file = host.folder / "state/sysfs/.faults" / unit
        if fault is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(fault)

    async def heal(self) -> None:
        """Undo what an earlier test did: everything runs, no job is left, every unit is free."""
        self.etcd.thaw()
        for name, replica in self.cluster.replicas.items():
            if replica.pid:
                os.kill(replica.pid, signal.SIGCONT)
            else:
                await self.cluster.start_replica(name)
        for host in self.hosts.values():
            if host.agent and host.agent.pid:
                os.kill(host.agent.pid, signal.SIGCONT)
            else:
                await host.power_cut()
                host.power_on()
        await self._cancel_all()
        for shown in await self.client.hosts():  # a wish that is left would keep jobs from the host
            await self.client.undrain(shown.name)
            await self.client.maintenance(shown.name, on=False)
        await self.cluster.ready(set(self.hosts))
        for view in await self.client.units():
            self.inject(self.hosts[view.host], view.unit.id, None)
            if view.state == records_pb2.UNIT_STATE_QUARANTINED:
                await self.client.retry_unit(view.host, view.unit.id)
        await self.all_free()

    async def _cancel_all(self) -> None:
        left = [found.id async for found in self.client.list() if not finished(found)]
        for job_id in left:
            await self.client.cancel(job_id)
        for job_id in left:
            await self.ends(job_id)
