"""The parsers: what odd trees come out as, and that no tree whatever makes them fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.inventory import attributes, pci
from agent.inventory.read import MAX_NOTES, read_inventory
from agent.inventory.sysfs import RealSysfs
from agent.inventory.topology import cpu_list
from agent.simulated.tree import build_tree, parse_shape
from tests.unit.sysfs_fake import FakeSysfs, cpu_files, gpu_files, node_files


def fake(*parts: FakeSysfs | dict[str, str | bytes]) -> FakeSysfs:
    whole = FakeSysfs({})
    for part in parts:
        whole.files |= part.files if isinstance(part, FakeSysfs) else part
        whole.links |= part.links if isinstance(part, FakeSysfs) else {}
    return whole


ONE_NODE = fake(cpu_files([[0, 2], [1, 3]]), node_files(0, "0-3"))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0000:21:00.0", "0000:21:00.0"),
        ("21:00.0", "0000:21:00.0"),
        ("0000:AF:1F.7\n", "0000:af:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("0:1:2.3", "0000:01:02.3"),
        ("0000:21:20.0", None),
        ("0000:21:00.8", None),
        ("0000:21:00", None),
        ("٠٠٠٠:21:00.0", None),
        ("", None),
    ],
)
def test_addresses_are_made_canonical(text: str, canonical: str | None) -> None:
    assert pci.canonical_address(text) == canonical


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8", [0, 1, 2, 3, 8]),
        ("", []),
        ("5", [5]),
        ("3-1", None),
        ("0-99999999", None),
        ("0-65535," * 2 + "1", None),  # a file full of these would take minutes
        ("a", None),
        ("1,,2", None),
    ],
)
def test_cpu_lists(text: str, cpus: list[int] | None) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "mts"),
    [
        ("16.0 GT/s PCIe", 16000),
        ("2.5 GT/s PCIe", 2500),
        ("8 GT/s", 8000),
        ("Unknown", 0),
        ("Unknown speed", 0),
        ("x", None),
    ],
)
def test_link_speeds(text: str, mts: int | None) -> None:
    assert attributes.link_speed(text) == mts


@pytest.mark.parametrize(("text", "lanes"), [("16", 16), ("0", 0), ("255", 0), ("63", 0), ("64", None), ("-1", None)])
def test_link_widths(text: str, lanes: int | None) -> None:
    assert attributes.link_width(text) == lanes


def test_a_gpu_comes_out_as_its_files_say() -> None:
    inventory = read_inventory(fake(ONE_NODE, gpu_files("0000:21:00.0", methods="flr bus")), labels={"rack": "r1"})
    (unit,) = inventory.units
    (function,) = unit.functions
    assert (unit.id, unit.model, unit.gpu_memory_mib, unit.numa_node, unit.unfit) == (
        *("0000:21:00.0", "nvidia-a100-80gb", 81920, 0, ""),
    )
    assert (function.class_code, function.iommu_group, list(function.reset_methods)) == (0x030200, 1, ["flr", "bus"])
    assert (function.largest_bar_bytes, function.link_speed_mts, function.link_width) == (1 << 32, 16000, 16)
    assert [list(core.threads) for core in inventory.numa_nodes[0].cores] == [[0, 2], [1, 3]]
    assert inventory.numa_nodes[0].memory_mib == 1024
    assert inventory.labels == {"rack": "r1"}
    assert not inventory.notes


def test_firmware_that_does_not_say_the_node_leaves_it_unknown() -> None:
    inventory = read_inventory(fake(ONE_NODE, gpu_files("0000:21:00.0", numa_node="-1")))
    assert inventory.units[0].numa_node == -1
    assert not inventory.notes


def test_a_node_that_the_host_does_not_have_is_unknown_and_noted() -> None:
    inventory = read_inventory(fake(ONE_NODE, gpu_files("0000:21:00.0", numa_node="7")))
    assert inventory.units[0].numa_node == -1
    assert any("NUMA node 7" in note for note in inventory.notes)


def test_node_ids_may_have_gaps_and_nodes_no_cpus() -> None:
    tree = fake(cpu_files([[0], [1]]), node_files(0, "0"), node_files(8, "1"), node_files(252, ""))
    nodes = read_inventory(tree).numa_nodes
    assert [(node.id, len(node.cores), node.memory_mib) for node in nodes] == [
        (0, 1, 1024),
        (8, 1, 1024),
        (252, 0, 1024),
    ]


def test_long_pci_domains() -> None:
    inventory = read_inventory(fake(ONE_NODE, gpu_files("10000:e1:00.0")))
    assert [unit.id for unit in inventory.units] == ["10000:e1:00.0"]


def test_a_tree_without_nodes_is_one_node() -> None:
    blocks: dict[str, str | bytes] = {
        "devices/system/memory/block_size_bytes": "8000000",
        "devices/system/memory/memory0/state": "online",
        "devices/system/memory/memory1/state": "online",
        "devices/system/memory/memory2/state": "offline",
    }
    inventory = read_inventory(fake(cpu_files([[0, 1]]), blocks))
    assert [(node.id, node.memory_mib) for node in inventory.numa_nodes] == [(0, 256)]
    assert [list(core.threads) for core in inventory.numa_nodes[0].cores] == [[0, 1]]
    assert any("no NUMA nodes" in note for note in inventory.notes)


def test_offline_threads_leave_their_core_and_isolated_ones_take_it_along() -> None:
    tree = fake(cpu_files([[0, 4], [1, 5], [2, 6], [3, 7]]), node_files(0, "0-7"))
    tree.files |= {"devices/system/cpu/online": "0-6", "devices/system/cpu/isolated": "1"}
    inventory = read_inventory(tree, reserved_cpus=[4])
    assert [list(core.threads) for core in inventory.numa_nodes[0].cores] == [[2, 6], [3]]
    assert [note for note in inventory.notes if "isolated" in note]
    assert [note for note in inventory.notes if "offline" in note]


def test_a_reserved_thread_keeps_its_core_even_while_it_is_offline() -> None:
    tree = fake(ONE_NODE, {"devices/system/cpu/online": "0-1,3"})
    (node,) = read_inventory(tree, reserved_cpus=[2]).numa_nodes
    assert [list(core.threads) for core in node.cores] == [[1, 3]]


def test_a_cpu_without_topology_is_left_out_and_noted() -> None:
    tree = fake(ONE_NODE)
    del tree.files["devices/system/cpu/cpu1/topology/core_cpus_list"]
    inventory = read_inventory(tree)
    assert any("cpu1" in note for note in inventory.notes)
    assert [0, 2] in [list(core.threads) for core in inventory.numa_nodes[0].cores]


def test_reserved_memory_is_kept_back_on_every_node() -> None:
    tree = fake(cpu_files([[0], [1]]), node_files(0, "0"), node_files(1, "1", memory_kib=1024))
    assert [node.memory_mib for node in read_inventory(tree, reserved_memory_mib=24).numa_nodes] == [1000, 0]


def test_hugepages_are_counted_by_size_and_are_no_memory_for_others() -> None:
    pages = "devices/system/node/node0/hugepages"
    tree = fake(
        ONE_NODE, huge(f"{pages}/hugepages-2048kB", "100", "60"), huge(f"{pages}/hugepages-1048576kB", "0", "0")
    )
    (node,) = read_inventory(tree).numa_nodes
    assert [(page.size_kib, page.total, page.free) for page in node.hugepages] == [(2048, 100, 60), (1048576, 0, 0)]
    assert node.memory_mib == 1024 - 200


def huge(base: str, total: str, free: str) -> dict[str, str | bytes]:
    return {f"{base}/nr_hugepages": total, f"{base}/free_hugepages": free}


@pytest.mark.parametrize(
    ("total", "free", "found", "note"),
    [
        ("junk", "0", [], "nr_hugepages is 'junk'"),
        ("", "", [], "nr_hugepages is ''"),
        ("-1", "0", [], "nr_hugepages is '-1'"),
        ("10", "junk", [(2048, 10, 0)], "free_hugepages is 'junk'"),
        ("10", "11", [(2048, 10, 0)], "11 pages are free, of 10"),
        ("4000", "0", [(2048, 4000, 0)], "no memory is left"),
    ],
)
def test_odd_hugepages(total: str, free: str, found: list[tuple[int, int, int]], note: str) -> None:
    tree = fake(ONE_NODE, huge("devices/system/node/node0/hugepages/hugepages-2048kB", total, free))
    inventory = read_inventory(tree)
    (node,) = inventory.numa_nodes
    assert [(page.size_kib, page.total, page.free) for page in node.hugepages] == found
    assert any(note in line for line in inventory.notes)
    assert node.memory_mib == (1024 - 20 if (total, len(found)) == ("10", 1) else 0)
    assert found or any("its ordinary memory counts as none" in line for line in inventory.notes)


def test_a_node_whose_hugepages_cannot_be_counted_offers_no_ordinary_memory() -> None:
    pages = "devices/system/node/node0/hugepages"
    tree = fake(ONE_NODE, huge(f"{pages}/hugepages-1048576kB", "", ""), huge(f"{pages}/hugepages-2048kB", "100", "60"))
    inventory = read_inventory(tree)
    (node,) = inventory.numa_nodes
    assert (node.memory_mib, [page.size_kib for page in node.hugepages]) == (0, [2048])
    assert (
        "node 0: how much is set aside as hugepages is unknown; its ordinary memory counts as none" in inventory.notes
    )


def test_hugepages_of_a_host_without_nodes() -> None:
    blocks: dict[str, str | bytes] = {
        "devices/system/memory/block_size_bytes": "8000000",
        "devices/system/memory/memory0/state": "online",
    }
    tree = fake(cpu_files([[0]]), blocks, huge("kernel/mm/hugepages/hugepages-2048kB", "8", "8"))
    (node,) = read_inventory(tree).numa_nodes
    assert (node.memory_mib, [page.total for page in node.hugepages]) == (128 - 16, [8])


def test_distances_are_those_to_the_nodes_that_are_there() -> None:
    tree = fake(
        cpu_files([[0], [1]]),
        node_files(0, "0", distance="10 40"),
        node_files(8, "1", distance="40 10"),
    )
    inventory = read_inventory(tree)
    assert [list(node.distances) for node in inventory.numa_nodes] == [[10, 40], [40, 10]]
    assert not inventory.notes


@pytest.mark.parametrize("text", ["10", "10 x", "10 20 30", "", "10 -20"])
def test_distances_that_do_not_fit_the_nodes_are_unknown(text: str) -> None:
    tree = fake(cpu_files([[0], [1]]), node_files(0, "0", distance=text), node_files(1, "1", distance="20 10"))
    inventory = read_inventory(tree)
    assert [list(node.distances) for node in inventory.numa_nodes] == [[], [20, 10]]
    assert any("no list of 2 distances" in note for note in inventory.notes)


def test_a_power_host() -> None:
    """SMT8 with threads switched off, node ids with gaps, a node of GPU memory without CPUs, several PCI domains."""
    cores = [[8 * core] for core in range(4)]
    off: dict[str, str | bytes] = {
        f"devices/system/cpu/cpu{cpu}/topology/physical_package_id": "0" for cpu in range(32) if cpu % 8
    }
    tree = fake(
        *(cpu_files(cores), off, node_files(0, "0-15", distance="10 40 80"), gpu_files("0004:04:00.0", numa_node="0")),
        *(node_files(8, "16-31", distance="40 10 80"), node_files(252, "", distance="80 80 10")),
        *(gpu_files("0035:03:00.0", numa_node="8", group="2"), gpu_files("0006:00:00.0", numa_node="252", group="3")),
    )
    inventory = read_inventory(tree)
    assert [(node.id, [list(core.threads) for core in node.cores]) for node in inventory.numa_nodes] == [
        *((0, [[0], [8]]), (8, [[16], [24]]), (252, [])),
    ]
    assert [(unit.id, unit.numa_node) for unit in inventory.units] == [
        *(("0004:04:00.0", 0), ("0006:00:00.0", 252), ("0035:03:00.0", 8)),
    ]


def test_a_kernel_of_2013() -> None:
    """Linux 3.10: no reset_method, link attributes, power_state, core_cpus_list; here without an IOMMU, too."""
    base = "bus/pci/devices/0000:21:00.0"
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0", group=None))
    for name in ("reset_method", "current_link_speed", "current_link_width"):
        del tree.files[f"{base}/{name}"]
    tree.files[f"{base}/reset"] = ""
    for cpu in range(4):
        siblings = tree.files.pop(f"devices/system/cpu/cpu{cpu}/topology/core_cpus_list")
        tree.files[f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = siblings
    inventory = read_inventory(tree)
    (unit,) = inventory.units
    (function,) = unit.functions
    assert unit.unfit == "0000:21:00.0 has no IOMMU group (is the IOMMU switched on?)"
    assert (list(function.reset_methods), function.link_width, function.power_state) == (["default"], 0, "")
    assert (list(function.path), function.root_bus, function.serial) == ([], "", "")
    assert [list(core.threads) for core in inventory.numa_nodes[0].cores] == [[0, 2], [1, 3]]
    assert not inventory.notes


def test_isolated_cpus_are_told_of_where_they_are() -> None:
    tree = fake(cpu_files([[0, 2], [1, 3]]), node_files(0, "0,2"), node_files(1, "1,3"))
    tree.files["devices/system/cpu/isolated"] = "1,3,9"
    assert [list(node.isolated_cpus) for node in read_inventory(tree).numa_nodes] == [[], [1, 3]]


@pytest.mark.parametrize("code", ["0x0b4000", "0x020000", "0x120000"])
def test_the_operator_says_what_is_a_gpu(code: str) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), {"bus/pci/devices/0000:21:00.0/class": code})
    (unit,) = read_inventory(tree, allow=[(0x10DE, 0x20B5)]).units
    assert (unit.id, unit.unfit) == ("0000:21:00.0", "")
    others = read_inventory(tree, allow=[(0x10DE, 0x20B6), (0x1AF4, 0x20B5)]).units
    assert bool(others) == (code == "0x120000")


@pytest.mark.parametrize(("code", "reason"), [("0x010802", "storage"), ("0x060400", None)])
def test_what_the_operator_cannot_make_a_gpu(code: str, reason: str | None) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), {"bus/pci/devices/0000:21:00.0/class": code})
    found = read_inventory(tree, allow=[(0x10DE, 0x20B5)]).units
    assert [reason in unit.unfit for unit in found if reason] == ([True] if reason else [])


@pytest.mark.parametrize(
    ("code", "text", "unfit"),
    [
        *(("0x030000", "0", False), ("0x030000", "", True), ("0x030000", "x", True), ("0x030000", None, True)),
        *(("0x030200", None, False), ("0x030200", "0", False), ("0x120000", None, False)),
    ],
)
def test_a_vga_function_that_may_be_the_boot_vga_is_kept_out(code: str, text: str | None, *, unfit: bool) -> None:
    base = "bus/pci/devices/0000:21:00.0"
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), {f"{base}/class": code})
    if text is not None:
        tree.files[f"{base}/boot_vga"] = text
    (unit,) = read_inventory(tree).units
    assert unit.unfit == ("0000:21:00.0 may be the boot VGA: its boot_vga cannot be read" if unfit else "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("vendor", "0x1"), ("vendor", "0xffff"), ("device", "0xffff"), ("device", "0x20b"), ("vendor", "10de")),
        *(("device", "0x020b5"), ("vendor", "")),
    ],
)
def test_ids_that_are_cut_short_or_no_answer_are_unknown(name: str, text: str) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), {f"bus/pci/devices/0000:21:00.0/{name}": text})
    inventory = read_inventory(tree)
    (unit,) = inventory.units
    assert unit.unfit == "0000:21:00.0: vendor or device id cannot be read"
    assert inventory.notes == [f"0000:21:00.0: {name} is {text!r}, which makes no sense"]


@pytest.mark.parametrize("text", ["0x03", "0x0302", "0x03020", "0x0", "0xffffff", "030200"])
def test_a_class_that_is_cut_short_is_noted(text: str) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), {"bus/pci/devices/0000:21:00.0/class": text})
    inventory = read_inventory(tree)
    assert not inventory.units
    assert inventory.notes == [f"0000:21:00.0: class is {text!r}, which makes no sense"]
    (unit,) = read_inventory(tree, allow=[(0x10DE, 0x20B5)]).units
    assert "class cannot be read" in unit.unfit, "nor does an operator's list tell what else it is"


@pytest.mark.parametrize("listed", [False, True])
def test_a_group_of_which_the_list_cannot_be_read_is_not_taken_for_a_lone_one(*, listed: bool) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"))
    base = "bus/pci/devices/0000:21:00.0/iommu_group/devices"
    del tree.links[f"{base}/0000:21:00.0"]
    if listed:
        tree.links[f"{base}/0000:22:00.0"] = "../../../../devices/0000:22:00.0"
    (unit,) = read_inventory(tree).units
    lost = "0000:21:00.0 is not in the list of its IOMMU group 1: who shares it is unknown"
    other = "; IOMMU group 1 of 0000:21:00.0 also holds what cannot be read: 0000:22:00.0"
    assert unit.unfit == lost + (other if listed else "")


def gpu_with_bar(size: int, device: str, code: str = "0x030000", flags: int = 0x14220C) -> FakeSysfs:
    base = "bus/pci/devices/0000:21:00.0"
    bar = f"0x{1 << 44:016x} 0x{(1 << 44) + size - 1:016x} 0x{flags:016x}\n" + "0x0 0x0 0x0\n" * 6
    return fake(
        ONE_NODE, gpu_files("0000:21:00.0"), {f"{base}/resource": bar, f"{base}/device": device, f"{base}/class": code}
    )


@pytest.mark.parametrize(
    ("tree", "memory"),
    [
        (gpu_with_bar(1 << 37, "0x20b5"), (81920, "table")),  # what is known goes first
        (gpu_with_bar(1 << 28, "0xfff0"), (0, "")),  # the window of a GPU of any size
        (gpu_with_bar(1 << 34, "0xfff0"), (16384, "bar")),
        (gpu_with_bar(1 << 34, "0xfff0", flags=0x40200), (0, "")),  # registers, not memory
        (gpu_with_bar(3 << 33, "0xfff0"), (0, "")),  # no BAR has such a size
        (gpu_with_bar(1 << 50, "0xfff0"), (0, "")),
        (gpu_with_bar(1 << 34, "0xfff0", "0x0b4000"), (0, "")),  # no GPU by its class
    ],
)
def test_memory_has_a_source_or_is_unknown(tree: FakeSysfs, memory: tuple[int, str]) -> None:
    (unit,) = read_inventory(tree, allow=[(0x10DE, 0xFFF0)]).units
    assert (unit.gpu_memory_mib, unit.memory_source) == memory


def test_the_memory_of_a_known_device_without_any_is_not_taken_from_a_bar() -> None:
    tree = gpu_with_bar(1 << 34, "0x1050")
    tree.files["bus/pci/devices/0000:21:00.0/vendor"] = "0x1af4"
    (unit,) = read_inventory(tree).units
    assert (unit.model, unit.gpu_memory_mib, unit.memory_source) == ("virtio-gpu", 0, "")


def test_a_link_that_is_down_is_noted_unless_the_device_sleeps() -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"))
    base = "bus/pci/devices/0000:21:00.0"
    tree.files |= {f"{base}/current_link_width": "63", f"{base}/max_link_width": "16", f"{base}/power_state": "D0"}
    inventory = read_inventory(tree)
    assert inventory.notes == ["0000:21:00.0: its link is down, or it does not answer"]
    assert inventory.units[0].functions[0].link_width == 0
    tree.files[f"{base}/power_state"] = "D3cold"
    assert not read_inventory(tree).notes


def test_a_virtual_function_has_no_link_of_its_own() -> None:
    """Its registers tell its parent's width at best, and nothing now, which would look like a link that is down."""
    tree = fake(ONE_NODE, gpu_files("0000:21:00.1"))
    base = "bus/pci/devices/0000:21:00.1"
    tree.files |= {f"{base}/class": "0x020000", f"{base}/power_state": "D0"}
    tree.files |= {f"{base}/current_link_width": "0", f"{base}/max_link_width": "16"}
    tree.links[f"{base}/physfn"] = "../0000:21:00.0"
    inventory = read_inventory(tree)
    (nic,) = inventory.nics
    assert (nic.link_speed_mts, nic.link_width, nic.link_width_max) == (0, 0, 0)
    assert not inventory.notes


