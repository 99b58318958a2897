"""Jobs get real devices, and the next tenant gets them proven clean."""

from __future__ import annotations

import asyncio

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2, records_pb2, scheduler_pb2
from lab.cluster import Cluster
from tests.lab.jobs import PCI, Stopwatch, ends, guest_functions, job, only, reaches, unit_is, units

FREE = records_pb2.UNIT_STATE_FREE
DISPLAY, ETHERNET = 0x038000, 0x020000
IGB_VF = (0x8086, 0x10CA)
HUGEPAGES = job_pb2.VmOptions(hugepage_size_kib=2048)


async def test_a_job_on_one_node_with_hugepages_and_a_nic(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """GPU, network adapter, CPU and memory of one node; the guest sees both devices on it, and gives them back clean.

    The adapter is a virtual function of an SR-IOV NIC, which goes with the GPU below the same PCIe root.
    """
    host = cluster.hosts["h1"]
    (nic,) = await host.virtual_functions("nic0")
    watch = Stopwatch()
    async with only(client, "h1"):
        wanted = job(PCI, numa=job_pb2.NUMA_POLICY_REQUIRED, vm=HUGEPAGES)
        wanted.gpus.nic = job_pb2.NIC_LOCALITY_PCIE_ROOT
        job_id = (await client.submit(wanted)).id
        started = await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    timings["job: submitted to started"] = watch.s
    ended = await ends(client, job_id)
    timings["job: submitted to ended"] = watch.s
    watch = Stopwatch()
    assert (ended.status.state, ended.status.exit_code) == (job_pb2.JOB_STATE_SUCCEEDED, 0), ended.status
    unit = started.status.attempts[-1].units[0]
    seen = [f for f in await guest_functions(client, job_id) if f.class_code in (DISPLAY, ETHERNET)]
    assert sorted((f.class_code, f.ids, f.node) for f in seen) == [
        (ETHERNET, IGB_VF, 0),
        (DISPLAY, (0x1AF4, 0x1050), 0),
    ]
    assert unit == (await host.addresses())["gpu-switch0"]
    free = await unit_is(client, "h1", unit, FREE)
    timings["job: ended to unit proven clean"] = watch.s
    assert "rebind ok" in free.report.proof
    assert nic in {function.address for function in free.unit.functions}, "what was proven is both"
    assert (await host.text(f"readlink /sys/bus/pci/devices/{nic}/driver")).endswith("/vfio-pci")
    assert await host.text("virsh list --all --name") == ""
    assert await host.text("ls /run/gpupool/guests") == "", "nothing of the guest is left"


async def test_a_nic_that_is_too_far_is_not_promised(cluster: Cluster, client: AsyncClient) -> None:
    """Behind one switch with its GPU no NIC is; below one root there is one, and not two."""
    for near, gpus in ((job_pb2.NIC_LOCALITY_SWITCH, 1), (job_pb2.NIC_LOCALITY_PCIE_ROOT, 2)):
        wanted = job("true", gpus=gpus)
        wanted.gpus.nic = near
        explained = await client.explain_spec(wanted)
        assert {verdict.reason for verdict in explained.hosts} == {scheduler_pb2.REASON_NIC_TOO_FAR}, explained
        assert explained.impossible, "no known host could ever take it"
    assert {verdict.host for verdict in explained.hosts} == set(cluster.hosts)


async def test_one_job_gets_all_that_a_host_has(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    """Every kind of unit at once: with FLR, without, with sound, with a NIC, two GPUs of one group, behind a switch."""
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
    gpus = [function for function in functions if function.class_code == DISPLAY]
    expected = [unit.node for unit in offered for _ in unit.gpus]
    assert sorted(gpu.node for gpu in gpus) == sorted(expected)
    (sound,) = [function for function in functions if function.class_code == 0x040300]
    assert sound.address.removesuffix(".1") + ".0" in {gpu.address for gpu in gpus}, "a companion stays with its GPU"

    (nic,) = [function for function in functions if function.class_code == ETHERNET]
    assert (nic.ids, nic.node) == (IGB_VF, host.machine.node_of("nic0"))

    address = await host.addresses()
    assert len(proven[min(address["gpu-group0"], address["gpu-group1"])].unit.functions) == 2
    assert proven[address["gpu-flr"]].report.proof.startswith("flr")
    assert "flr" not in proven[address["gpu-noflr"]].report.proof
    for unit, view in proven.items():
        assert view.report.history.reclaims == before[unit] + sum(unit in a.units for a in ended.status.attempts)
        assert not view.report.history.failures
