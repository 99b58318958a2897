"""The slice from end to end: real hosts are found, a job gets a real device, the device comes back proven clean."""

from __future__ import annotations

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2, records_pb2
from lab.cluster import Cluster
from tests.lab.jobs import PCI, Stopwatch, ends, job, output, reaches, unit_is, units


async def test_hosts_are_ready_with_the_units_that_qemu_was_told(cluster: Cluster, client: AsyncClient) -> None:
    for name, host in cluster.hosts.items():
        address = await host.addresses()
        found = await units(client, name)
        for expected in host.machine.expected_units():
            view = found.pop(min(address[gpu] for gpu in expected.gpus))
            functions = {function.address for function in view.unit.functions}
            assert functions == {address[device] for device in expected.gpus + expected.others}
            assert view.unit.numa_node == expected.node
            assert ("boot VGA" in view.unit.unfit) == expected.boot_vga, view.unit.unfit
        assert not found


async def test_a_job_owns_a_device_and_gives_it_back_clean(
    cluster: Cluster, client: AsyncClient, timings: dict[str, float]
) -> None:
    watch = Stopwatch()
    job_id = (await client.submit(job(PCI))).id
    started = await reaches(client, job_id, job_pb2.JOB_STATE_RUNNING)
    timings["job: submitted to started"] = watch.s
    ended = await ends(client, job_id)
    timings["job: submitted to ended"] = watch.s
    assert ended.status.state == job_pb2.JOB_STATE_SUCCEEDED, ended.status
    assert ended.status.exit_code == 0
    lines = await output(client, job_id)
    assert any("0x1af4 0x1050 0x038000" in line for line in lines), lines
    host, unit = started.status.attempts[-1].host, started.status.attempts[-1].units[0]
    watch = Stopwatch()
    free = await unit_is(client, host, unit, records_pb2.UNIT_STATE_FREE)
    timings["job: ended to unit proven clean"] = watch.s
    assert free.report.proof
    assert (await cluster.hosts[host].text("virsh list --name")) == ""