def test_groups_without_an_iommu_are_no_groups() -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"))
    tree.files["bus/pci/devices/0000:21:00.0/iommu_group/name"] = "vfio-noiommu\n"
    (unit,) = read_inventory(tree).units
    assert "isolates nothing" in unit.unfit


def test_mediated_devices_are_told_of_and_spoil_their_gpu_while_in_use() -> None:
    types = "bus/pci/devices/0000:21:00.0/mdev_supported_types"
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), {f"{types}/nvidia-105/available_instances": "1"})
    (unit,) = read_inventory(tree).units
    assert (list(unit.functions[0].mdev_types), unit.unfit) == (["nvidia-105"], "")
    tree.files[f"{types}/nvidia-105/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/x"] = ""
    (unit,) = read_inventory(tree).units
    assert unit.unfit == "0000:21:00.0 has 1 mediated devices in use"


@pytest.mark.parametrize("numvfs", ["2", "0", "junk"])
def test_virtual_functions_that_are_there_count_whatever_their_number_is_said_to_be(numvfs: str) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"), gpu_files("0000:21:00.4", group="2"))
    base = "bus/pci/devices/0000:21:00.0"
    tree.files |= {f"{base}/sriov_totalvfs": "16", f"{base}/sriov_numvfs": numvfs}
    tree.links |= {f"{base}/virtfn0": "../0000:21:00.4", "bus/pci/devices/0000:21:00.4/physfn": "../0000:21:00.0"}
    inventory = read_inventory(tree)
    (unit,) = inventory.units
    assert f"has {'2' if numvfs == '2' else '1'} SR-IOV virtual functions switched on" in unit.unfit
    assert list(unit.functions[0].sriov_present) == ["0000:21:00.4"]
    assert "0000:21:00.4: an SR-IOV virtual function; not offered" in inventory.notes


