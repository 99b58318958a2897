"""The proof and what it compares: a device that is not as at first sight must never pass for clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.devices.baseline import Baseline, NotClean, compare_moved, first_sight, sight
from agent.devices.prove import prove, read_errors
from agent.simulated.kernel import SimulatedSysfs
from tests.fakes.device_rig import AUDIO, CHECKS, DEVICES, GPU, inline, known, simulated_host, unit_of


@pytest.fixture
def sysfs(tmp_path: Path) -> SimulatedSysfs:
    return simulated_host(tmp_path / "sys")


def change(sysfs: SimulatedSysfs, offset: int, bits: int, address: str = GPU) -> None:
    config = sysfs.root / DEVICES / address / "config"
    space = bytearray(config.read_bytes())
    space[offset] ^= bits
    config.write_bytes(space)


@pytest.mark.parametrize("address", [GPU, AUDIO])
async def test_a_unit_that_was_not_reset_is_not_clean(sysfs: SimulatedSysfs, address: str) -> None:
    unit, baseline = await known(sysfs)
    sysfs.scribble(address)
    with pytest.raises(NotClean, match=f"{address}: command is 0x0006, expected 0x0002"):
        await prove(sysfs, unit, baseline, run_blocking=inline)


@pytest.mark.parametrize(
    ("offset", "field"),
    [
        *((0x00, "vendor id"), (0x02, "device id"), (0x04, "command"), (0x0A, "class code"), (0x10, "BAR 0")),
        *((0x27, "BAR 5"), (0x30, "ROM BAR")),
    ],
)
async def test_every_field_of_the_header_counts(sysfs: SimulatedSysfs, offset: int, field: str) -> None:
    unit, baseline = await known(sysfs)
    change(sysfs, offset, 0x40)
    with pytest.raises(NotClean) as caught:
        await prove(sysfs, unit, baseline, run_blocking=inline)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("offset", "bits", "ok"),
    [
        pytest.param(0x05, 0x04, True, id="INTx disable: left as interrupts were used"),
        pytest.param(0x04, 0x01, True, id="I/O decoding"),
        pytest.param(0x04, 0x02, False, id="memory decoding lost"),
        pytest.param(0x04, 0x04, False, id="bus mastering gained"),
        pytest.param(0x05, 0x01, False, id="SERR#"),
        pytest.param(0x30, 0x01, True, id="ROM enable"),
    ],
)
async def test_bits_that_mean_something(sysfs: SimulatedSysfs, offset: int, bits: int, *, ok: bool) -> None:
    unit, baseline = await known(sysfs)
    change(sysfs, offset, bits)
    if ok:
        assert await prove(sysfs, unit, baseline, run_blocking=inline) == CHECKS
    else:
        with pytest.raises(NotClean, match="command"):
            await prove(sysfs, unit, baseline, run_blocking=inline)


async def test_memory_decoding_may_come_with_the_first_user(sysfs: SimulatedSysfs) -> None:
    change(sysfs, 0x04, 0x02)
    unit, baseline = await known(sysfs)
    change(sysfs, 0x04, 0x02)
    assert await prove(sysfs, unit, baseline, run_blocking=inline) == CHECKS


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
        await prove(sysfs, unit, baseline, run_blocking=inline)
    assert caught.value.field == field


async def test_a_faster_link_is_no_fault(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / "current_link_speed").write_text("32.0 GT/s PCIe")
    assert await prove(sysfs, unit, baseline, run_blocking=inline) == CHECKS


async def test_a_link_that_trains_slowly_is_waited_for(sysfs: SimulatedSysfs) -> None:
    class Slow(SimulatedSysfs):
        looks = 0

        def read(self, path: str) -> str | None:
            if path == f"{DEVICES}/{GPU}/current_link_width":
                self.looks += 1
                return "8" if self.looks < 3 else "16"
            return super().read(path)

    unit, baseline = await known(sysfs)
    assert await prove(Slow(sysfs.root), unit, baseline, link_settles_s=1, run_blocking=inline) == CHECKS


@pytest.mark.parametrize("content", [b"", b"\xde\x10" * 10])
async def test_a_config_space_cut_short_is_no_proof(sysfs: SimulatedSysfs, content: bytes) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / "config").write_bytes(content)
    with pytest.raises(NotClean, match="config space is cut short"):
        await prove(sysfs, unit, baseline, run_blocking=inline)


async def test_a_second_bind_that_fails_is_found(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    (sysfs.root / DEVICES / GPU / "iommu_group").unlink()
    with pytest.raises(NotClean, match=f"{GPU}: driver is none"):
        await prove(sysfs, unit, baseline, run_blocking=inline)


async def test_what_the_second_bind_changes_is_found(sysfs: SimulatedSysfs) -> None:
    class Fragile(SimulatedSysfs):
        def _attach(self, driver: str, home: Path) -> None:
            super()._attach(driver, home)
            self.scribble(home.name)

    unit, baseline = await known(sysfs)
    with pytest.raises(NotClean, match=f"{GPU}: command is 0x0006"):
        await prove(Fragile(sysfs.root), unit, baseline, run_blocking=inline)


async def test_a_baseline_of_another_unit_proves_nothing(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    with pytest.raises(NotClean, match="unit is"):
        await prove(sysfs, unit, Baseline(baseline.functions[:1]), run_blocking=inline)


# Errors


async def test_errors_of_the_reset(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    home = sysfs.root / DEVICES / GPU
    (home / "aer_dev_correctable").write_text("Receiver Error 7\nBad TLP 0\nTOTAL_ERR_COR 7\n")
    before = read_errors(sysfs, unit)
    (home / "aer_dev_correctable").write_text("Receiver Error 9\nBad TLP 0\nTOTAL_ERR_COR 9\n")
    noted = await prove(sysfs, unit, baseline, errors_before=before, run_blocking=inline)
    assert noted == f"{CHECKS}, correctable AER errors of {GPU}: Receiver Error +2"
    (home / "aer_dev_fatal").write_text("Surprise Down Error 1\nTOTAL_ERR_FATAL 1\n")
    with pytest.raises(NotClean, match=r"fatal AER errors during the reset is Surprise Down Error \+1"):
        await prove(sysfs, unit, baseline, errors_before=before, run_blocking=inline)


# Power


class Sleeper(SimulatedSysfs):
    """A host with runtime power management; `wakes`: whether a device does when it is told to."""

    wakes = True
    controls: list[str]

    def sleep(self, state: str = "D3hot", status: str = "suspended", control: str = "auto") -> None:
        self.controls = []
        power = self.root / DEVICES / GPU / "power"
        power.mkdir(exist_ok=True)
        (power / "control").write_text(control)
        (power / "runtime_status").write_text(status)
        (power.parent / "power_state").write_text(state)

    def write(self, path: str, text: str) -> None:
        if path != f"{DEVICES}/{GPU}/power/control":
            super().write(path, text)
            return
        self.controls.append(text)
        if text == "on" and self.wakes:
            (self.root / DEVICES / GPU / "power_state").write_text("D0")


async def test_a_sleeping_device_is_woken_and_may_sleep_again(sysfs: SimulatedSysfs) -> None:
    host = Sleeper(sysfs.root)
    unit, baseline = await known(host)
    host.sleep()
    assert sight(host, GPU) == baseline.functions[0]
    assert host.controls == ["on", "auto"]
    assert first_sight(host, unit) == baseline


async def test_a_device_that_does_not_wake_up_is_not_clean(sysfs: SimulatedSysfs) -> None:
    host = Sleeper(sysfs.root)
    host.sleep()
    host.wakes = False
    with pytest.raises(NotClean, match=f"{GPU}: power state is D3hot, expected D0"):
        sight(host, GPU)
    assert host.controls == ["on", "auto"]


@pytest.mark.parametrize(
    ("state", "idles", "ok"),
    [
        ("D3hot", "N", True),
        ("D3hot", "Y", False),
        ("D3cold", "N", False),
        ("error", "N", False),
        ("unknown", "N", True),
    ],
)
def test_vfio_before_linux_5_19_parks_devices_itself(
    sysfs: SimulatedSysfs, state: str, idles: str, *, ok: bool
) -> None:
    host = Sleeper(sysfs.root)
    host.sleep(state, "active", "on")
    parameter = sysfs.root / "module/vfio_pci/parameters/disable_idle_d3"
    parameter.parent.mkdir(parents=True)
    parameter.write_text(idles)
    if ok:
        assert sight(host, GPU).address == GPU
    else:
        with pytest.raises(NotClean, match="power state"):
            sight(host, GPU)


# Found anew


def moved(sysfs: SimulatedSysfs, address: str, by: int) -> None:
    """Give BAR 1 of the GPU, which is 64 bits wide, another place, as a rescan may."""
    home = sysfs.root / DEVICES / address
    lines = (home / "resource").read_text().splitlines()
    start, end, flags = (int(word, 16) for word in lines[1].split())
    lines[1] = f"0x{start + by:016x} 0x{end + by:016x} 0x{flags:016x}"
    (home / "resource").write_text("\n".join(lines))
    space = bytearray((home / "config").read_bytes())
    space[0x14:0x1C] = (int.from_bytes(space[0x14:0x1C], "little") + by).to_bytes(8, "little")
    (home / "config").write_bytes(space)


async def test_a_function_found_anew_may_have_moved(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    moved(sysfs, GPU, 1 << 40)
    assert await prove(sysfs, unit, baseline, comparison=compare_moved, run_blocking=inline) == CHECKS
    with pytest.raises(NotClean, match="BAR 2"):
        await prove(sysfs, unit, baseline, run_blocking=inline)


@pytest.mark.parametrize("offset", [0x10, 0x17, 0x18])
async def test_a_function_found_anew_must_have_the_bars_that_it_was_given(sysfs: SimulatedSysfs, offset: int) -> None:
    unit, baseline = await known(sysfs)
    moved(sysfs, GPU, 1 << 40)
    change(sysfs, offset, 0x40)
    with pytest.raises(NotClean, match="BAR"):
        await prove(sysfs, unit, baseline, comparison=compare_moved, run_blocking=inline)


async def test_a_function_found_anew_must_have_bars_of_the_same_sizes(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    resource = sysfs.root / DEVICES / GPU / "resource"
    resource.write_text(resource.read_text().replace("0x000000000014220c", "0x0000000000142208", 1))
    with pytest.raises(NotClean, match="resource"):
        await prove(sysfs, unit, baseline, comparison=compare_moved, run_blocking=inline)


# Baselines


async def test_a_baseline_survives_json(sysfs: SimulatedSysfs) -> None:
    _, baseline = await known(sysfs)
    assert Baseline.from_dict(json.loads(json.dumps(baseline.to_dict()))) == baseline


@pytest.mark.parametrize(
    "damage", [{"bars": [1, 2]}, {"bars": None}, {"command": "6"}, {"address": 1}, {"resources": [1]}]
)
async def test_a_damaged_baseline_is_refused(sysfs: SimulatedSysfs, damage: dict[str, object]) -> None:
    _, baseline = await known(sysfs)
    data = baseline.to_dict()
    data["functions"][0].update(damage)
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
        first_sight(sysfs, unit)
