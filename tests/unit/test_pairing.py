"""GPUs and network adapters: who is paired with whom, what is never handed out, and how such a unit is reset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import ConfigError, parse_nics
from agent.devices.baseline import NotClean, sight
from agent.devices.health import read_vitals
from agent.devices.rescan import rescan
from agent.devices.reset import Means, by_bus, by_function
from agent.inventory.pairing import Choice, Near, pair
from agent.inventory.pci import Function, read_functions
from agent.inventory.pcitree import PciTree
from agent.inventory.units import DeviceUnit, device_units
from agent.simulated.kernel import SimulatedSysfs
from gpupool.v1 import job_pb2
from gpupool.v1.inventory_pb2 import PciFunction, Unit
from scheduler.codec.decode_rules import rules_of
from scheduler.core.state.rules import Nic, Rules
from tests.fakes.device_rig import AUDIO, DEVICES, GPU, inline, simulated_host, unit_of
from tests.unit.sysfs_fake import FakeSysfs
from tests.unit.test_units import bridge, gpu, other

MLX = Choice(ids=frozenset({(0x8086, 0x1111)}))
SWITCHED = ("0000:20:00.0", "0000:21:00.0")  # root port, a switch's upstream port


def nic(address: str, group: int, *path: str, root: str = "0000:20", **changes: object) -> Function:
    return other(address, 0x020000, group, "mlx5_core", path=path, root_bus=root, **changes)


def at(address: str, group: int, *path: str, root: str = "0000:20", node: int = 0) -> Function:
    return gpu(address, group, path=path, root_bus=root, numa_node=node)


def paired(
    functions: list[Function], choice: Choice = MLX, before: dict[str, str] | None = None
) -> tuple[list[DeviceUnit], list[str]]:
    notes: list[str] = []
    tree = PciTree(functions)
    return pair(device_units(tree), tree, choice, {} if before is None else before, notes.append), notes


def who(units: list[DeviceUnit]) -> dict[str, tuple[str, int]]:
    return {unit.id: (unit.nic, unit.nic_near) for unit in units}


def test_the_nearest_nic_goes_with_each_gpu_and_becomes_part_of_its_unit() -> None:
    first, second = at("0000:23:00.0", 1, *SWITCHED, "0000:22:00.0"), at("0000:33:00.0", 2, "0000:20:01.0")
    far = nic("0000:43:00.0", 3, "0000:40:00.0", root="0000:40", numa_node=0)
    near = nic("0000:24:00.0", 4, *SWITCHED, "0000:22:01.0")
    units, notes = paired([first, second, far, near])
    assert who(units) == {
        "0000:23:00.0": ("0000:24:00.0", Near.SWITCH),
        "0000:33:00.0": ("0000:43:00.0", Near.NUMA_NODE),
    }
    assert [function.address for function in units[0].functions] == ["0000:23:00.0", "0000:24:00.0"]
    assert (units[0].unfit, units[1].unfit, notes) == ("", "", [])


def test_what_is_not_offered_leaves_the_nic_to_a_gpu_that_is() -> None:
    """The server's own display has the lowest address on many machines, and no VM ever gets it."""
    screen = replace(at("0000:21:00.0", 1, *SWITCHED), boot_vga=True)
    card, there = at("0000:33:00.0", 2, "0000:20:01.0"), nic("0000:24:00.0", 3, *SWITCHED)
    assert who(paired([screen, card, there])[0]) == {
        screen.address: ("", 0),
        card.address: (there.address, Near.PCIE_ROOT),
    }
    assert who(paired([screen, there])[0]) == {screen.address: (there.address, Near.SWITCH)}


def test_below_one_root_is_nearer_than_on_one_node() -> None:
    root = nic("0000:25:00.0", 4, "0000:20:05.0")
    node = nic("0000:45:00.0", 5, "0000:40:00.0", root="0000:40", numa_node=0)
    units, notes = paired([at("0000:23:00.0", 1, "0000:20:01.0"), node, root])
    assert who(units) == {"0000:23:00.0": ("0000:25:00.0", Near.PCIE_ROOT)}
    assert notes == ["0000:45:00.0: a NIC that may be handed out, and no GPU near it is without one"]


