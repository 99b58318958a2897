"""A host as large as they come, on disk: 16 GPUs and as many NICs behind PCIe switches, 8 NUMA nodes, 400 functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.inventory import gpus
from agent.simulated.pci import MELLANOX, MIB, SimFunction, write_function
from agent.simulated.tree import BUSES_PER_NODE, HostShape, build_tree

NODES, SWITCHES_PER_NODE, VIRTUAL_PER_NIC, HUGEPAGES = 8, 2, 4, 1024
FUNCTIONS, GPUS = 400, NODES * SWITCHES_PER_NODE
MODEL = "nvidia-h100-80gb"
PLX, UPSTREAM, DOWNSTREAM = 0x10B5, 0x8749, 0x8750
BOARD = 0x0808  # base system peripheral: what sockets show of their uncore


def build(root: Path, *, nodes: int = NODES, functions: int = FUNCTIONS, cores_per_node: int = 32) -> None:
    """Write the tree at `root`, which must not exist: by default the whole, else something smaller of the same kind."""
    build_tree(root, HostShape((), nodes, cores_per_node, hugepages_per_node=HUGEPAGES))
    already = len(list((root / "bus/pci/devices").iterdir()))
    switched = [function for node in range(nodes) for function in _switched(node)]
    for function in switched:
        write_function(root, function)
    for number in range(functions - already - len(switched)):
        write_function(root, _board(number, nodes))


def _switched(node: int) -> Iterator[SimFunction]:
    """Root ports with a switch below, which leads to a GPU and to a NIC with virtual functions."""
    root_bus = node * BUSES_PER_NODE
    for switch in range(SWITCHES_PER_NODE):
        first = root_bus + 2 + 6 * switch
        group = 1000 + 20 * (SWITCHES_PER_NODE * node + switch)
        port = f"devices/pci0000:{root_bus:02x}/0000:{root_bus:02x}:{2 + switch:02x}.0"
        yield _bridge(port, (gpus.INTEL, 0x347A), node, group, (first, first + 3))
        upstream = f"{port}/0000:{first:02x}:00.0"
        yield _bridge(upstream, (PLX, UPSTREAM), node, group + 1, (first + 1, first + 3))
        below = [f"{upstream}/0000:{first + 1:02x}:{slot:02x}.0" for slot in range(2)]
        for slot, path in enumerate(below):
            yield _bridge(path, (PLX, DOWNSTREAM), node, group + 2 + slot, (first + 2 + slot, first + 2 + slot))
        yield _gpu(f"{below[0]}/0000:{first + 2:02x}:00.0", node, group + 4)
        yield from _nic(f"{below[1]}/0000:{first + 3:02x}:00.", node, group + 5)


def _bridge(path: str, ids: tuple[int, int], node: int, group: int, buses: tuple[int, int]) -> SimFunction:
    parent, _, address = path.rpartition("/")
    return SimFunction(
        address, parent, *ids, 0x060400, node, group, "pcieport",
        secondary_bus=buses[0], subordinate_bus=buses[1], extra={"reset_subordinate": ""},
    )  # fmt: skip


def _gpu(path: str, node: int, group: int) -> SimFunction:
    parent, _, address = path.rpartition("/")
    return SimFunction(
        address, parent, *gpus.ids_of(MODEL), 0x030200, node, group,
        bars=((0, 16 * MIB, False), (1, 128 * 1024 * MIB, True), (3, 32 * MIB, True)),
        reset_methods="flr bus", config_bytes=4096, serial=0x48B02D0000000000 | group, extra={"boot_vga": "0"},
    )  # fmt: skip


def _nic(path: str, node: int, group: int) -> Iterator[SimFunction]:
    """A physical function and its virtual ones; `path` lacks the number of the function."""
    parent, _, slot = path.rpartition("/")
    virtual = tuple(f"{slot}{number}" for number in range(1, VIRTUAL_PER_NIC + 1))
    yield SimFunction(
        f"{slot}0", parent, MELLANOX, 0x1021, 0x020000, node, group, "mlx5_core",
        bars=((0, 32 * MIB, True),), reset_methods="flr bus", config_bytes=4096, serial=0xB8CEF60300000000 | group,
        sriov_total=16, virtual_functions=virtual,
    )  # fmt: skip
    for number, address in enumerate(virtual):
        yield SimFunction(
            address, parent, MELLANOX, 0x101E, 0x020000, node, group + 6 + number, "mlx5_core",
            reset_methods="flr", config_bytes=4096, physical_function=f"{slot}0",
        )  # fmt: skip


def _board(number: int, nodes: int) -> SimFunction:
    node, index = number % nodes, number // nodes
    root_bus = node * BUSES_PER_NODE
    address = f"0000:{root_bus:02x}:{4 + index // 8:02x}.{index % 8}"
    return SimFunction(
        address, f"devices/pci0000:{root_bus:02x}", gpus.INTEL, 0x3450 + index, BOARD << 8, node, 5000 + number
    )
