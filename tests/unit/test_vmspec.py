"""From an allocation and an inventory to a VM."""

from __future__ import annotations

from typing import Any

from agent.ports import GuestCell, GuestOptions, PassedFunction
from agent.work.vmspec import vm_spec
from gpupool.v1 import job_pb2
from gpupool.v1.inventory_pb2 import Bar, CpuCore, Inventory, NumaNode, PciFunction, Unit
from gpupool.v1.records_pb2 import Allocation

GPU, SOUND, OTHER = "0000:21:00.0", "0000:21:00.1", "0000:a1:00.0"
INVENTORY = Inventory(
    numa_nodes=[
        NumaNode(id=0, cores=[CpuCore(threads=[n, n + 8]) for n in range(4)], distances=[10, 12, 30]),
        NumaNode(id=1, distances=[12, 10, 30], memory_mib=4096),
        NumaNode(id=4, cores=[CpuCore(threads=[n, n + 8]) for n in range(4, 8)], distances=[30, 30, 10]),
    ],
    units=[
        Unit(
            id=GPU,
            functions=[
                PciFunction(
                    address=GPU,
                    class_code=0x030200,
                    numa_node=4,
                    bars=[Bar(index=0, bytes=16), Bar(index=1, bytes=64), Bar(index=6, bytes=1024)],
                ),
                PciFunction(address=SOUND, class_code=0x040300, numa_node=4),
            ],
        )
    ],
)


def allocation(**changes: Any) -> Allocation:
    base: dict[str, Any] = {
        "id": "j.1",
        "numa_nodes": [0, 4],
        "memory_mib": 3072,
        "memory_mib_per_node": [1024, 2048],
        "cores": [CpuCore(threads=[1, 9]), CpuCore(threads=[4, 12])],
        "pci_addresses": [GPU, SOUND],
        "spec": job_pb2.JobSpec(image="i", cpus=4),
    }
    return Allocation(**(base | changes))


def test_cells_mirror_the_nodes() -> None:
    spec = vm_spec(allocation(), (), INVENTORY)
    assert spec.cells == (
        GuestCell(0, ((1, 9),), 1024, (10, 30)),
        GuestCell(4, ((4, 12),), 2048, (30, 10)),
    )


def test_functions_carry_node_bars_and_unit() -> None:
    spec = vm_spec(allocation(pci_addresses=[GPU, SOUND, OTHER]), (), INVENTORY)
    assert spec.functions == (
        PassedFunction(GPU, 4, (16, 64), is_gpu=True, unit=GPU),
        PassedFunction(SOUND, 4, (), is_gpu=False, unit=GPU),
        PassedFunction(OTHER),  # the inventory does not know it: nothing is made up
    )


def test_nodes_that_give_nothing_are_no_cells_and_memory_alone_makes_one() -> None:
    spec = vm_spec(allocation(memory_mib_per_node=[3072, 0], cores=[CpuCore(threads=[1, 9])]), (), INVENTORY)
    assert [cell.node for cell in spec.cells] == [0]
    spec = vm_spec(allocation(cores=[CpuCore(threads=[1, 9])]), (), INVENTORY)
    assert [(cell.node, len(cell.cores), cell.memory_mib) for cell in spec.cells] == [(0, 1, 1024), (4, 0, 2048)]


def test_cores_of_a_node_without_memory_are_shown_with_the_nearest_that_has_some() -> None:
    spec = vm_spec(allocation(numa_nodes=[0, 1, 4], memory_mib_per_node=[0, 2048, 1024]), (), INVENTORY)
    assert [(cell.node, cell.cores) for cell in spec.cells] == [(1, ((1, 9),)), (4, ((4, 12),))]


def test_an_allocation_that_does_not_say_whose_memory_it_is() -> None:
    spec = vm_spec(allocation(memory_mib_per_node=[], memory_mib=1001), (), INVENTORY)
    assert [cell.memory_mib for cell in spec.cells] == [501, 500]
    spec = vm_spec(allocation(memory_mib_per_node=[], numa_nodes=[], cores=[CpuCore(threads=[4, 12])]), (), INVENTORY)
    assert [(cell.node, cell.memory_mib) for cell in spec.cells] == [(4, 3072)]


def test_cores_that_no_node_has_are_shown_with_the_first() -> None:
    spec = vm_spec(allocation(cores=[CpuCore(threads=[77])]), (), INVENTORY)
    assert [(cell.node, cell.cores) for cell in spec.cells] == [(0, ((77,),)), (4, ())]


def test_a_table_of_distances_with_gaps_is_not_used() -> None:
    inventory = Inventory()
    inventory.CopyFrom(INVENTORY)
    del inventory.numa_nodes[0].distances[2]
    assert [cell.distances for cell in vm_spec(allocation(), (), inventory).cells] == [(), (30, 10)]


def test_qemus_own_threads_run_on_reserved_cpus_else_on_what_is_left_over() -> None:
    assert vm_spec(allocation(), (), INVENTORY, [8, 0]).emulator_cpus == (0, 8)
    odd = allocation(spec=job_pb2.JobSpec(cpus=3))
    assert vm_spec(odd, (), INVENTORY).emulator_cpus == (12,)
    assert vm_spec(allocation(), (), INVENTORY).emulator_cpus == ()


def test_options() -> None:
    vm = job_pb2.VmOptions(
        hugepage_size_kib=2048,
        network=job_pb2.Network(kind=job_pb2.Network.MACVTAP, source="ens1"),
        user_data="#cloud-config\n",
        guest_iommu=True,
        hide_hypervisor=True,
        hypervisor_vendor_id="x",
    )
    spec = vm_spec(allocation(spec=job_pb2.JobSpec(vm=vm)), (), INVENTORY)
    assert spec.options == GuestOptions(2048, "macvtap", "ens1", "#cloud-config\n", True, True, "x")
    assert vm_spec(allocation(), (), INVENTORY).options == GuestOptions()
