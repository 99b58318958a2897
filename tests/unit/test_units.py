"""Device units: what belongs together, and what must not be handed out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.inventory import gpus
from agent.inventory.pci import Function
from agent.inventory.units import DeviceUnit, bridge_above, device_units, near_gpus, reset_domain


def gpu(address: str, group: int = 1, **changes: object) -> Function:
    base = Function(address, 0x10DE, 0x20B5, 0x030200, iommu_group=group, numa_node=0, reset_methods=("flr",))
    return replace(base, **{"group_members": (address,), **changes})  # type: ignore[arg-type]


def other(address: str, class_code: int, group: int = 1, driver: str = "", **changes: object) -> Function:
    base = Function(address, 0x8086, 0x1111, class_code, driver=driver, iommu_group=group, reset_methods=("flr",))
    return replace(base, **{"group_members": (address,), **changes})  # type: ignore[arg-type]


def bridge(address: str, first: int, last: int | None = None, group: int = 9, *, resets: bool = False) -> Function:
    return other(address, 0x060400, group, "pcieport", buses=(first, last or first), resets_buses=resets)


def addresses(unit: DeviceUnit) -> list[str]:
    return [function.address for function in unit.functions]


def test_a_lone_gpu_is_a_unit() -> None:
    (unit,) = device_units([gpu("0000:21:00.0")])
    assert (unit.id, addresses(unit), unit.unfit, unit.notes) == ("0000:21:00.0", ["0000:21:00.0"], "", ())


def test_companions_come_along_even_from_another_group() -> None:
    audio = other("0000:21:00.1", 0x040300, group=2, driver="snd_hda_intel")
    usb = other("0000:21:00.2", 0x0C0330, group=3, driver="xhci_hcd")
    (unit,) = device_units([gpu("0000:21:00.0"), audio, usb])
    assert addresses(unit) == ["0000:21:00.0", "0000:21:00.1", "0000:21:00.2"]
    assert not unit.unfit


def test_two_gpus_in_one_group_are_one_unit() -> None:
    (unit,) = device_units([gpu("0000:22:00.0"), gpu("0000:21:00.0")])
    assert (unit.id, addresses(unit), unit.unfit) == ("0000:21:00.0", ["0000:21:00.0", "0000:22:00.0"], "")


def test_gpus_tied_only_through_a_companions_group_are_one_unit() -> None:
    audio = other("0000:21:00.1", 0x040300, group=2)
    (unit,) = device_units([gpu("0000:21:00.0", 1), audio, gpu("0000:22:00.0", 2)])
    assert addresses(unit) == ["0000:21:00.0", "0000:21:00.1", "0000:22:00.0"]


@pytest.mark.parametrize("methods", [("bus",), ()])
def test_gpus_that_only_one_bus_reset_can_clean_are_one_unit(methods: tuple[str, ...]) -> None:
    pair = [gpu("0000:21:00.0", 1, reset_methods=methods), gpu("0000:21:01.0", 2, reset_methods=methods)]
    (unit,) = device_units([bridge("0000:20:00.0", 0x21, resets=True), *pair])
    assert (addresses(unit), unit.unfit) == (["0000:21:00.0", "0000:21:01.0"], "")


def test_a_bus_reset_reaches_below_further_bridges() -> None:
    tree = [
        *(bridge("0000:20:00.0", 0x21, 0x23), bridge("0000:21:00.0", 0x22, 0x23)),
        *(gpu("0000:22:00.0"), gpu("0000:23:00.0"), gpu("0000:24:00.0"), gpu("10000:22:00.0")),
    ]
    assert reset_domain(replace(tree[1], buses=None), tree) == {
        *("0000:21:00.0", "0000:22:00.0", "0000:23:00.0"),
    }


def test_a_gpu_that_a_neighbours_bus_reset_hits_is_in_its_unit() -> None:
    bus_only, with_flr = gpu("0000:21:01.0", 2, reset_methods=("bus",)), gpu("0000:21:00.0", 1)
    (unit,) = device_units([bridge("0000:20:00.0", 0x21), with_flr, bus_only])
    assert addresses(unit) == ["0000:21:00.0", "0000:21:01.0"]


def test_the_kernels_tree_tells_what_no_bridge_register_does() -> None:
    """A virtual function on a bus of its own, and a bridge whose registers could not be read."""
    port = bridge("0000:20:00.0", 0x21)
    parent = gpu("0000:21:00.0", root_bus="0000:20", path=("0000:20:00.0",))
    virtual = gpu("0000:22:00.0", 2, root_bus="0000:20", path=("0000:20:00.0",), virtual=True)
    for tree in ([port, parent, virtual], [replace(port, buses=None), parent, virtual]):
        assert reset_domain(parent, tree) == {"0000:21:00.0", "0000:22:00.0"}
        assert bridge_above(virtual, tree) == tree[0]
    assert bridge_above(gpu("0000:21:00.0", root_bus="0000:21"), [port]) is None, "it sits on a root bus"


def test_what_outlines_tell_is_never_less_than_the_unit() -> None:
    tree = [
        *(bridge("0000:20:00.0", 0x21, 0x22, resets=True), gpu("0000:21:00.0", reset_methods=())),
        *(other("0000:22:00.0", 0x020000, group=2), other("0000:23:00.0", 0x020000, group=2), gpu("0000:24:00.0", 3)),
    ]
    outlines = [replace(function, reset_methods=()) for function in tree]
    in_units = {function.address for unit in device_units(tree) for function in unit.functions}
    assert in_units <= near_gpus(outlines)
    assert near_gpus([replace(tree[2])]) == frozenset()


def test_a_bridge_of_another_domain_resets_nothing_here() -> None:
    (unit,) = device_units([bridge("0001:20:00.0", 0x21, resets=True), gpu("0000:21:00.0", reset_methods=())])
    assert "no usable reset method" in unit.unfit


def test_gpus_apart_are_units_apart_sorted_by_id() -> None:
    found = device_units([gpu("0000:41:00.0", 2), gpu("0000:21:00.0", 1)])
    assert [unit.id for unit in found] == ["0000:21:00.0", "0000:41:00.0"]


def test_two_groups_that_share_only_a_bridge_stay_apart() -> None:
    port = bridge("0000:20:00.0", 0x21)
    twins = [gpu("0000:21:00.0", 1, reset_methods=("flr", "bus")), gpu("0000:21:01.0", 2)]
    assert len(device_units([port, *twins])) == 2


def test_bridges_of_the_group_stay_with_the_host_and_are_noted() -> None:
    (unit,) = device_units([bridge("0000:20:00.0", 0x21, group=1), gpu("0000:21:00.0")])
    assert (addresses(unit), unit.unfit) == (["0000:21:00.0"], "")
    assert "0000:20:00.0" in unit.notes[0]


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ([gpu("0000:21:00.0", -1)], "no IOMMU group"),
        ([gpu("0000:21:00.0", reset_methods=())], "no usable reset method"),
        ([gpu("0000:21:00.0", boot_vga=True)], "boot VGA"),
        ([gpu("0000:21:00.0", boot_vga_unknown=True)], "may be the boot VGA"),
        ([gpu("0000:21:00.0", vendor_id=gpus.ASPEED)], "management display"),
        ([gpu("0000:21:00.0", vendor_id=0)], "cannot be read"),
        (
            [gpu("0000:21:00.0"), other("0000:21:00.1", 0x040300, device_id=0)],
            "00.1: vendor or device id cannot be read",
        ),
        ([gpu("0000:21:00.0", virtual_functions=4)], "4 SR-IOV virtual functions"),
        ([gpu("0000:21:00.0"), other("0000:22:00.0", 0x020000, virtual_functions=4)], "4 SR-IOV virtual functions"),
        ([gpu("0000:21:00.0", mdevs_in_use=2)], "2 mediated devices in use"),
        ([gpu("0000:21:00.0", no_iommu=True)], "isolates nothing"),
        ([gpu("0000:21:00.0", reset_methods=("witchcraft",))], "no usable reset method"),
        ([gpu("0000:21:00.0", group_members=("0000:21:00.0", "ACPI0003:00"))], "cannot be read: ACPI0003:00"),
        ([gpu("0000:21:00.0", group_members=())], "who shares it is unknown"),
        ([gpu("0000:21:00.0"), other("0000:21:00.1", 0x040300, group_members=())], "00.1 is not in the list of its"),
        ([gpu("0000:21:00.0", class_code=0x010802, allowed=True)], "storage"),
        ([gpu("0000:21:00.0"), gpu("0000:22:00.0", virtual=True)], "is an SR-IOV virtual function"),
        ([gpu("0000:21:00.0"), gpu("0000:22:00.0", device_id=0x2330)], "nvidia-a100-80gb, nvidia-h100-80gb"),
        ([gpu("0000:21:00.0"), other("0000:22:00.0", 0x020000, driver="mlx5_core")], "through mlx5_core"),
        ([gpu("0000:21:00.0"), other("0000:22:00.0", 0x0C0330, driver="xhci_hcd")], "through xhci_hcd"),
        ([gpu("0000:21:00.0"), other("0000:22:00.0", 0x010802, driver="nvme")], "storage"),
        ([gpu("0000:21:00.0"), other("0000:22:00.0", 0x010802)], "storage"),
        ([gpu("0000:21:00.0"), other("0000:21:00.1", 0x010802)], "storage"),
        ([gpu("0000:21:00.0"), other("0000:22:00.0", -1)], "class cannot be read"),
    ],
)
def test_unfit(functions: list[Function], reason: str) -> None:
    (unit,) = device_units(functions)
    assert reason in unit.unfit


@pytest.mark.parametrize("driver", ["", "vfio-pci", "mlx5_vfio_pci", "pci-stub"])
def test_a_nic_that_the_site_set_aside_goes_with_its_group(driver: str) -> None:
    (unit,) = device_units([gpu("0000:21:00.0"), other("0000:22:00.0", 0x020000, driver=driver)])
    assert (len(unit.functions), unit.unfit) == (2, "")


def test_virtual_functions_found_no_unit_and_follow_no_slot() -> None:
    virtual = gpu("0000:21:00.4", 7, virtual=True)
    (unit,) = device_units([gpu("0000:21:00.0"), virtual])
    assert addresses(unit) == ["0000:21:00.0"]
    assert not device_units([virtual])


def test_a_unit_over_several_nodes_has_no_node() -> None:
    (unit,) = device_units([gpu("0000:21:00.0"), gpu("0000:22:00.0", numa_node=1)])
    assert unit.numa_node == -1
    assert any("several NUMA nodes" in note for note in unit.notes)


def test_a_companion_without_a_reset_is_noted() -> None:
    (unit,) = device_units([gpu("0000:21:00.0"), other("0000:21:00.1", 0x040300, reset_methods=())])
    assert not unit.unfit
    assert any("no reset of its own" in note for note in unit.notes)


def test_an_unknown_gpu_is_called_by_its_ids() -> None:
    (unit,) = device_units([gpu("0000:21:00.0", device_id=0xFFF0)])
    assert (unit.model, unit.memory_mib, unit.unfit) == ("pci-10de-fff0", 0, "")


def test_the_table_knows_its_own_models() -> None:
    for model in gpus.known_models():
        assert gpus.identify(*gpus.ids_of(model)).model == model
    with pytest.raises(KeyError):
        gpus.ids_of("nvidia-none")


@pytest.mark.parametrize(("enough", "unfit"), [(False, "0000:21:00.0 has only a power management reset"), (True, "")])
def test_a_gpu_that_only_power_management_resets(*, enough: bool, unfit: str) -> None:
    """Without a bridge above it there is no bus reset either."""
    (unit,) = device_units([gpu("0000:21:00.0", reset_methods=("pm",))], pm_is_enough=enough)
    assert unit.unfit.startswith(unfit)
    assert bool(unit.unfit) == bool(unfit)


def test_a_gpu_without_a_listed_reset_goes_with_its_whole_bus() -> None:
    """Any bridge can reset what is behind it, through vfio-pci if nowhere else, and that hits all of it."""
    functions = [bridge("0000:20:00.0", 0x21), gpu("0000:21:00.0", reset_methods=("pm",)), gpu("0000:21:01.0", 2)]
    (unit,) = device_units(functions)
    assert not unit.unfit
    assert [function.address for function in unit.functions] == ["0000:21:00.0", "0000:21:01.0"]
