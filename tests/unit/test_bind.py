"""Binding: whatever fails or stops in between, a function is given over whole, or is as it was."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from agent.devices.baseline import BindFailed
from agent.devices.bind import bind, override, release, unbind
from agent.giveback import give_back
from agent.inventory.read import read_inventory
from agent.simulated.kernel import SimulatedSysfs
from agent.simulated.tree import HostShape, build_tree
from gpupool.v1 import inventory_pb2

T = TypeVar("T")
GPU, AUDIO = "0000:01:00.0", "0000:01:00.1"
DEVICES = "bus/pci/devices"
HOSTS = {GPU: ("", ""), AUDIO: ("snd_hda_intel", "")}  # address to driver and override, before us
OURS = {GPU: ("vfio-pci", "vfio-pci"), AUDIO: ("vfio-pci", "vfio-pci")}


class Crash(BaseException):
    """The agent is killed: nothing of it runs any more."""


class Kernel(SimulatedSysfs):
    """Counts writes. `crash_at`: the write before which the agent dies; `refuses`: paths whose writes fail."""

    crash_at = -1
    refuses: frozenset[str] = frozenset()
    deaf = False  # drivers_probe finds nobody who wants the function
    snatch = ""  # a driver that is loaded, and takes the function, right after it was unbound

    let_go: threading.Event | None = None  # what an unbind waits for

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[tuple[str, str]] = []
        self.waits = threading.Event()  # set once an unbind waits for `let_go`

    def write(self, path: str, text: str) -> None:
        if len(self.writes) == self.crash_at:
            raise Crash
        self.writes.append((path, text))
        if path in self.refuses:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if not text or (path.endswith("drivers_probe") and self.deaf):  # sysfs drops an empty write
            return
        if path.endswith("/unbind") and self.let_go:
            self.waits.set()
            self.let_go.wait()
        super().write(path, text)
        if path.endswith("/unbind") and self.snatch:
            driver, self.snatch = self.snatch, ""
            self._attach(driver, self._device(text))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    build_tree(tmp_path / "sys", HostShape(("nvidia-a100-80gb",), numa_nodes=1, cores_per_node=1, threads_per_core=1))
    return Kernel(tmp_path / "sys")


def unit_of(kernel: Kernel) -> inventory_pb2.Unit:
    return read_inventory(kernel).units[0]


def state(kernel: Kernel) -> dict[str, tuple[str, str]]:
    return {
        address: (kernel.link_name(f"{DEVICES}/{address}/driver") or "", override(kernel, address))
        for address in (GPU, AUDIO)
    }


async def inline(call: Callable[[], T], /) -> T:
    return call()


async def test_there_and_back(kernel: Kernel) -> None:
    unit = unit_of(kernel)
    assert state(kernel) == HOSTS
    await bind(kernel, unit)
    assert state(kernel) == OURS
    await release(kernel, unit)
    assert state(kernel) == HOSTS


async def test_what_is_done_is_not_done_again(kernel: Kernel) -> None:
    unit = unit_of(kernel)
    await bind(kernel, unit)
    kernel.writes.clear()
    await bind(kernel, unit)
    assert not kernel.writes
    await release(kernel, unit)
    kernel.writes.clear()
    await release(kernel, unit)
    assert kernel.writes == [("bus/pci/drivers_probe", GPU)], "nothing but another look for a driver"


async def test_override_is_cleared_by_a_newline(kernel: Kernel) -> None:
    unit = unit_of(kernel)
    await bind(kernel, unit)
    await release(kernel, unit)
    cleared = [text for path, text in kernel.writes if path.endswith("driver_override") and text != "vfio-pci"]
    assert cleared == ["\n", "\n"]


async def test_a_function_bound_without_override_gets_one(kernel: Kernel) -> None:
    """As by `vfio-pci.ids=`: the next probe must not depend on that."""
    unit = unit_of(kernel)
    await bind(kernel, unit)
    kernel.write(f"{DEVICES}/{GPU}/driver_override", "\n")
    await bind(kernel, unit)
    assert state(kernel) == OURS


async def writes_of(kernel: Kernel, action: Callable[[], object]) -> int:
    kernel.writes.clear()
    await action()  # type: ignore[misc]
    return len(kernel.writes)


@pytest.mark.parametrize("then", ["bind", "release"])
@pytest.mark.parametrize("crash_at", range(5))
async def test_crash_before_any_write_of_a_bind_can_be_resumed(kernel: Kernel, crash_at: int, then: str) -> None:
    unit = unit_of(kernel)
    kernel.crash_at = crash_at
    with pytest.raises(Crash):
        await bind(kernel, unit, run_blocking=inline)
    kernel.crash_at = -1
    await (bind if then == "bind" else release)(kernel, unit)
    assert state(kernel) == (OURS if then == "bind" else HOSTS)


@pytest.mark.parametrize("then", ["bind", "release"])
@pytest.mark.parametrize("crash_at", range(6))
async def test_crash_before_any_write_of_a_release_can_be_resumed(kernel: Kernel, crash_at: int, then: str) -> None:
    unit = unit_of(kernel)
    await bind(kernel, unit)
    kernel.crash_at = len(kernel.writes) + crash_at
    with pytest.raises(Crash):
        await release(kernel, unit, run_blocking=inline)
    kernel.crash_at = -1
    await (bind if then == "bind" else release)(kernel, unit)
    assert state(kernel) == (OURS if then == "bind" else HOSTS)


async def test_the_crash_tests_reach_every_write(kernel: Kernel) -> None:
    unit = unit_of(kernel)
    assert await writes_of(kernel, lambda: bind(kernel, unit)) == 5
    assert await writes_of(kernel, lambda: release(kernel, unit)) == 6


@pytest.mark.parametrize("attribute", ["driver_override", "driver/unbind"])
async def test_a_function_that_fails_takes_the_others_back(kernel: Kernel, attribute: str) -> None:
    kernel.refuses = frozenset({f"{DEVICES}/{AUDIO}/{attribute}"})
    with pytest.raises(BindFailed, match=rf"{AUDIO}: driver is not to be changed \(Device or resource busy\)"):
        await bind(kernel, unit_of(kernel))
    assert state(kernel) == HOSTS


async def test_a_probe_that_finds_nobody_leaves_no_override(kernel: Kernel) -> None:
    kernel.deaf = True
    with pytest.raises(BindFailed, match=rf"{GPU}: driver is none \(see the kernel's log\), expected vfio-pci"):
        await bind(kernel, unit_of(kernel))
    assert state(kernel) == HOSTS


async def test_why_vfio_leaves_a_device_alone(kernel: Kernel) -> None:
    unit = unit_of(kernel)
    (kernel.root / DEVICES / GPU / "sriov_numvfs").write_text("4\n")
    kernel.deaf = True
    with pytest.raises(BindFailed, match="SR-IOV virtual functions switched on"):
        await bind(kernel, unit)
    (kernel.root / DEVICES / GPU / "iommu_group").unlink()
    with pytest.raises(BindFailed, match="it has no IOMMU group"):
        await bind(kernel, unit)


async def test_a_sick_function_kept_for_us_is_not_given_to_the_host(kernel: Kernel) -> None:
    """The proof unbinds and binds again; where that fails, no driver of the host's may try the device."""
    unit = unit_of(kernel)
    await bind(kernel, unit)
    unbind(kernel, AUDIO)
    kernel.deaf = True
    with pytest.raises(BindFailed):
        await bind(kernel, unit)
    assert state(kernel)[AUDIO] == ("", "vfio-pci")


