"""Reclaiming a unit: which means are tried, in which order, and that nothing outside the unit is ever hit."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from agent.devices.baseline import Baseline, BindFailed, DeviceError, NotClean
from agent.devices.blocking import in_own_thread
from agent.devices.host import Policy
from agent.devices.reclaim import Outcome, Patience, Reclaim
from agent.devices.reset import Means, by_bus, by_function
from agent.inventory.pci import read_functions
from agent.inventory.pcitree import PciTree
from agent.simulated import kernel
from agent.simulated.kernel import SimulatedSysfs
from gpupool.v1 import inventory_pb2
from tests.fakes.device_rig import (
    AUDIO,
    CHECKS,
    DEVICES,
    GPU,
    PORT,
    QUICK,
    devices,
    inline,
    known,
    methods,
    simulated_host,
    unit_of,
    used_by_a_vm,
)
from tests.fakes.virtual_time import until

NIC = "0000:02:00.0"
DEAD = f"{GPU}: config space is 0xff throughout: the device does not answer, expected a header"


@pytest.fixture
def sysfs(tmp_path: Path) -> SimulatedSysfs:
    return simulated_host(tmp_path / "sys")


def tree_of(sysfs: SimulatedSysfs) -> PciTree:
    return PciTree(read_functions(sysfs, lambda _note: None))


def means_of(sysfs: SimulatedSysfs, *, vfio: bool = True, pm_is_enough: bool = False) -> Means:
    return Means(sysfs, sysfs.hot_reset if vfio else None, pm_is_enough=pm_is_enough)


async def reclaim(
    sysfs: SimulatedSysfs,
    unit: inventory_pb2.Unit,
    baseline: Baseline | None,
    *,
    used: bool = True,
    vfio: bool = True,
    patience: Patience = QUICK,
) -> Outcome:
    async def look() -> PciTree:
        return tree_of(sysfs)

    return await Reclaim(unit, means_of(sysfs, vfio=vfio), look, inline, patience).run(baseline, used=used)


# Which means


async def test_a_used_unit_is_reclaimed(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    assert await reclaim(sysfs, unit, baseline) == Outcome("flr+pm", f"flr+pm; {CHECKS}", baseline)
    assert sysfs.read(f"{DEVICES}/{GPU}/reset_method") == "flr", "the kernel's own list is back"


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ("device_specific flr", "device_specific+pm"),
        ("pm bus", "vfio-hot-reset"),
        ("device_specific pm", "device_specific+pm"),
        ("acpi bus", "acpi+pm"),
    ],
)
async def test_the_best_method_that_the_kernel_lists(sysfs: SimulatedSysfs, listed: str, chosen: str) -> None:
    methods(sysfs, GPU, listed)
    unit, baseline = await known(sysfs)
    assert (await reclaim(sysfs, unit, baseline)).method == chosen


@pytest.mark.parametrize(("vfio", "chosen"), [(True, "vfio-hot-reset"), (False, "bus")])
async def test_one_bus_reset_for_a_unit_without_any_other(sysfs: SimulatedSysfs, *, vfio: bool, chosen: str) -> None:
    for address in (GPU, AUDIO):
        methods(sysfs, address, "")
    unit, baseline = await known(sysfs)
    assert not unit.unfit
    used_by_a_vm(sysfs)
    assert (await reclaim(sysfs, unit, baseline, vfio=vfio)).method == chosen


async def test_the_bridge_resets_what_vfio_cannot(sysfs: SimulatedSysfs) -> None:
    unit = unit_of(sysfs)  # not bound to vfio-pci, so the kernel refuses its hot reset
    used_by_a_vm(sysfs)
    (step,) = by_bus(means_of(sysfs), unit, tree_of(sysfs))
    step.do()
    assert sysfs.read_bytes(f"{DEVICES}/{AUDIO}/config") == sysfs.read_bytes(f".pristine/{AUDIO}/config")


async def test_a_hot_reset_that_would_hit_others_is_not_made_by_other_means(sysfs: SimulatedSysfs) -> None:
    class Guarded(SimulatedSysfs):
        def hot_reset(self, *_: object) -> None:
            raise PermissionError(1, "the reset would hit 0000:01:01.0 too")

    (step,) = by_bus(means_of(Guarded(sysfs.root)), unit_of(sysfs), tree_of(sysfs))
    used_by_a_vm(sysfs)
    with pytest.raises(PermissionError):
        step.do()
    assert sysfs.read_bytes(f"{DEVICES}/{AUDIO}/config") != sysfs.read_bytes(f".pristine/{AUDIO}/config")


def test_no_bus_reset_with_a_foreign_function_in_its_domain(sysfs: SimulatedSysfs) -> None:
    unit, tree = unit_of(sysfs), tree_of(sysfs)
    assert [step.method for step in by_bus(means_of(sysfs), unit, tree)] == ["vfio-hot-reset"]
    alone = inventory_pb2.Unit(id=GPU, functions=unit.functions[:1])  # the audio function is another's
    assert by_bus(means_of(sysfs), alone, tree) == []
    assert by_bus(means_of(sysfs, vfio=False), alone, tree) == []
    methods(sysfs, GPU, "bus")
    with pytest.raises(NotClean, match="reset method is bus, expected one that clears a GPU and hits nothing else"):
        by_function(means_of(sysfs), alone, tree_of(sysfs))


def test_pm_is_no_reset_of_a_gpu_unless_the_site_says_so(sysfs: SimulatedSysfs) -> None:
    methods(sysfs, GPU, "pm")
    (sysfs.root / DEVICES / PORT / "reset_subordinate").unlink()
    unit, tree = unit_of(sysfs), tree_of(sysfs)
    with pytest.raises(NotClean, match=f"{GPU}: reset method is pm, expected one that clears"):
        by_function(means_of(sysfs, vfio=False), unit, tree)
    enough = by_function(means_of(sysfs, vfio=False, pm_is_enough=True), unit, tree)
    assert [step.method for step in enough] == ["pm", "pm"]
    with_vfio = by_function(means_of(sysfs), unit, tree)
    assert [step.method for step in with_vfio] == ["vfio-hot-reset"], "the bus, where that can be reset"


async def test_a_kernel_that_does_not_name_its_methods(sysfs: SimulatedSysfs) -> None:
    for address in (GPU, AUDIO):
        (sysfs.root / DEVICES / address / "reset_method").unlink()
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    assert (await reclaim(sysfs, unit, baseline)).method == "default"


async def test_nothing_ran_so_nothing_is_reset(sysfs: SimulatedSysfs) -> None:
    class NoResets(SimulatedSysfs):
        def _reset_one(self, address: str, *, bus: bool = False) -> None:
            raise AssertionError(f"{address} was reset")

    unit, baseline = await known(sysfs)
    outcome = await reclaim(NoResets(sysfs.root), unit, baseline, used=False)
    assert (outcome.method, outcome.proof) == ("", f"no reset needed; {CHECKS}")


async def test_an_unused_unit_that_is_not_clean_is_reset(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    assert (await reclaim(sysfs, unit, baseline, used=False)).method == "flr+pm"


# Escalation


@pytest.mark.parametrize(
    ("fault", "story"),
    [
        (
            kernel.RESET_FAILS,
            (
                f"flr+pm: {GPU}: reset is refused (Inappropriate ioctl for device), expected done; "
                f"vfio-hot-reset: {GPU}: reset is refused (Inappropriate ioctl for device), expected done; "
                f"flr+pm: {GPU}: reset is refused (Inappropriate ioctl for device), expected done; "
                f"vfio-hot-reset: {GPU}: reset is refused (Inappropriate ioctl for device), expected done"
            ),
        ),
        (
            kernel.CONFIG_FF,
            (
                f"flr+pm: {DEAD}; "
                f"vfio-hot-reset: {DEAD}; "
                f"then: {GPU}: function is not found again after it was removed, expected there"
            ),
        ),
        (
            kernel.BAR_LOST,
            "; ".join(
                f"{means}: {GPU}: BAR 0 is 0x00000000, expected 0x80800000"
                for means in ("flr+pm", "vfio-hot-reset") * 2
            ),
        ),
        (
            kernel.LINK_DOWN,
            "; ".join(f"{means}: {GPU}: link width is x0, expected x16" for means in ("flr+pm", "vfio-hot-reset") * 2),
        ),
        (
            kernel.LOST,
            (
                f"flr+pm: {GPU}: function is gone from sysfs, expected there; "
                f"vfio-hot-reset: {GPU}: function is gone from sysfs, expected there; "
                f"then: {GPU}: function is not found again after it was removed, expected there"
            ),
        ),
    ],
)
async def test_what_nothing_helps_is_told_with_all_that_was_tried(
    sysfs: SimulatedSysfs, fault: str, story: str
) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    sysfs.inject(GPU, fault)
    with pytest.raises(NotClean) as caught:
        await reclaim(sysfs, unit, baseline)
    assert str(caught.value) == story
    sysfs.inject(GPU, None)
    assert (await reclaim(sysfs, unit, baseline)).method.endswith("flr+pm"), "once it is mended, it is clean again"


@pytest.mark.parametrize("fault", [kernel.RESET_FAILS, kernel.CONFIG_FF, kernel.BAR_LOST, kernel.LINK_DOWN])
async def test_a_companion_counts_as_much(sysfs: SimulatedSysfs, fault: str) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    sysfs.inject(AUDIO, fault)
    with pytest.raises(NotClean) as caught:
        await reclaim(sysfs, unit, baseline)
    assert caught.value.address == AUDIO or fault == kernel.RESET_FAILS


async def test_fatal_errors_during_the_reset_are_not_clean(sysfs: SimulatedSysfs) -> None:
    unit, baseline = await known(sysfs)
    sysfs.inject(GPU, kernel.AER_FATAL)
    with pytest.raises(NotClean, match=r"fatal AER errors during the reset is Surprise Down Error \+1"):
        await reclaim(sysfs, unit, baseline)


@pytest.mark.parametrize(
    ("fault", "method"),
    [
        (kernel.NEEDS_BUS_RESET, "vfio-hot-reset"),
        (kernel.NEEDS_RESCAN, "remove and rescan, flr+pm"),
        (kernel.VANISHES, "remove and rescan, flr+pm"),
    ],
)
async def test_stronger_means_that_help(sysfs: SimulatedSysfs, fault: str, method: str) -> None:
    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    sysfs.inject(GPU, fault)
    outcome = await reclaim(sysfs, unit, baseline)
    assert (outcome.method, outcome.baseline) == (method, baseline)
    assert outcome.proof == f"{method}; {CHECKS}"
    drivers = [function.driver for function in unit_of(sysfs).functions]
    assert drivers == ["vfio-pci", "vfio-pci"], "the host's sound driver had taken what was found anew"


async def test_a_removal_takes_only_the_units_functions(sysfs: SimulatedSysfs) -> None:
    removed: list[str] = []

    class Watched(SimulatedSysfs):
        def _remove(self, address: str) -> None:
            removed.append(address)
            super()._remove(address)

    unit, baseline = await known(sysfs)
    sysfs.inject(GPU, kernel.NEEDS_RESCAN)
    await reclaim(Watched(sysfs.root), unit, baseline)
    assert removed == [AUDIO, GPU]
    assert sysfs.link_name(f"{DEVICES}/{NIC}/driver") == "mlx5_core"


@pytest.mark.parametrize("gone", [GPU, AUDIO])
async def test_a_function_that_has_gone_is_looked_for(sysfs: SimulatedSysfs, gone: str) -> None:
    unit, baseline = await known(sysfs)
    sysfs.write(f"{DEVICES}/{gone}/remove", "1")
    assert (await reclaim(sysfs, unit, baseline)).method == "remove and rescan, flr+pm"
    sysfs.inject(gone, kernel.LOST)
    sysfs.write(f"{DEVICES}/{gone}/remove", "1")
    with pytest.raises(NotClean, match=f"reset: {gone}: function is gone from sysfs.*; then: {gone}: .* not found"):
        await reclaim(sysfs, unit, baseline)


async def test_a_reset_that_does_nothing_is_caught(sysfs: SimulatedSysfs) -> None:
    class Idle(SimulatedSysfs):
        def _reset_one(self, address: str, *, bus: bool = False) -> None:
            """Say that all is well."""

        def _restore(self, address: str) -> None:
            """Find things as they were."""

    unit, baseline = await known(sysfs)
    used_by_a_vm(sysfs)
    with pytest.raises(NotClean, match="command"):
        await reclaim(Idle(sysfs.root), unit, baseline)


# What must not be touched


async def test_what_somebody_uses_is_not_reset_or_removed(sysfs: SimulatedSysfs) -> None:
    class NoTouch(SimulatedSysfs):
        def write(self, path: str, text: str) -> None:
            raise AssertionError(f"{text!r} was written to {path}")

    async def look() -> PciTree:
        return tree_of(sysfs)

    host = NoTouch(sysfs.root)
    refuse = lambda addresses: {addresses[0]: "domain win11 uses it"}  # noqa: E731
    with pytest.raises(BindFailed, match="domain win11 uses it"):
        await Reclaim(unit_of(sysfs), Means(host), look, inline, QUICK, refuse).run(None)


async def test_a_reset_that_hangs_ends_in_time_and_nothing_more_is_tried(sysfs: SimulatedSysfs) -> None:
    writes: list[str] = []

    class Watched(SimulatedSysfs):
        def write(self, path: str, text: str) -> None:
            writes.append(path)
            super().write(path, text)

    fleet = devices(
        Watched(sysfs.root),
        run_blocking=in_own_thread,
        policy=Policy(patience=Patience(step_s=0.3, idle_s=0, rescan_s=0, link_s=0)),
    )
    unit = unit_of(sysfs)
    await fleet.reclaim(unit)
    sysfs.inject(GPU, kernel.RESET_HANGS)
    try:
        with pytest.raises(NotClean, match=rf"^{re.escape(GPU)}: reset is not done after 0.3 s, expected done$"):
            await fleet.reclaim(unit)
        assert writes[-1] == f"{DEVICES}/{GPU}/reset"
        writes.clear()
        for call in (fleet.reclaim(unit), fleet.bind(unit)):
            with pytest.raises(NotClean, match=f"{GPU}: device is held by the kernel"):
                await call
        assert not await fleet.health([unit])
        assert [one.id for one in fleet.inventory().units] == [GPU], "as it was before"
        assert writes == []
        assert await asyncio.to_thread(lambda: 1) == 1
    finally:
        sysfs.inject(GPU, None)
    await until(lambda: not fleet._busy())
    assert await fleet.reclaim(unit)


async def test_cut_short_anywhere_it_can_be_begun_again(sysfs: SimulatedSysfs) -> None:
    class Death(Exception):
        pass

    class Mortal(SimulatedSysfs):
        left = 0

        def write(self, path: str, text: str) -> None:
            if self.left == 0:
                raise Death
            self.left -= 1
            super().write(path, text)

    unit, baseline = await known(sysfs)
    host = Mortal(sysfs.root)
    deaths = 0
    for step in range(100):
        sysfs.inject(GPU, kernel.NEEDS_RESCAN)
        used_by_a_vm(sysfs)
        host.left = step
        try:
            await reclaim(host, unit, baseline)
            break
        except Death:
            deaths += 1
        assert (await reclaim(sysfs, unit, baseline)).proof.endswith(CHECKS)
        assert sysfs.read(f"{DEVICES}/{GPU}/reset_method") == "flr"
    assert deaths > 10


@pytest.mark.parametrize("error", [NotClean, BindFailed])
def test_all_that_can_go_wrong_is_a_device_error(error: type[Exception]) -> None:
    assert issubclass(error, DeviceError)
