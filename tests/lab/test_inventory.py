"""What the agents say of their hosts is what QEMU was told, and stays so when it changes."""

from __future__ import annotations

import asyncio

from gpupool.client import AsyncClient
from gpupool.v1 import job_pb2
from gpupool.v1.inventory_pb2 import PciFunction
from lab.cluster import Cluster
from tests.lab.jobs import Stopwatch, units

NEWS_S = 30.0  # an inventory is read, judged and stored in an emulated host


async def test_units_are_those_that_qemu_was_told(cluster: Cluster, client: AsyncClient) -> None:
    for name, host in cluster.hosts.items():
        address = await host.addresses()
        devices = host.machine.devices()
        found = await units(client, name)
        for expected in host.machine.expected_units():
            view = found.pop(min(address[gpu] for gpu in expected.gpus))
            functions = {function.address: function for function in view.unit.functions}
            nics = (await host.virtual_functions(expected.nic))[:1] if expected.nic else []
            own = {address[device] for device in expected.gpus + expected.others}
            assert set(functions) == own | set(nics)
            assert view.unit.nic == "".join(nics)
            assert (view.unit.model, view.unit.numa_node) == (devices[expected.gpus[0]].model, expected.node)
            assert len({functions[one].iommu_group for one in own}) == 1
            for nic in nics:
                _is_a_virtual_nic(functions[nic], address[expected.nic], expected.node)
                assert functions[nic].iommu_group not in {functions[one].iommu_group for one in own}
                assert view.unit.nic_locality == job_pb2.NIC_LOCALITY_PCIE_ROOT
            assert ("boot VGA" in view.unit.unfit) == expected.boot_vga, view.unit.unfit
            assert bool(view.unit.unfit) == expected.boot_vga, view.unit.unfit
            for device in expected.gpus + expected.others:
                function = functions[address[device]]
                assert function.class_code == devices[device].class_code
                assert ("flr" in function.reset_methods) == devices[device].flr, (device, function.reset_methods)
        assert not found


def _is_a_virtual_nic(function: PciFunction, parent: str, node: int) -> None:
    assert (function.class_code, function.numa_node, function.physical_function) == (0x020000, node, parent)
    assert "flr" in function.reset_methods


async def test_paths_and_links(cluster: Cluster, client: AsyncClient) -> None:
    """Two GPUs behind a switch share the way up to its upstream port; others are right below a root port."""
    address = await cluster.hosts["h1"].addresses()
    found = {f.address: f for view in (await units(client, "h1")).values() for f in view.unit.functions}
    path = {name: list(found[address[name]].path) for name in ("gpu-flr", "gpu-switch0", "gpu-switch1")}
    assert [len(bridges) for bridges in path.values()] == [1, 3, 3]
    assert path["gpu-switch0"][:2] == path["gpu-switch1"][:2]
    assert path["gpu-switch0"][2] != path["gpu-switch1"][2]
    gpus = [function for function in found.values() if function.class_code >> 16 == 0x03]
    assert all(function.link_width and function.link_width_max for function in gpus)
    assert all(bar.bytes and bar.address for function in gpus for bar in function.bars if bar.index < 6)


async def test_cpus_memory_and_hugepages_by_node(cluster: Cluster, client: AsyncClient) -> None:
    host = next(found for found in await client.hosts() if found.name == "h1")
    machine = cluster.hosts["h1"].machine
    nodes = host.inventory.numa_nodes
    assert [[list(core.threads) for core in node.cores] for node in nodes] == [[[0], [1]], [[2], [3]]]
    assert [list(node.distances) for node in nodes] == [[10, 21], [21, 10]]
    pages = [{kind.size_kib: kind.total for kind in node.hugepages}[2048] for node in nodes]
    assert pages == list(machine.hugepages)


async def test_changes_reach_the_scheduler(cluster: Cluster, client: AsyncClient, timings: dict[str, float]) -> None:
    """Virtual functions that are switched on, and hugepages that are set aside while the agent runs."""
    host = cluster.hosts["h1"]
    nic = (await host.addresses())["nic1"]  # the virtual functions of the other one are a part of a unit
    pages = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"

    async def inventory() -> tuple[PciFunction, int]:
        found = next(found for found in await client.hosts() if found.name == "h1").inventory
        total = {kind.size_kib: kind.total for kind in found.numa_nodes[1].hugepages}[2048]
        return next(function for function in found.nics if function.address == nic), total

    async def until(wanted: tuple[int, int]) -> None:
        async with asyncio.timeout(NEWS_S):
            while True:
                function, total = await inventory()
                if (len(function.sriov_present), total) == wanted:
                    return
                await asyncio.sleep(0.2)

    function, before = await inventory()
    assert (function.sriov_total, len(function.sriov_present)) == (7, 0)
    watch = Stopwatch()
    try:
        await host.run(f"echo 2 > /sys/bus/pci/devices/{nic}/sriov_numvfs; echo {before + 8} > {pages}")
        await until((2, before + 8))
        timings["change to the scheduler's inventory"] = watch.s
    finally:
        await host.run(f"echo 0 > /sys/bus/pci/devices/{nic}/sriov_numvfs; echo {before} > {pages}")
    await until((0, before))
