"""Simulated hosts: the tree reads like a kernel's, and writing to it works like a kernel's."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest

from agent.inventory.pci import DEVICES
from agent.inventory.read import read_inventory
from agent.inventory.sysfs import RealSysfs
from agent.simulated.kernel import CONFIG_FF, SimulatedSysfs
from agent.simulated.tree import MAX_GPUS_PER_NODE, HostShape, build_tree, parse_gpus, parse_shape

GPU, AUDIO, PORT, NIC = "0000:01:00.0", "0000:01:00.1", "0000:00:01.0", "0000:02:00.0"
SMALL = HostShape(("nvidia-l4",), numa_nodes=1, cores_per_node=1)


@pytest.fixture
def sysfs(tmp_path: Path) -> SimulatedSysfs:
    build_tree(tmp_path / "sys", SMALL)
    return SimulatedSysfs(tmp_path / "sys")


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("2xnvidia-l4, nvidia-t4", ("nvidia-l4", "nvidia-l4", "nvidia-t4")),
        ("1 x amd-mi300x", ("amd-mi300x",)),
        ("", ()),
        ("0xnvidia-l4", ()),
    ],
)
def test_parse_gpus(text: str, models: tuple[str, ...]) -> None:
    assert parse_gpus(text) == models


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4xnvidia-a1000", "no GPU model 'nvidia-a1000'; there are amd-mi100"),
        ("4*l4", "write for example"),
        (",", "''"),
    ],
)
def test_parse_gpus_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"numa_nodes": 0}, "numa_nodes is 0; it must be from 1"),
        ({"cores_per_node": 4096}, "16384 CPUs in all"),
        ({"gpus": ("nvidia-l4",) * (2 * MAX_GPUS_PER_NODE + 1)}, "25 GPUs on 2 NUMA nodes"),
        ({"gpus": ("nvidia-none",)}, "no GPU model"),
        ({"memory_mib_per_node": 1024, "hugepages_per_node": 513}, "hugepages_per_node is 513"),
    ],
)
def test_a_shape_that_cannot_be(shape: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostShape(**shape)  # type: ignore[arg-type]


def test_the_tree_reads_as_the_shape_says(tmp_path: Path) -> None:
    shape = parse_shape("4xnvidia-a100-80gb,2xnvidia-h100-80gb", HostShape(cores_per_node=4, memory_mib_per_node=65536))
    build_tree(tmp_path / "sys", shape)
    inventory = read_inventory(SimulatedSysfs(tmp_path / "sys"))
    assert not inventory.notes
    assert not [unit.unfit for unit in inventory.units if unit.unfit]
    assert sorted((unit.numa_node, unit.model) for unit in inventory.units) == [
        *([(0, "nvidia-a100-80gb")] * 2 + [(0, "nvidia-h100-80gb")]),
        *([(1, "nvidia-a100-80gb")] * 2 + [(1, "nvidia-h100-80gb")]),
    ]
    assert {len(unit.functions) for unit in inventory.units} == {2}
    assert {unit.functions[0].largest_bar_bytes for unit in inventory.units} == {128 << 30}
    assert [(node.id, len(node.cores), node.memory_mib) for node in inventory.numa_nodes] == [
        (0, 4, 65536),
        (1, 4, 65536),
    ]
    assert list(inventory.numa_nodes[1].cores[0].threads) == [4, 12]


@pytest.mark.parametrize("model", ["virtio-gpu", "amd-mi325x", "intel-max-1100"])
def test_the_largest_host_of_each_kind(tmp_path: Path, model: str) -> None:
    shape = HostShape((model,) * 16 * MAX_GPUS_PER_NODE, numa_nodes=16, cores_per_node=1, threads_per_core=1)
    build_tree(tmp_path / "sys", shape)
    inventory = read_inventory(RealSysfs(tmp_path / "sys"))
    assert len(inventory.units) == 16 * MAX_GPUS_PER_NODE
    assert {(unit.model, unit.unfit) for unit in inventory.units} == {(model, "")}


def test_no_two_gpus_have_one_serial_number(tmp_path: Path) -> None:
    serials = []
    for host in ("h1", "h2"):
        build_tree(tmp_path / host, HostShape(("nvidia-l4",) * 2, numa_nodes=1, cores_per_node=1))
        inventory = read_inventory(RealSysfs(tmp_path / host))
        serials += [function.serial for unit in inventory.units for function in unit.functions if function.serial]
    assert len(set(serials)) == 4


def test_hugepages_are_part_of_the_memory(tmp_path: Path) -> None:
    build_tree(tmp_path / "sys", HostShape(numa_nodes=1, memory_mib_per_node=1024, hugepages_per_node=100))
    (node,) = read_inventory(RealSysfs(tmp_path / "sys")).numa_nodes
    assert (node.memory_mib, node.hugepages[0].total) == (824, 100)


def test_bars_of_a_host_do_not_overlap(tmp_path: Path) -> None:
    build_tree(tmp_path / "sys", HostShape(("amd-mi325x", "nvidia-l4") * 4, cores_per_node=1))
    tree = RealSysfs(tmp_path / "sys")
    ranges = []
    for address in tree.list(DEVICES):
        for line in (tree.read(f"{DEVICES}/{address}/resource") or "").splitlines():
            start, end, flags = (int(word, 16) for word in line.split())
            if flags:
                ranges.append((start, end))
    ranges.sort()
    assert len(ranges) == 8 * 4 + 1
    assert all(first[1] < second[0] for first, second in pairwise(ranges))


def test_building_again_keeps_the_state(tmp_path: Path, sysfs: SimulatedSysfs) -> None:
    sysfs.scribble(GPU)
    sysfs.inject(GPU, CONFIG_FF)
    before = sysfs.read_bytes(f"{DEVICES}/{GPU}/config")
    build_tree(sysfs.root, SMALL)
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config") == before
    assert sysfs.read(f".faults/{GPU}") == CONFIG_FF


def test_building_over_something_else_is_refused(tmp_path: Path, sysfs: SimulatedSysfs) -> None:
    with pytest.raises(FileExistsError, match="something other"):
        build_tree(sysfs.root, HostShape(cores_per_node=1))
    (tmp_path / "empty").mkdir()
    build_tree(tmp_path / "empty", SMALL)


def test_links_lead_where_the_kernels_do(sysfs: SimulatedSysfs) -> None:
    home = (sysfs.root / DEVICES / GPU).resolve()
    assert home.relative_to(sysfs.root).as_posix() == f"devices/pci0000:00/{PORT}/{GPU}"
    assert sysfs.link_name(f"{DEVICES}/{GPU}/iommu_group") == "1"
    assert sysfs.list("kernel/iommu_groups/1/devices") == [GPU, AUDIO]
    assert (sysfs.root / "kernel/iommu_groups/1/devices" / AUDIO).resolve() == home.parent / AUDIO
    assert sysfs.link_name(f"{DEVICES}/{NIC}/driver") == "mlx5_core"
    assert (sysfs.root / "bus/pci/drivers/mlx5_core" / NIC / "config").is_file()


def test_probing_follows_the_override_and_is_silent_when_nothing_fits(sysfs: SimulatedSysfs) -> None:
    sysfs.write("bus/pci/drivers_probe", GPU)
    assert sysfs.link_name(f"{DEVICES}/{GPU}/driver") is None
    sysfs.write(f"{DEVICES}/{GPU}/driver_override", "vfio-pci\n")
    sysfs.write("bus/pci/drivers_probe", GPU)
    assert sysfs.link_name(f"{DEVICES}/{GPU}/driver") == "vfio-pci"
    sysfs.write(f"{DEVICES}/{GPU}/driver/unbind", GPU)
    sysfs.write(f"{DEVICES}/{GPU}/driver_override", "\n")
    assert sysfs.read(f"{DEVICES}/{GPU}/driver_override") == "(null)"
    sysfs.write("bus/pci/drivers/snd_hda_intel/unbind", AUDIO)
    sysfs.write("bus/pci/drivers/snd_hda_intel/bind", AUDIO)
    assert sysfs.link_name(f"{DEVICES}/{AUDIO}/driver") == "snd_hda_intel"


@pytest.mark.parametrize(
    ("path", "text", "number"),
    [
        ("bus/pci/drivers_probe", "0000:ff:00.0", errno.ENODEV),
        ("bus/pci/drivers/vfio-pci/bind", GPU, errno.ENODEV),  # without an override
        ("bus/pci/drivers/vfio-pci/unbind", GPU, errno.ENODEV),
        ("bus/pci/drivers/none/bind", GPU, errno.ENOENT),
        ("bus/pci/drivers/mlx5_core/bind", NIC, errno.EBUSY),
        (f"{DEVICES}/{GPU}/driver/unbind", GPU, errno.ENODEV),
        (f"{DEVICES}/{GPU}/reset", "0", errno.EINVAL),
        (f"{DEVICES}/{GPU}/reset_method", "bus", errno.EINVAL),
        (f"{DEVICES}/{GPU}/vendor", "0x1", errno.EACCES),
        (f"{DEVICES}/{GPU}/nonsense", "1", errno.ENOENT),
        (f"{DEVICES}/{PORT}/reset", "1", errno.ENOENT),
        ("devices/system/cpu/online", "0", errno.EACCES),
        ("nonsense", "0", errno.ENOENT),
    ],
)
def test_refusals_are_the_kernels(sysfs: SimulatedSysfs, path: str, text: str, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        sysfs.write(path, text)
    assert caught.value.errno == number


def test_a_reset_restores_what_was_scribbled(sysfs: SimulatedSysfs) -> None:
    pristine = sysfs.read_bytes(f"{DEVICES}/{GPU}/config")
    sysfs.scribble(GPU)
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config") != pristine
    sysfs.write(f"{DEVICES}/{GPU}/reset", "1")
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config") == pristine


def test_a_bridge_resets_all_that_is_behind_it(sysfs: SimulatedSysfs) -> None:
    pristine = [sysfs.read_bytes(f"{DEVICES}/{address}/config") for address in (GPU, AUDIO)]
    sysfs.scribble(GPU)
    sysfs.scribble(AUDIO)
    sysfs.write(f"{DEVICES}/{PORT}/reset_subordinate", "1")
    assert [sysfs.read_bytes(f"{DEVICES}/{address}/config") for address in (GPU, AUDIO)] == pristine


def test_faults_are_checked_where_they_are_injected_and_fail_safe_where_they_are_not(sysfs: SimulatedSysfs) -> None:
    with pytest.raises(ValueError, match="no fault 'fire'"):
        sysfs.inject(GPU, "fire")
    with pytest.raises(OSError, match="No such device"):
        sysfs.inject("0000:ff:00.0", CONFIG_FF)
    (sysfs.root / ".faults" / GPU).write_text("fire")
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        sysfs.write(f"{DEVICES}/{GPU}/reset", "1")


def test_the_real_one_writes_only_to_what_is_there(tmp_path: Path) -> None:
    tree = RealSysfs(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        tree.write("missing", "1")
    (tmp_path / "attribute").write_text("12345")
    tree.write("attribute", "9")
    assert tree.read("attribute") == "92345", "a sysfs write truncates nothing"
    assert tree.read_bytes("attribute", 2) == b"92"
    assert (tree.read("."), tree.list("attribute"), tree.link_name("attribute"), tree.read("a\0b")) == (
        None,
        [],
        None,
        None,
    )
