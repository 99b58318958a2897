"""Whole trees: every fact of a large host comes out, and no damage to a tree makes up a fact or a unit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.inventory import pci
from agent.inventory.pciids import PciIds
from agent.inventory.read import MAX_NICS, MAX_NOTE, MAX_NOTES, Memory, read_inventory
from agent.inventory.sysfs import RealSysfs
from gpupool.v1 import inventory_pb2
from tests.fakes import big_host
from tests.fakes.mutated import Answer, MutatedSysfs, Question, RememberingSysfs

DEVICES = "bus/pci/devices"
GPU, NIC, PORT = "0000:04:00.0", "0000:05:00.0", "0000:00:02.0"
SWITCH = ("0000:00:02.0", "0000:02:00.0", "0000:03:00.0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("big") / "sys"
    big_host.build(tree, nodes=2, functions=80, cores_per_node=4)
    return tree


def test_every_fact_of_a_gpu_behind_a_switch(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pci.ids").write_text("10de  NVIDIA Corporation\n\t2330  GH100 [H100 SXM5 80GB]\n")
    inventory = read_inventory(RealSysfs(root), memory=Memory(names=PciIds([tmp_path / "pci.ids"])))
    unit = next(unit for unit in inventory.units if unit.id == GPU)
    assert (unit.model, unit.gpu_memory_mib, unit.memory_source, unit.numa_node, unit.unfit) == (
        *("nvidia-h100-80gb", 81920, "table", 0, ""),
    )
    (gpu,) = unit.functions
    window = 0x20_0000_0000_00 + (4 << 40)
    assert gpu == inventory_pb2.PciFunction(
        address=GPU,
        vendor_id=0x10DE,
        device_id=0x2330,
        class_code=0x030200,
        iommu_group=1004,
        numa_node=0,
        reset_methods=["flr", "bus"],
        largest_bar_bytes=128 << 30,
        link_speed_mts=16000,
        link_width=16,
        bars=[
            inventory_pb2.Bar(index=0, bytes=16 << 20, address=0x8000_0000 + (4 << 23)),
            inventory_pb2.Bar(index=1, bytes=128 << 30, address=window + (1 << 37), is_64bit=True, prefetchable=True),
            inventory_pb2.Bar(index=3, bytes=32 << 20, address=window + (3 << 37), is_64bit=True, prefetchable=True),
        ],
        link_speed_max_mts=16000,
        link_width_max=16,
        path=SWITCH,
        root_bus="0000:00",
        vendor_name="NVIDIA Corporation",
        device_name="GH100 [H100 SXM5 80GB]",
        subsystem_vendor_id=0x10DE,
        subsystem_device_id=0x1533,
        serial="48b02d00000003ec",
        power_state="D0",
    )
    assert not inventory.notes


def test_nics_come_with_their_virtual_functions_and_share_a_path_with_their_gpu(root: Path) -> None:
    inventory = read_inventory(RealSysfs(root))
    nics = {nic.address: nic for nic in inventory.nics}
    virtual = [f"0000:05:00.{number}" for number in range(1, 5)]
    assert (nics[NIC].sriov_total, list(nics[NIC].sriov_present)) == (16, virtual)
    assert [nics[address].physical_function for address in virtual] == [NIC] * 4
    assert nics[NIC].serial == "b8cef603000003ed"
    assert list(nics[NIC].path[:2]) == list(SWITCH[:2])
    assert list(nics) == sorted(nics)
    assert len(nics) == 2 * 2 * 5 + 1


def test_nodes_of_a_large_host(root: Path) -> None:
    for node in read_inventory(RealSysfs(root)).numa_nodes:
        assert node.memory_mib == (256 << 10) - 2 * big_host.HUGEPAGES
        assert [(page.size_kib, page.total, page.free) for page in node.hugepages] == [
            (2048, 1024, 1024),
            (1 << 20, 0, 0),
        ]
        assert list(node.distances) == ([10, 21] if node.id == 0 else [21, 10])


def test_too_many_nics_leave_virtual_ones_out(tmp_path: Path) -> None:
    big_host.build(tmp_path / "sys", nodes=2, functions=60, cores_per_node=1)
    good = RememberingSysfs(tmp_path / "sys")
    read_inventory(good)
    copies = {f"{domain:04x}:05:00.1" for domain in range(1, MAX_NICS + 10)}
    changes: dict[Question, Answer] = {
        ("list", DEVICES): tuple(sorted({*good.list(DEVICES), *copies})),
        **{
            (kind, path.replace("0000:05:00.1", copy)): answer
            for (kind, path), answer in good.answers.items()
            for copy in copies
            if path.startswith(f"{DEVICES}/0000:05:00.1")
        },
        **{("link", f"{DEVICES}/{copy}"): None for copy in copies},
    }
    inventory = read_inventory(MutatedSysfs(good, changes))
    assert len(inventory.nics) == MAX_NICS
    assert sum(1 for nic in inventory.nics if not nic.physical_function) == 5
    assert any("network functions left out" in note for note in inventory.notes)


def test_what_is_far_from_a_gpu_is_not_asked_much(root: Path) -> None:
    asked = RememberingSysfs(root)
    read_inventory(asked)
    far = "0000:00:04.0"
    assert sorted(path.removeprefix(f"{DEVICES}/{far}") for _, path in asked.answers if far in path) == [
        *("", "/class", "/iommu_group"),
    ]
    assert not [path for _, path in asked.answers if path.startswith(f"{DEVICES}/{PORT}/c") and "config" in path]


def test_hardware_is_not_woken_twice_for_its_serial_number(root: Path) -> None:
    memory = Memory()
    first = read_inventory(RealSysfs(root), memory=memory)
    asked = RememberingSysfs(root)
    assert read_inventory(asked, memory=memory) == first
    assert not [path for _, path in asked.answers if path.endswith("/config")]


def test_a_function_that_goes_while_it_is_read_is_left_out(root: Path) -> None:
    good = RememberingSysfs(root)
    read_inventory(good)
    gone: dict[Question, Answer] = {
        question: () if question[0] == "list" else None
        for question in good.answers
        if question[1].startswith(f"{DEVICES}/{GPU}")
    }
    inventory = read_inventory(MutatedSysfs(good, gone))
    assert GPU not in {unit.id for unit in inventory.units}
    assert inventory.notes == [f"{GPU}: went while it was being read; left out"]


def test_a_group_that_holds_what_cannot_be_read_is_not_handed_out(root: Path) -> None:
    good = RememberingSysfs(root)
    read_inventory(good)
    members = f"{DEVICES}/{GPU}/iommu_group/devices"
    inventory = read_inventory(MutatedSysfs(good, {("list", members): (GPU, "0000:99:00.0")}))
    assert "also holds what cannot be read: 0000:99:00.0" in next(u.unfit for u in inventory.units if u.id == GPU)
    odd = read_inventory(MutatedSysfs(good, {("list", members): (GPU, "\udcff")}))
    assert "also holds what cannot be read: \\udcff" in next(u.unfit for u in odd.units if u.id == GPU)


@cache
def good_tree() -> tuple[RememberingSysfs, inventory_pb2.Inventory]:
    """A tree of two GPUs that has been read, and what came out. Later readers need no disk, and it is gone by then."""
    with TemporaryDirectory(prefix="gpupool-test-") as folder:
        tree = Path(folder) / "sys"
        big_host.build(tree, nodes=2, functions=44, cores_per_node=2)
        good = RememberingSysfs(tree)
        return good, read_inventory(good)


def questions() -> st.SearchStrategy[Question]:
    return st.deferred(lambda: st.sampled_from(sorted(good_tree()[0].answers)))


NUMBERS = st.integers(-(2**70), 2**70)
TEXTS = st.one_of(
    *(st.binary(max_size=80), NUMBERS.map(lambda number: str(number).encode())),
    *(NUMBERS.map(lambda number: hex(number).encode()), st.just(b"\xff" * 4096), st.just(b"\0" * 256)),
    st.sampled_from([b"0-65535", b"0-65535," * 8000, b"Node 0 MemTotal: 999999999999999 kB", b"Unknown", b"D3cold"]),
)
NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["0000:04:00.0", "0000:05:00.1", "node0", "node9999", "cpu0", "hugepages-2048kB", "\udcff", "nvidia-1"]
    ),
)
TARGETS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["../devices/pci0000:00/0000:00:02.0/0000:04:00.0", "../1004", "0000:05:00.0", "/", ".."]),
)


@st.composite
def any_damage(draw: st.DrawFn) -> dict[Question, Answer]:
    changes: dict[Question, Answer] = {}
    for question in draw(st.lists(questions(), max_size=12)):
        answer = good_tree()[0].answers[question]
        if question[0] == "read":
            assert answer is None or isinstance(answer, bytes)
            cut = (answer or b"")[: draw(st.integers(0, 70))]
            changes[question] = draw(st.one_of(st.none(), TEXTS, st.just(cut)))
        elif question[0] == "list":
            changes[question] = draw(st.one_of(st.just(()), st.lists(NAMES, max_size=6).map(tuple)))
        else:
            changes[question] = draw(st.one_of(st.none(), TARGETS))
    return changes


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_damage(), st.sampled_from([(), ((0x8086, 0x3450),), ((0x10B5, 0x8749), (0, 0))]))
def test_no_damage_makes_the_inventory_fail(changes: dict[Question, Answer], allow: tuple[pci.Ids, ...]) -> None:
    good, _ = good_tree()
    inventory = read_inventory(MutatedSysfs(good, changes), allow=allow)
    again = read_inventory(MutatedSysfs(good, changes), allow=allow)
    assert inventory.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    addresses = [function.address for unit in inventory.units for function in unit.functions]
    assert len(addresses) == len(set(addresses)), "a function is in two units"
    threads = [thread for node in inventory.numa_nodes for core in node.cores for thread in core.threads]
    assert len(threads) == len(set(threads)), "a CPU is in two cores"
    assert len(inventory.notes) <= MAX_NOTES + 1
    assert max(map(len, inventory.notes), default=0) <= MAX_NOTE


UNKNOWN = {"class_code": 0, "iommu_group": -1, "numa_node": -1}  # all others: empty or 0
MAY_DIFFER = {"reset_domain"}  # told by neighbours
LISTS = {"reset_methods", "bars", "path", "sriov_present", "mdev_types", "reset_domain"}


# A GPU and a NIC on node 1, one virtual function, and what leads to them.
LOOKED_AT = ("0000:14:00.0", "0000:15:00.0", "0000:15:00.1", "0000:10:02.0", "0000:12:00.0", "0000:13:00.0", "system/")


def test_each_thing_that_cannot_be_read_is_unknown_and_noted_and_never_made_up() -> None:
    asked = [question for question in good_tree()[0].answers if any(part in question[1] for part in LOOKED_AT)]
    assert len(asked) > 100
    for question in asked:
        check_losses([question])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(questions(), min_size=2, max_size=12, unique=True))
def test_things_that_cannot_be_read_are_unknown_and_never_made_up(lost: list[Question]) -> None:
    check_losses(lost)


def check_losses(lost: list[Question]) -> None:
    good, whole = good_tree()
    inventory = read_inventory(MutatedSysfs(good, {q: () if q[0] == "list" else None for q in lost}))
    known = {function.address: function for unit in whole.units for function in unit.functions}
    known |= {function.address: function for function in whole.nics}
    for function in [*inventory.nics, *(function for unit in inventory.units for function in unit.functions)]:
        before = known.get(function.address)
        for field in inventory_pb2.PciFunction.DESCRIPTOR.fields if before else ():
            if field.name not in MAY_DIFFER:
                value, was = getattr(function, field.name), getattr(before, field.name)
                if field.name in LISTS:
                    assert all(item in was for item in value), (field.name, lost)
                else:
                    assert value in (was, UNKNOWN.get(field.name, type(was)())), (field.name, lost)
    sets = {frozenset(function.address for function in unit.functions) for unit in whole.units}
    for unit in inventory.units:
        if not unit.unfit:
            now = frozenset(function.address for function in unit.functions)
            assert all(now >= before for before in sets if before & now), "part of a unit is offered"
    old_nodes = whole.numa_nodes if ("list", "devices/system/node") not in lost else ()  # else all is node 0, by design
    for old, new in zip(old_nodes, inventory.numa_nodes, strict=False):
        assert {tuple(core.threads) for core in new.cores} <= {tuple(core.threads) for core in old.cores}
    if inventory != whole and any(kind == "read" for kind, _ in lost) and len(lost) == 1:
        assert inventory.notes or lost[0][1].endswith(SILENT), lost


# Files that need not be there: an older kernel lacks them, or another file tells the same.
SILENT = ("secondary_bus_number", "subordinate_bus_number", "config", "isolated", "serial_number", "iommu_group/name")
