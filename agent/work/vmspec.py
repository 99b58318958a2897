"""The VM that an allocation asks for, on the host of an inventory. Pure.

It turns names into facts: which cores lie on which NUMA node, where a function sits and how large its BARs are. What
the inventory does not say stays unknown (node -1, no BARs); nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gpupool.v1 import job_pb2
from gpupool.v1.inventory_pb2 import Inventory, NumaNode
from gpupool.v1.records_pb2 import Allocation

from ..ports import GuestCell, GuestOptions, PassedFunction, VmSpec, VolumeMount

_DISPLAY, _ACCELERATOR = 0x03, 0x12  # PCI base classes
_ROM = 6
_NETWORKS = {
    job_pb2.Network.USER: "user",
    job_pb2.Network.BRIDGE: "bridge",
    job_pb2.Network.MACVTAP: "macvtap",
}


def vm_spec(
    want: Allocation, volumes: tuple[VolumeMount, ...], inventory: Inventory, reserved_cpus: Collection[int] = ()
) -> VmSpec:
    """The VM to start. `reserved_cpus` are the host's CPUs that no VM gets: QEMU's own threads run there if any."""
    cells = _cells(want, inventory)
    threads = [thread for cell in cells for core in cell.cores for thread in core]
    return VmSpec(
        allocation=want.id,
        image=want.spec.image,
        command=tuple(want.spec.command),
        env=tuple(sorted(want.spec.env.items())),
        vcpus=want.spec.cpus,
        memory_mib=want.memory_mib,
        cells=cells,
        functions=_functions(want, inventory),
        emulator_cpus=tuple(sorted(reserved_cpus)) or tuple(threads[want.spec.cpus :]),
        volumes=volumes,
        options=_options(want.spec.vm),
    )


def _cells(want: Allocation, inventory: Inventory) -> tuple[GuestCell, ...]:
    """A cell for each node that gives memory; cores that no node of the inventory has are of node -1.

    QEMU makes no cell without memory (memory-backend-ram takes no size 0): the cores of a node that gives none are
    shown with the nearest one that does.
    """
    node_of = {tuple(core.threads): node.id for node in inventory.numa_nodes for core in node.cores}
    cores: dict[int, list[tuple[int, ...]]] = {}
    for core in want.cores:
        threads = tuple(core.threads)
        cores.setdefault(node_of.get(threads, -1), []).append(threads)
    memory = _memory(want)
    if not memory and cores:  # an allocation that names no node
        memory = {min(cores): want.memory_mib}
    nodes = sorted(node for node, mib in memory.items() if mib)
    for node in sorted(set(cores) - set(nodes)) if nodes else ():
        far = dict(zip(nodes, _distances(inventory.numa_nodes, nodes).get(node, ()), strict=False))
        home = min((far.get(other, 0), other) for other in nodes)[1]
        cores[home] = sorted([*cores.get(home, []), *cores.pop(node)])
    distances = _distances(inventory.numa_nodes, nodes)
    return tuple(
        GuestCell(node, tuple(cores.get(node, ())), memory.get(node, 0), tuple(distances.get(node, ())))
        for node in nodes
    )


def _memory(want: Allocation) -> dict[int, int]:
    """MiB by node. An allocation of an older scheduler does not say, then it is shared out evenly."""
    nodes, parts = list(want.numa_nodes), list(want.memory_mib_per_node)
    if len(parts) != len(nodes):
        each, rest = divmod(want.memory_mib, len(nodes) or 1)
        parts = [each + (rest if index == 0 else 0) for index in range(len(nodes))]
    return dict(zip(nodes, parts, strict=True))


def _distances(all_nodes: Sequence[NumaNode], nodes: Sequence[int]) -> dict[int, list[int]]:
    """To each of `nodes`; nothing unless the firmware's table is whole (one distance for each node of the host)."""
    position = {node.id: index for index, node in enumerate(sorted(all_nodes, key=lambda node: node.id))}
    return {
        node.id: [node.distances[position[other]] for other in nodes]
        for node in all_nodes
        if len(node.distances) == len(all_nodes) and all(other in position for other in nodes)
    }


def _functions(want: Allocation, inventory: Inventory) -> tuple[PassedFunction, ...]:
    known = {function.address: (unit, function) for unit in inventory.units for function in unit.functions}
    found = []
    for address in want.pci_addresses:
        if address not in known:
            found.append(PassedFunction(address))
            continue
        unit, function = known[address]
        found.append(
            PassedFunction(
                address=address,
                node=function.numa_node,
                bar_bytes=tuple(bar.bytes for bar in function.bars if bar.index < _ROM),
                is_gpu=function.class_code >> 16 in (_DISPLAY, _ACCELERATOR),
                unit=unit.id,
            )
        )
    return tuple(found)


def _options(vm: job_pb2.VmOptions) -> GuestOptions:
    return GuestOptions(
        hugepage_size_kib=vm.hugepage_size_kib,
        network=_NETWORKS.get(vm.network.kind, ""),
        network_source=vm.network.source,
        user_data=vm.user_data,
        guest_iommu=vm.guest_iommu,
        hide_hypervisor=vm.hide_hypervisor,
        hypervisor_vendor_id=vm.hypervisor_vendor_id,
    )