@pytest.mark.parametrize("nodes", [(0, 1), (-1, -1)])
def test_a_nic_that_nobody_knows_to_be_near_goes_with_no_gpu(nodes: tuple[int, int]) -> None:
    there = nic("0000:45:00.0", 5, root="0000:40", numa_node=nodes[1])
    units, notes = paired([at("0000:23:00.0", 1, node=nodes[0]), there])
    assert who(units) == {"0000:23:00.0": ("", 0)}
    assert len(notes) == 1


def test_only_what_the_operator_has_listed_is_handed_out() -> None:
    here = [at("0000:23:00.0", 1, *SWITCHED), nic("0000:24:00.0", 4, *SWITCHED)]
    assert who(paired(here, Choice())[0]) == {"0000:23:00.0": ("", 0)}
    assert who(paired(here, Choice(frozenset({"0000:24:00.0"})))[0])["0000:23:00.0"][0] == "0000:24:00.0"
    not_a_nic = other("0000:24:00.0", 0x0C0330, 4, path=SWITCHED, root_bus="0000:20")
    assert who(paired([here[0], not_a_nic])[0]) == {"0000:23:00.0": ("", 0)}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"virtual_functions": 4}, "has 4 SR-IOV virtual functions switched on; list these"),
        ({"reset_methods": ("bus",)}, "has no reset of its own"),
        ({"iommu_group": -1}, "has no IOMMU group"),
        ({"group_members": ("0000:24:00.0", "0000:24:00.1")}, "also holds what cannot be read"),
    ],
)
def test_what_cannot_be_had_alone_or_cleaned_is_not_handed_out(fault: dict[str, object], told: str) -> None:
    bad = replace(nic("0000:24:00.0", 4, *SWITCHED), **fault)  # type: ignore[arg-type]
    units, notes = paired([at("0000:23:00.0", 1, *SWITCHED), bad])
    assert who(units) == {"0000:23:00.0": ("", 0)}
    assert told in notes[0]


def test_a_nic_takes_the_rest_of_its_group_along_or_stays() -> None:
    both = ("0000:24:00.0", "0000:24:00.1")
    ports = [nic(one, 4, *SWITCHED, group_members=both) for one in both]
    units, _ = paired([at("0000:23:00.0", 1, *SWITCHED), *ports])
    assert [function.address for function in units[0].functions] == ["0000:23:00.0", *both]
    units, notes = paired([at("0000:23:00.0", 1, *SWITCHED), *ports], Choice(frozenset(both[:1])))
    assert (who(units), "0000:24:00.1, which is not listed" in notes[0]) == ({"0000:23:00.0": ("", 0)}, True)


def test_a_pair_stays_when_a_nearer_nic_or_another_gpu_comes_or_goes() -> None:
    """A VM may have both: whoever went through the reclaim with one NIC must not come out with another."""
    before: dict[str, str] = {}
    one, two = at("0000:23:00.0", 1, *SWITCHED), at("0000:25:00.0", 2, *SWITCHED)
    here, there = nic("0000:24:00.0", 3, *SWITCHED), nic("0000:33:00.0", 4, "0000:20:01.0")
    first = who(paired([one, two, here, there], before=before)[0])
    assert first == {"0000:23:00.0": ("0000:24:00.0", Near.SWITCH), "0000:25:00.0": ("0000:33:00.0", Near.PCIE_ROOT)}
    assert who(paired([two, here, there], before=before)[0]) == {"0000:25:00.0": first["0000:25:00.0"]}


def test_a_nic_that_is_in_the_units_group_anyway_is_told_of() -> None:
    both = ("0000:23:00.0", "0000:24:00.0")
    units, _ = paired(
        [replace(at(both[0], 1, *SWITCHED), group_members=both), nic(both[1], 1, *SWITCHED, group_members=both)]
    )
    assert who(units) == {both[0]: (both[1], Near.SWITCH)}


def test_options() -> None:
    assert parse_nics(["15b3:101e", "41:00.2"]) == Choice(frozenset({"0000:41:00.2"}), frozenset({(0x15B3, 0x101E)}))
    with pytest.raises(ConfigError, match="--nic: 'eth0' is neither"):
        parse_nics(["eth0"])