def test_a_reset_method_that_nobody_knows_resets_nothing() -> None:
    (unit,) = read_inventory(fake(ONE_NODE, gpu_files("0000:21:00.0", methods="exorcism"))).units
    assert "no usable reset method" in unit.unfit
    assert list(unit.functions[0].reset_methods) == ["exorcism"]


@pytest.mark.parametrize("name", ["vendor", "device", "class"])
def test_an_unreadable_identity_is_noted_and_never_offered(name: str) -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"))
    del tree.files[f"bus/pci/devices/0000:21:00.0/{name}"]
    inventory = read_inventory(tree)
    assert f"0000:21:00.0: {name} cannot be read" in inventory.notes
    assert not [unit for unit in inventory.units if not unit.unfit]


def test_a_kernel_that_does_not_name_its_reset_methods() -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0"))
    del tree.files["bus/pci/devices/0000:21:00.0/reset_method"]
    tree.files["bus/pci/devices/0000:21:00.0/reset"] = ""
    (unit,) = read_inventory(tree).units
    assert (list(unit.functions[0].reset_methods), unit.unfit) == (["default"], "")


def test_nonsense_is_noted_with_its_place() -> None:
    tree = fake(ONE_NODE, gpu_files("0000:21:00.0", numa_node="cheese"), {"bus/pci/devices/what/vendor": "0x1"})
    notes = "\n".join(read_inventory(tree).notes)
    assert "0000:21:00.0: numa_node is 'cheese', which makes no sense" in notes
    assert "'what' is no PCI address" in notes