async def test_a_driver_loaded_meanwhile_does_not_keep_the_function(kernel: Kernel) -> None:
    kernel.snatch = "mlx5_core"
    await bind(kernel, unit_of(kernel))
    assert state(kernel) == OURS


async def test_nothing_is_touched_when_one_function_is_refused(kernel: Kernel) -> None:
    def refuse(addresses: Sequence[str]) -> Mapping[str, str]:
        assert addresses == [GPU, AUDIO]
        return {AUDIO: "used by process 812 [pipewire]"}

    with pytest.raises(BindFailed, match=r"0000:01:00.1: driver is snd_hda_intel, to be left alone: used by process 8"):
        await bind(kernel, unit_of(kernel), refuse=refuse)
    assert not kernel.writes


async def test_functions_that_are_bound_already_are_refused_too(kernel: Kernel) -> None:
    """Somebody else's VM may have them."""
    unit = unit_of(kernel)
    await bind(kernel, unit)
    with pytest.raises(BindFailed, match="VM 'win10'"):
        await bind(kernel, unit, refuse=lambda _: {GPU: "process 4, VM 'win10'"})


async def test_an_unbind_that_hangs_leaves_nothing_behind(kernel: Kernel) -> None:
    """The driver waits for its users. Nobody waits with it, and once it lets go, nothing more happens by itself."""
    kernel._attach("mlx5_core", kernel._device(GPU))
    kernel.let_go = threading.Event()
    binding = asyncio.create_task(bind(kernel, unit_of(kernel)))
    await asyncio.to_thread(kernel.waits.wait)
    binding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await binding
    assert state(kernel)[GPU] == ("mlx5_core", "")
    kernel.let_go.set()
    for thread in threading.enumerate():
        if thread.name == "gpupool-device":
            await asyncio.to_thread(thread.join)
    assert state(kernel) == HOSTS
    await bind(kernel, unit_of(kernel))
    assert state(kernel) == OURS


async def test_a_function_that_is_gone(kernel: Kernel) -> None:
    unit = unit_of(kernel)
    (kernel.root / DEVICES / GPU).unlink()
    with pytest.raises(BindFailed, match="No such device"):
        await bind(kernel, unit)
    with pytest.raises(BindFailed, match="No such device"):
        await release(kernel, unit)


async def test_a_driver_that_is_not_there(kernel: Kernel) -> None:
    with pytest.raises(BindFailed, match=r"not loaded \(modprobe nouveau\)"):
        await bind(kernel, unit_of(kernel), "nouveau")
    assert state(kernel) == HOSTS


@pytest.mark.parametrize("used", [False, True])
async def test_a_host_is_given_its_devices_back(kernel: Kernel, *, used: bool) -> None:
    unit = next(iter(read_inventory(kernel).units))
    await bind(kernel, unit)
    told: list[str] = []
    refuse = lambda addresses: dict.fromkeys(addresses[:1], "pid 7 has it open") if used else {}  # noqa: E731
    assert await give_back(kernel, [unit], refuse, told.append, run_blocking=inline) != used
    assert told == [f"{GPU}: left alone: pid 7 has it open" if used else f"{GPU}: back with no driver, snd_hda_intel"]
    assert state(kernel) == (OURS if used else HOSTS)
    assert await give_back(kernel, [unit], refuse, told.append, run_blocking=inline) != used, "again"