# Cleaning


def test_a_virtual_function_has_its_own_reset_where_the_gpu_has_its_bus(tmp_path: Path) -> None:
    card = at("0000:23:00.0", 1, "0000:20:00.0")
    parent = nic("0000:33:00.0", 2, "0000:20:01.0", virtual_functions=1)
    virtual = nic("0000:33:00.1", 3, "0000:20:01.0", virtual=True, reset_methods=("flr",))
    ports = [bridge("0000:20:00.0", 0x23, resets=True), bridge("0000:20:01.0", 0x33, resets=True)]
    tree = PciTree([card, parent, virtual, *ports])
    unit = Unit(id=card.address, functions=[PciFunction(address=one.address) for one in (card, virtual)])
    means = Means(SimulatedSysfs(tmp_path))
    assert [(step.address, step.method) for step in by_function(means, unit, tree)] == [
        (card.address, "flr"),
        (virtual.address, "flr"),
    ]
    assert [(step.address, step.method) for step in by_bus(means, unit, tree)] == [
        (card.address, "bus"),
        (virtual.address, "flr"),
    ]


async def test_a_virtual_function_is_not_removed_for_it_would_not_come_back(tmp_path: Path) -> None:
    removed: list[str] = []

    class Watched(SimulatedSysfs):
        def _remove(self, address: str) -> None:
            removed.append(address)
            super()._remove(address)

    sysfs = Watched(simulated_host(tmp_path / "sys").root)
    (sysfs.root / DEVICES / AUDIO / "physfn").symlink_to(f"../{GPU}")
    tree = PciTree(read_functions(sysfs, lambda _note: None))
    await rescan(sysfs, unit_of(sysfs), tree, 0, run_blocking=inline)
    assert removed == [GPU]


def test_a_virtual_function_answers_though_its_ids_read_all_ones(tmp_path: Path) -> None:
    sysfs = simulated_host(tmp_path / "sys")
    home = sysfs.root / DEVICES / AUDIO
    space = bytearray((home / "config").read_bytes())
    ids = int.from_bytes(space[:2], "little"), int.from_bytes(space[2:4], "little")
    space[:4] = b"\xff" * 4
    (home / "config").write_bytes(space)
    with pytest.raises(NotClean, match="does not answer"):
        sight(sysfs, AUDIO)
    (home / "physfn").symlink_to(f"../{GPU}")
    assert (sight(sysfs, AUDIO).vendor_id, sight(sysfs, AUDIO).device_id) == ids
    (home / "config").write_bytes(b"\xff" * len(space))
    with pytest.raises(NotClean, match="does not answer"):
        sight(sysfs, AUDIO)


@pytest.mark.parametrize(
    ("header", "answers"), [(b"\xff\xff\xff\xff\x00\x00\x10\x00\x01\x00\x00\x02", True), (b"\xff" * 12, False)]
)
def test_health_of_a_virtual_function(header: bytes, answers: bool) -> None:
    tree = FakeSysfs({f"{DEVICES}/{GPU}/config": header + b"\xff" * 52})
    assert read_vitals(tree, GPU).answers is answers


# What jobs demand


def test_a_demand_for_a_nic_reaches_placement_and_one_of_a_newer_version_is_not_dropped() -> None:
    spec = job_pb2.JobSpec(gpus=job_pb2.GpuRequest(count=1, nic=job_pb2.NIC_LOCALITY_PCIE_ROOT))
    assert rules_of(spec) == Rules(nic=Nic.PCIE_ROOT)
    newer = job_pb2.JobSpec.FromString(bytes.fromhex("2a0408014009"))
    assert newer.gpus.nic == 9
    assert rules_of(newer) == Rules(nic=Nic.SWITCH)


def test_the_values_of_the_contract_are_those_of_the_core_and_of_the_agent() -> None:
    wire = {name.removeprefix("NIC_LOCALITY_"): value for name, value in job_pb2.NicLocality.items()}
    wire["NONE"] = wire.pop("UNSPECIFIED")
    assert {nic.name: int(nic) for nic in Nic} == wire
    assert {near.name: int(near) for near in Near}.items() <= wire.items()