def test_notes_are_bounded() -> None:
    entries: dict[str, str | bytes] = {f"bus/pci/devices/odd{number}/vendor": "" for number in range(2 * MAX_NOTES)}
    assert len(read_inventory(fake(ONE_NODE, entries)).notes) == MAX_NOTES + 1


def test_an_empty_tree() -> None:
    inventory = read_inventory(FakeSysfs({}))
    assert [(node.id, len(node.cores), node.memory_mib) for node in inventory.numa_nodes] == [(0, 0, 0)]
    assert not inventory.units
    assert inventory.notes


def test_this_machine(tmp_path: Path) -> None:
    inventory = read_inventory(RealSysfs())
    assert inventory.numa_nodes
    read_inventory(RealSysfs(tmp_path / "missing")).SerializeToString()


TEMPLATE = fake(
    *(ONE_NODE, gpu_files("0000:21:00.0"), gpu_files("0000:21:00.1", group="2"), gpu_files("0000:22:00.0", group="2")),
)
TEMPLATE.files |= {"bus/pci/devices/0000:20:00.0/config": bytes(0x0E) + b"\x01" + bytes(10) + b"\x21\x22" + bytes(37)}
TEMPLATE.files |= {"bus/pci/devices/0000:20:00.0/class": "0x060400"}
NUMBERS = st.integers(min_value=-(2**70), max_value=2**70)
CONTENT = st.one_of(
    *(st.none(), st.just(""), st.text(max_size=40), st.binary(max_size=80)),
    *(NUMBERS.map(str), NUMBERS.map(hex), st.sampled_from(["0-3", "0,0,0", "Node 0 MemTotal: 9999999999999999 kB"])),
    *(
        st.lists(NUMBERS.map(hex), max_size=25).map(" ".join),
        st.sampled_from([b"\xff" * 64, b"\x00" * 64, b"\x01" * 63]),
    ),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.dictionaries(st.sampled_from(sorted(TEMPLATE.files)), CONTENT, max_size=12),
    cut=st.dictionaries(st.sampled_from(sorted(TEMPLATE.files)), st.integers(0, 20), max_size=12),
    links=st.dictionaries(
        st.sampled_from([*sorted(TEMPLATE.links), "bus/pci/devices/0000:21:00.0/driver"]),
        st.one_of(st.text(max_size=20), NUMBERS.map(str)),
        max_size=3,
    ),
    extra=st.dictionaries(st.text(max_size=12).map(lambda name: f"bus/pci/devices/{name}/vendor"), st.text(max_size=9)),
    reserved=st.integers(0, 2**40),
)
def test_no_tree_makes_the_parsers_fail(
    changes: dict[str, str | bytes | None],
    cut: dict[str, int],
    links: dict[str, str],
    extra: dict[str, str],
    reserved: int,
) -> None:
    tree = fake(TEMPLATE)
    for path, content in changes.items():
        if content is None:
            del tree.files[path]
        else:
            tree.files[path] = content
    for path, length in cut.items():
        if path in tree.files:
            tree.files[path] = tree.files[path][:length]
    tree.files |= extra
    tree.links |= links
    inventory = read_inventory(tree, reserved_memory_mib=reserved)
    assert inventory.SerializeToString(deterministic=True) == read_inventory(
        tree, reserved_memory_mib=reserved
    ).SerializeToString(deterministic=True)
    addresses = [function.address for unit in inventory.units for function in unit.functions]
    assert len(addresses) == len(set(addresses)), "a function is in two units"
    threads = [thread for node in inventory.numa_nodes for core in node.cores for thread in core.threads]
    assert len(threads) == len(set(threads)), "a CPU is in two cores"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_tree_on_disk_reads_too(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("sysfs") / "host"
    build_tree(root, parse_shape("nvidia-t4,nvidia-l4"))
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for path in data.draw(st.lists(st.sampled_from(files), max_size=8, unique=True)):
        match data.draw(st.sampled_from(["gone", "empty", "directory", "noise"])):
            case "gone":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case "directory":
                path.unlink()
                path.mkdir()
            case _:
                path.write_bytes(data.draw(st.binary(max_size=100)))
    read_inventory(RealSysfs(root)).SerializeToString()
