"""Reclaiming devices on a simulated host: no reset, a failed one or a half one must never pass for clean."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from agent.devices import reclaim as devices
from agent.devices.inventory import read_inventory
from agent.devices.reclaim import Baseline, BindFailed, NotClean
from agent.simulated.kernel import BAR_LOST, CONFIG_FF, LINK_DOWN, RESET_FAILS, SimulatedSysfs
from agent.simulated.tree import HostShape, build_tree
from gpupool.v1 import inventory_pb2

T = TypeVar("T")
GPU, AUDIO, PORT = "0000:01:00.0", "0000:01:00.1", "0000:00:01.0"
DEVICES = "bus/pci/devices"
PROOF = "config, BARs, command, link x16 16000 MT/s, rebind ok"


@pytest.fixture
def sysfs(tmp_path: Path) -> SimulatedSysfs:
    build_tree(tmp_path / "sys", HostShape(("nvidia-a100-80gb",), numa_nodes=1, cores_per_node=1, threads_per_core=1))
    return SimulatedSysfs(tmp_path / "sys")


def unit_of(sysfs: SimulatedSysfs) -> inventory_pb2.Unit:
    return read_inventory(sysfs).units[0]


async def known(sysfs: SimulatedSysfs) -> tuple[inventory_pb2.Unit, Baseline]:
    """The unit as the agent first meets it, and its baseline."""
    unit = unit_of(sysfs)
    await devices.bind(sysfs, unit)
    return unit, devices.first_sight(sysfs, unit)


def used_by_a_vm(sysfs: SimulatedSysfs) -> None:
    sysfs.scribble(GPU)
    sysfs.scribble(AUDIO)


async def inline(call: Callable[[], T], /) -> T:
    return call()


def runs_inline(call: Callable[[], T], /) -> Awaitable[T]:
    return inline(call)


async def test_bind_takes_every_function_and_can_be_repeated(sysfs: SimulatedSysfs) -> None:
    unit = unit_of(sysfs)
    assert [function.driver for function in unit.functions] == ["", "snd_hda_intel"]
    for _ in range(2):
        await devices.bind(sysfs, unit)
        assert [function.driver for function in unit_of(sysfs).functions] == ["vfio-pci", "vfio-pci"]


async def test_bind_back_to_the_hosts_driver(sysfs: SimulatedSysfs) -> None:
    unit, _ = await known(sysfs)
    await devices.bind(sysfs, unit, "pcieport")
    assert [function.driver for function in unit_of(sysfs).functions] == ["pcieport", "pcieport"]


async def test_bind_to_a_driver_that_is_not_there(sysfs: SimulatedSysfs) -> None:
    with pytest.raises(BindFailed, match=r"0000:01:00.0: driver is not loaded \(modprobe nouveau\)"):
        await devices.bind(sysfs, unit_of(sysfs), "nouveau")


async def test_bind_of_a_function_that_has_gone(sysfs: SimulatedSysfs) -> None:
    unit = unit_of(sysfs)
    (sysfs.root / DEVICES / GPU).unlink()
    with pytest.raises(BindFailed, match="No such device"):
        await devices.bind(sysfs, unit)


async def test_a_used_unit_is_reclaimed(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    assert await devices.reclaim(sysfs, unit, baseline, 5) == f"flr+pm; {PROOF}"
    assert sysfs.read(f"{DEVICES}/{GPU}/reset_method") == "flr", "the kernel's own list is back"


async def test_reclaim_runs_without_threads(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    before = threading.active_count()
    assert await devices.reclaim(sysfs, unit, baseline, 5, run_blocking=runs_inline) == f"flr+pm; {PROOF}"
    assert threading.active_count() <= before


@pytest.mark.parametrize("address", [GPU, AUDIO])
async def test_planted_bug_no_reset_is_caught(sysfs: SimulatedSysfs, address: str) -> None:
    unit, baseline = await known(sysfs)
    sysfs.scribble(address)
    with pytest.raises(NotClean, match=f"{address}: command is 0x0006, expected 0x0002"):
        await devices.prove(sysfs, unit, baseline)


async def test_planted_bug_a_reset_of_the_gpu_alone_is_caught(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    sysfs.write(f"{DEVICES}/{GPU}/reset", "1")
    with pytest.raises(NotClean, match=AUDIO):
        await devices.prove(sysfs, unit, baseline)


async def test_planted_bug_a_reset_that_does_nothing_is_caught(tmp_path: Path, sysfs: SimulatedSysfs) -> None:
    class Idle(SimulatedSysfs):
        def _reset(self, address: str) -> None:
            """Say that all is well."""

    idle = Idle(sysfs.root)
    unit, baseline = await known(idle)
    used_by_a_vm(idle)
    with pytest.raises(NotClean, match="command"):
        await devices.reclaim(idle, unit, baseline, 5)


@pytest.mark.parametrize("address", [GPU, AUDIO])
@pytest.mark.parametrize(
    ("fault", "field", "reason"),
    [
        (RESET_FAILS, "reset", "refused (Inappropriate ioctl for device)"),
        (CONFIG_FF, "config space", "0xff throughout: the device does not answer"),
        (BAR_LOST, "BAR 0", "0x00000000"),
        (LINK_DOWN, "link width", "x0"),
    ],
)
async def test_each_fault_is_found_and_named(
    sysfs: SimulatedSysfs, address: str, fault: str, field: str, reason: str
) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    sysfs.inject(address, fault)
    with pytest.raises(NotClean) as caught:
        await devices.reclaim(sysfs, unit, baseline, 5)
    assert (caught.value.address, caught.value.field, caught.value.seen) == (address, field, reason)
    sysfs.inject(address, None)
    assert await devices.reclaim(sysfs, unit, baseline, 5) == f"flr+pm; {PROOF}"


@pytest.mark.parametrize(
    ("offset", "field"),
    [
        *((0x00, "vendor id"), (0x02, "device id"), (0x04, "command"), (0x0A, "class code"), (0x10, "BAR 0")),
        *((0x27, "BAR 5"), (0x30, "ROM BAR")),
    ],
)
async def test_every_field_of_the_header_counts(sysfs: SimulatedSysfs, offset: int, field: str) -> None:
    unit, baseline = await known(sysfs)
    config = sysfs.root / DEVICES / GPU / "config"
    space = bytearray(config.read_bytes())
    space[offset] ^= 0x40
    config.write_bytes(space)
    with pytest.raises(NotClean) as caught:
        await devices.prove(sysfs, unit, baseline)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("attribute", "text", "field"),
    [
        ("current_link_width", "8", "link width"),
        ("current_link_speed", "2.5 GT/s PCIe", "link speed"),
        ("resource", "0x0 0x0 0x0", "resource"),
    ],
)
async def test_every_attribute_counts(sysfs: SimulatedSysfs, attribute: str, text: str, field: str) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / attribute).write_text(text)
    with pytest.raises(NotClean) as caught:
        await devices.prove(sysfs, unit, baseline)
    assert caught.value.field == field


async def test_a_faster_link_is_no_fault(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / "current_link_speed").write_text("32.0 GT/s PCIe")
    assert await devices.prove(sysfs, unit, baseline) == PROOF


@pytest.mark.parametrize("content", [b"", b"\xde\x10" * 10])
async def test_a_config_space_cut_short_is_no_proof(sysfs: SimulatedSysfs, content: bytes) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / "config").write_bytes(content)
    with pytest.raises(NotClean, match="config space is cut short"):
        await devices.prove(sysfs, unit, baseline)


async def test_a_second_bind_that_fails_is_found(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / "iommu_group").unlink()
    with pytest.raises(NotClean, match=f"{GPU}: driver is none, expected vfio-pci"):
        await devices.prove(sysfs, unit, baseline)


async def test_what_the_second_bind_changes_is_found(sysfs: SimulatedSysfs) -> None:
    class Fragile(SimulatedSysfs):
        def _attach(self, driver: str, home: Path) -> None:
            super()._attach(driver, home)
            self.scribble(home.name)

    unit, baseline = await known(sysfs)
    with pytest.raises(NotClean, match=f"{GPU}: command is 0x0006"):
        await devices.reclaim(Fragile(sysfs.root), unit, baseline, 5)


async def test_a_function_that_has_gone_is_not_clean(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / AUDIO).unlink()
    with pytest.raises(NotClean, match=f"{AUDIO}: function is gone from sysfs"):
        await devices.reclaim(sysfs, unit, baseline, 5)


async def test_a_baseline_of_another_unit_proves_nothing(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    with pytest.raises(NotClean, match="unit is"):
        await devices.prove(sysfs, unit, Baseline(baseline.functions[:1]))


async def test_a_reset_that_hangs_ends_in_time_and_blocks_nothing(sysfs: SimulatedSysfs) -> None:
    released = threading.Event()

    class Hanging(SimulatedSysfs):
        def _reset(self, address: str) -> None:
            released.wait(60)

    hanging = Hanging(sysfs.root)
    unit, baseline = await known(hanging)
    try:
        with pytest.raises(NotClean, match=r"0000:01:00.0: reset is not done after 0.2 s"):
            await devices.reclaim(hanging, unit, baseline, 0.2)
        assert await asyncio.to_thread(lambda: 1) == 1
    finally:
        released.set()


async def test_no_method_that_is_ours_to_use(sysfs: SimulatedSysfs) -> None:
    (sysfs.root / DEVICES / GPU / "reset_method").write_text("bus\n")
    unit = unit_of(sysfs)
    alone = inventory_pb2.Unit(id=GPU, functions=unit.functions[:1])
    (sysfs.root / DEVICES / PORT / "reset_subordinate").unlink()
    with pytest.raises(NotClean, match="reset method is bus, expected one that hits nothing outside"):
        await devices.reset(sysfs, alone, 5)


@pytest.mark.parametrize(
    ("methods", "chosen"),
    [
        ("device_specific flr", "flr"),
        ("pm bus", "bus"),
        ("device_specific pm", "device_specific"),
        ("acpi bus", "acpi"),
    ],
)
async def test_the_best_method_that_the_kernel_lists(sysfs: SimulatedSysfs, methods: str, chosen: str) -> None:
    for name in (f"{DEVICES}/{GPU}", f".pristine/{GPU}"):
        (sysfs.root / name / "reset_method").write_text(methods)
    unit, baseline = await known(sysfs)
    assert await devices.reclaim(sysfs, unit, baseline, 5) == f"{chosen}+pm; {PROOF}"


async def test_one_reset_through_the_bridge_for_a_unit_without_any_other(sysfs: SimulatedSysfs) -> None:
    for address in (GPU, AUDIO):
        for name in ("reset", "reset_method"):
            (sysfs.root / DEVICES / address / name).unlink()
    unit, baseline = await known(sysfs)
    assert not unit.unfit
    used_by_a_vm(sysfs)
    assert await devices.reclaim(sysfs, unit, baseline, 5) == f"bus; {PROOF}"


async def test_a_kernel_that_does_not_name_its_methods(sysfs: SimulatedSysfs) -> None:
    for address in (GPU, AUDIO):
        (sysfs.root / DEVICES / address / "reset_method").unlink()
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    assert await devices.reclaim(sysfs, unit, baseline, 5) == f"default; {PROOF}"


async def test_a_baseline_survives_json(sysfs: SimulatedSysfs) -> None:
    _, baseline = await known(sysfs)
    assert Baseline.from_dict(json.loads(json.dumps(baseline.to_dict()))) == baseline


@pytest.mark.parametrize(
    "change", [{"bars": [1, 2]}, {"bars": None}, {"command": "6"}, {"address": 1}, {"resources": [1]}]
)
async def test_a_damaged_baseline_is_refused(sysfs: SimulatedSysfs, change: dict[str, object]) -> None:
    _, baseline = await known(sysfs)
    data = baseline.to_dict()
    data["functions"][0].update(change)
    with pytest.raises(ValueError, match="not a baseline"):
        Baseline.from_dict(data)
    refused: list[dict[str, object]] = [{}, {"functions": 1}, {"functions": [{}]}]
    for nonsense in refused:
        with pytest.raises(ValueError, match="not a baseline"):
            Baseline.from_dict(nonsense)


async def test_first_sight_of_a_dead_device(sysfs: SimulatedSysfs) -> None:
    unit = unit_of(sysfs)
    (sysfs.root / DEVICES / GPU / "config").write_bytes(b"\xff" * 4096)
    with pytest.raises(NotClean, match="does not answer"):
        devices.first_sight(sysfs, unit)


async def test_in_own_thread_carries_results_and_errors() -> None:
    assert await devices.in_own_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await devices.in_own_thread(lambda: 1 // 0)
