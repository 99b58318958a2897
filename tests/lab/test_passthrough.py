"""Jobs get real devices, and the next tenant gets them proven clean."""

from __future__ import annotations

import asyncio

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2, records_pb2
from lab.cluster import Cluster
from tests.lab.jobs import PCI, Stopwatch, ends, guest_functions, job, only, reaches, unit_is, units

FREE = records_pb2.UNIT_STATE_FREE
HUGEPAGES = job_pb2.VmOptions(hugepage_size_kib=2048)


async def test_a_job_on_one_node_with_hugepages(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """GPU, CPU and memory of one node; the guest sees the GPU on that node, and gives it back clean."""
    watch = Stopwatch()
    async with only(client, "h1"):
        wanted = job(PCI, numa=job_pb2.NUMA_POLICY_REQUIRED, vm=HUGEPAGES)
        job_id = (await client.submit(wanted)).id
        started = await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    timings["job: submitted to started"] = watch.s
    ended = await ends(client, job_id)
    timings["job: submitted to ended"] = watch.s
    watch = Stopwatch()
    assert (ended.status.state, ended.status.exit_code) == (job_pb2.JOB_STATE_SUCCEEDED, 0), ended.status
    unit = started.status.attempts[-1].units[0]
    gpus = [f for f in await guest_functions(client, job_id) if f.class_code == 0x038000]
    assert [(gpu.ids, gpu.node) for gpu in gpus] == [((0x1AF4, 0x1050), 0)]
    free = await unit_is(client, "h1", unit, FREE)
    timings["job: ended to unit proven clean"] = watch.s
    assert "rebind ok" in free.report.proof
    host = cluster.hosts["h1"]
    assert await host.text("virsh list --all --name") == ""
    assert await host.text("ls /run/gpupool/guests") == "", "nothing of the guest is left"


async def test_one_job_gets_all_that_a_host_has(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """Every kind of unit at once: with FLR, without, with a sound function, two GPUs of one group, behind a switch."""
    host = cluster.hosts["h1"]
    offered = [unit for unit in host.machine.expected_units() if not unit.boot_vga]
    before = {name: view.report.history.reclaims for name, view in (await units(client, "h1")).items()}
    async with only(client, "h1"):
        job_id = (await client.submit(job(PCI, gpus=len(offered), cpus=2, memory_mib=320))).id
        ended = await ends(client, job_id)
    assert ended.status.exit_code == 0, ended.status
    watch = Stopwatch()
    taken = ended.status.attempts[-1].units
    proven = dict(zip(taken, await asyncio.gather(*(unit_is(client, "h1", unit, FREE) for unit in taken)), strict=True))
    timings["six units: ended to all proven clean"] = watch.s

    functions = await guest_functions(client, job_id)
    gpus = [function for function in functions if function.class_code == 0x038000]
    expected = [unit.node for unit in offered for _ in unit.gpus]
    assert sorted(gpu.node for gpu in gpus) == sorted(expected)
    (sound,) = [function for function in functions if function.class_code == 0x040300]
    assert sound.address.removesuffix(".1") + ".0" in {gpu.address for gpu in gpus}, "a companion stays with its GPU"

    address = await host.addresses()
    assert len(proven[min(address["gpu-group0"], address["gpu-group1"])].unit.functions) == 2
    assert proven[address["gpu-flr"]].report.proof.startswith("flr")
    assert "flr" not in proven[address["gpu-noflr"]].report.proof
    for unit, view in proven.items():
        assert view.report.history.reclaims == before[unit] + sum(unit in a.units for a in ended.status.attempts)
        assert not view.report.history.failures
