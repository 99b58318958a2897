"""Jobs in lab hosts' guests, and waiting for them. Every wait is for an event, with a generous limit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2

IMAGE = "lab"  # with a kernel that boots fast; "debian-numpy" is there too
MODEL = "virtio-gpu"
GUEST_S = 400.0  # for a guest to boot and end; above the start time-out of the agents
RECLAIM_S = 120.0
# One line a PCI function of the guest: address, ids, class, NUMA node.
PCI = "for d in /sys/bus/pci/devices/*; do echo PCI ${d##*/} $(cat $d/vendor $d/device $d/class $d/numa_node); done"


def job(script: str, *, gpus: int = 1, model: str = MODEL, **fields: Any) -> job_pb2.JobSpec:
    """A job that runs a shell script in a guest with that many GPUs."""
    given = {"image": IMAGE, "command": ["sh", "-c", script], "cpus": 1, "memory_mib": 192, "stop_grace_s": 20}
    return job_pb2.JobSpec(**{**given, **fields}, gpus=job_pb2.GpuRequest(count=gpus, model=model))


async def ends(client: AsyncClient, job_id: str, *, within_s: float = GUEST_S) -> job_pb2.Job:
    """The job, once it has ended."""
    return await client.wait(job_id, timeout_s=within_s)


async def reaches(
    client: AsyncClient, job_id: str, state: job_pb2.JobState.ValueType, *, within_s: float = GUEST_S
) -> job_pb2.Job:
    """The job, once it is in this state."""
    async with asyncio.timeout(within_s):
        while True:
            if (found := await client.get(job_id)).status.state == state:
                return found
            await asyncio.sleep(0.2)


async def output(client: AsyncClient, job_id: str) -> list[str]:
    """All lines that the job has printed."""
    return [line.text async for chunk in client.logs(job_id, follow=False) for line in chunk.lines]


async def units(client: AsyncClient, host: str) -> dict[str, scheduler_pb2.UnitView]:
    """The host's units by id."""
    return {view.unit.id: view for view in await client.units(host)}


async def unit_is(
    client: AsyncClient,
    host: str,
    unit: str,
    state: records_pb2.UnitState.ValueType,
    *,
    within_s: float = RECLAIM_S,
    held: bool = False,
) -> scheduler_pb2.UnitView:
    """The unit, once it is in this state and no allocation has it (or one does: `held`)."""
    view = None
    try:
        async with asyncio.timeout(within_s):
            while view is None or view.state != state or bool(view.allocation) != held:
                await asyncio.sleep(0.2)
                view = (await units(client, host))[unit]
    except TimeoutError:
        raise TimeoutError(f"unit {unit} of {host} is not as wanted:\n{view}") from None
    return view


@contextlib.asynccontextmanager
async def only(client: AsyncClient, host: str) -> AsyncIterator[None]:
    """Jobs go to this host; the others are cordoned meanwhile."""
    others = [found.name for found in await client.hosts() if found.name != host]
    for other in others:
        await client.cordon(other, "a test wants another host", by="lab")
    try:
        yield
    finally:
        for other in others:
            await client.uncordon(other, by="lab")


@dataclass(frozen=True)
class GuestFunction:
    """One line that PCI prints, as values."""

    address: str
    ids: tuple[int, int]
    class_code: int
    node: int


async def guest_functions(client: AsyncClient, job_id: str) -> list[GuestFunction]:
    """The PCI functions that the guest of a job with the script PCI saw, bridges left out."""
    words = [line.split()[1:] for line in await output(client, job_id) if line.startswith("PCI ")]
    found = [
        GuestFunction(address, (int(vendor, 16), int(device, 16)), int(class_code, 16), int(node))
        for address, vendor, device, class_code, node in words
    ]
    return [function for function in found if function.class_code >> 16 != 0x06]


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def s(self) -> float:
        """To a tenth."""
        return round(time.monotonic() - self._began, 1)
