"""Real VMs: libvirt's embedded driver, QEMU emulating, the guest image. Everything is waited for, nothing is timed.

libvirt allows one embedded root in a process, so the tests share one; what needs an agent that dies runs processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import default_cgroup
from agent.ports import (
    GuestCell,
    GuestCheckpointed,
    GuestExited,
    GuestLog,
    GuestOptions,
    GuestStarted,
    PassedFunction,
    VmEvent,
    VmGone,
    VmPaused,
    VmStartError,
    VolumeMount,
)
from agent.vms import process as vmproc
from agent.vms.firmware import Firmware, find_firmware
from agent.vms.runtime import Runtime

pytest.importorskip("libvirt")

from tests.e2e import needs
from tests.e2e.emulated import EmulatedDevices
from tests.e2e.fleet import FOREVER
from tests.e2e.vm_agent import runtime, spec

REPO = Path(__file__).parents[2]
PATIENCE_S = 120.0

SAVER = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("/mnt/ckpt/saved").touch()
    pathlib.Path(os.environ["GPUPOOL_CHECKPOINT_DONE"]).touch()
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("up", flush=True)
while True:
    time.sleep(0.2)
"""

pytestmark = needs.VMS


@pytest.fixture(scope="session")
def images() -> Path:
    if folder := os.environ.get("GPUPOOL_IMAGES"):
        return Path(folder)
    folder_here = REPO / "var" / "images"
    subprocess.run([REPO / "deploy/guest/build.sh", folder_here / "debian-numpy"], check=True)
    return folder_here


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """libvirt's sockets allow no long paths such as pytest's; whatever still runs below it is killed in the end."""
    root = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))
    try:
        yield root
    finally:
        kill_vms(root)
        shutil.rmtree(root, ignore_errors=True)


def kill_vms(root: Path) -> None:
    for file in (root / "libvirt/run/qemu").glob("gpupool-*.pid"):
        if process := vmproc.find(file.parent, file.stem):
            process.kill()
            process.close()


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


class Host:
    """A runtime, and what it said."""

    def __init__(self, vms: Runtime, root: Path) -> None:
        self.vms = vms
        self.run_dir = root / "libvirt/run/qemu"
        self.events: list[VmEvent] = []

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def of(self, kind: type[VmEvent], name: str) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and event.allocation == name]

    def lines(self, name: str) -> list[str]:
        return [line for event in self.of(GuestLog, name) for _, line in event.lines]

    async def start(self, name: str, script: str, *, wait: bool = True, **changes: Any) -> None:
        await self.vms.start(replace(spec(name, script), **changes), may_run=lambda: True)
        if wait:
            await self.until(lambda: "up" in self.lines(name))

    def pid(self, name: str) -> int:
        process = vmproc.find(self.run_dir, f"gpupool-{name}")
        assert process is not None
        process.close()
        return process.pid


@pytest.fixture
async def host(root: Path, images: Path) -> AsyncIterator[Host]:
    cgroup = default_cgroup(f"test-vm-{os.getpid()}")
    host = Host(runtime(root, images, cgroup), root)
    await host.vms.open(host.events.append)
    yield host
    for name in await host.vms.running():
        await host.vms.destroy(name)
    assert vmproc.living(host.run_dir) == set()
    assert list((root / "guests").glob("*")) == []
    await host.vms.close()
    if cgroup is not None:
        cgroup.rmdir()


async def test_a_job_runs_and_ends(host: Host) -> None:
    await host.vms.start(spec("job", 'echo "hello $WHO"; exit 3', gpus=3), may_run=lambda: True)
    assert await host.vms.running() == ["job"]
    await host.until(lambda: host.of(VmGone, "job"))
    gpus = tuple(f"0000:00:10.{index} 1af4:1050" for index in range(3))
    assert host.of(GuestStarted, "job") == [GuestStarted("job", gpus)]
    assert host.lines("job") == ["hello me"]
    assert host.events[-2:] == [GuestExited("job", 3), VmGone("job", "shutdown")]
    async with asyncio.timeout(PATIENCE_S):  # libvirt tells of the end a moment before its list has forgotten it
        while await host.vms.running():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_vm_that_somebody_suspends_is_told_of(host: Host) -> None:
    """By libvirt's real events, of which a start has such a pause too."""
    await host.start("suspended", FOREVER, wait=False)
    assert host.of(VmPaused, "suspended") == []
    await asyncio.to_thread(host.vms._driver._virt._domain("gpupool-suspended").suspend)  # type: ignore[attr-defined]
    await host.until(lambda: host.of(VmPaused, "suspended"))
    assert host.of(VmPaused, "suspended") == [VmPaused("suspended", "somebody suspended it (virsh suspend)")]
    await host.vms.destroy("suspended")


async def test_no_vm_runs_unless_it_still_may(host: Host) -> None:
    with pytest.raises(VmStartError, match="session is not fresh"):
        await host.vms.start(spec("refused", FOREVER), may_run=lambda: False)
    assert await host.vms.running() == []
    assert host.events == []


async def test_a_start_that_nobody_waits_for_leaves_nothing(host: Host) -> None:
    task = asyncio.create_task(host.vms.start(spec("dropped", FOREVER), may_run=lambda: True))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await host.vms.running() == ["dropped"]
    await host.vms.destroy("dropped")
    assert await host.vms.running() == []


async def test_checkpoint_stop_and_volume(host: Host, tmp_path: Path) -> None:
    disk = volume(tmp_path)
    await host.start("saver", "", command=("python3", "-c", SAVER), volumes=(disk,))
    with pytest.raises(VmStartError, match=re.escape(f"image lock refused: another VM writes to {disk.file}")):
        await host.start("second", FOREVER, volumes=(disk,))
    assert await host.vms.running() == ["saver"]
    await host.vms.checkpoint("saver", 30)
    await host.until(lambda: host.of(GuestCheckpointed, "saver"))
    await host.vms.stop("saver", 30)
    await host.until(lambda: host.of(VmGone, "saver"))
    assert host.of(GuestExited, "saver") == [GuestExited("saver", 7)]
    assert "/saved/" in listing(disk)


def listing(disk: VolumeMount) -> str:
    done = subprocess.run(["debugfs", "-R", "ls -p /", disk.file], capture_output=True, text=True, check=True)
    return done.stdout


def volume(folder: Path) -> VolumeMount:
    file = folder / "ckpt.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", file, "16m"], check=True)
    return VolumeMount("ckpt", "/mnt/ckpt", str(file), 16)


@pytest.fixture
async def real(root: Path, images: Path, tmp_path: Path) -> AsyncIterator[Host]:
    """A host that makes VMs as on hardware, of devices that QEMU emulates."""
    link = tmp_path / "images"
    link.mkdir()
    (link / "debian-numpy").symlink_to(images / "debian-numpy")
    vms = Runtime(
        EmulatedDevices(f"qemu:///embed?root={root}/libvirt"),
        run_dir=root / "libvirt/run/qemu",
        images=link,
        state_dir=root,
        overlays=tmp_path / "overlays",
        cgroup=None,
        simulated=False,
        accel="tcg",
    )
    host = Host(vms, root)
    await vms.open(host.events.append)
    yield host
    for name in await vms.running():
        await vms.destroy(name)
    assert list((root / "guests").glob("*")) == []
    assert list((tmp_path / "overlays").glob("*")) == []
    await vms.close()


LOOK = r"""
echo nodes $(cat /sys/devices/system/node/online)
for n in 0 1; do echo cpus of $n: $(cat /sys/devices/system/node/node$n/cpulist); done
for d in /sys/bus/pci/devices/*; do [ $(cat $d/class) = 0x00ff00 ] && echo ${d##*/}: $(cat $d/numa_node); done
for d in /sys/block/*; do [ "$(cat $d/serial)" = gpupool-seed ] && seed=/dev/${d##*/}; done
echo seed $(grep -c '#cloud-config: hello' $seed)
echo agent $(cat /sys/class/virtio-ports/*/name)
echo up
sleep 1
echo c > /proc/sysrq-trigger
"""


async def test_a_guest_sees_its_nodes_and_devices_and_its_crash_is_told(real: Host) -> None:
    """A domain of two cells as on hardware: what the guest makes of it."""
    await real.start(
        "two",
        LOOK,
        vcpus=2,
        memory_mib=384,
        cells=(GuestCell(3, ((7,),), 256, (10, 21)), GuestCell(5, ((9,),), 128, (21, 10))),
        functions=(
            PassedFunction("0000:21:00.0", 3),
            PassedFunction("0000:21:00.1", 3),
            PassedFunction("0000:a2:00.0", 5),
            PassedFunction("0000:c3:00.0", -1),
        ),
        options=GuestOptions(user_data="#cloud-config: hello\n", network="user"),
    )
    seen = real.lines("two")
    nodes = [line.split(": ") for line in seen if line.startswith("0000:")]
    assert seen[:3] == ["nodes 0-1", "cpus of 0: 0", "cpus of 1: 1"]
    assert [node for _, node in nodes] == ["-1", "0", "0", "1"]
    assert nodes[1][0][:-1] == nodes[2][0][:-1], "two functions of one device"
    assert "seed 1" in seen, seen
    assert "agent org.gpupool.guest.0 org.qemu.guest_agent.0" in seen
    await real.until(lambda: real.of(VmGone, "two"))
    assert real.of(VmGone, "two") == [VmGone("two", "crashed")]


def uefi_image(images: Path, script: str) -> None:
    """A disk with an EFI system partition whose start-up script the firmware's shell runs."""
    (images / "esp").mkdir()
    (images / "esp/startup.nsh").write_text(script)
    folder = images / "uefi"
    folder.mkdir()
    subprocess.run(["qemu-img", "convert", "-O", "raw", f"fat:16:{images}/esp", folder / "disk.img"], check=True)
    partition_kind(folder / "disk.img", 0xEF)
    disk = {"file": "disk.img", "format": "raw"}
    (folder / "manifest.json").write_text(json.dumps({"boot": "uefi", "disk": disk, "cloud_init": True}))


def partition_kind(disk: Path, kind: int) -> None:
    with disk.open("r+b") as file:
        file.seek(446 + 4)
        file.write(bytes([kind]))


@pytest.mark.skipif(find_firmware() is None, reason="needs ovmf")
async def test_an_image_boots_by_uefi_from_a_layer_of_its_own(real: Host) -> None:
    uefi_image(real.vms._images, "echo written > fs0:\\mark\r\nreset -s\r\n")
    before = (real.vms._images / "uefi/disk.img").read_bytes()
    cell = GuestCell(0, ((0,),), 256)
    window = PassedFunction("0000:21:00.0", 0, (64 << 30,))
    changes: dict[str, Any] = {"image": "uefi", "memory_mib": 256, "cells": (cell,), "functions": (window,)}
    await real.start("efi", "", wait=False, **changes)
    assert (real.vms._overlays / "efi/overlay.qcow2").is_file()  # type: ignore[operator]
    await real.until(lambda: real.of(VmGone, "efi"))
    assert real.of(VmGone, "efi") == [VmGone("efi", "shutdown")]
    assert (real.vms._images / "uefi/disk.img").read_bytes() == before


async def test_an_image_that_only_says_uefi_is_refused(real: Host) -> None:
    uefi_image(real.vms._images, "")
    partition_kind(real.vms._images / "uefi/disk.img", 0x83)
    real.vms._firmware = lambda: Firmware(Path(__file__), Path(__file__))
    with pytest.raises(
        VmStartError, match="'uefi' says that it boots by UEFI, but its disk has no EFI system partition"
    ):
        await real.start("efi", "", image="uefi", cells=(GuestCell(0, ((0,),), 128),))


async def test_ends_by_force(host: Host) -> None:
    """By the agent, and by the guard."""
    await asyncio.gather(host.start("ours", FOREVER), host.start("guards", FOREVER))
    pid = host.pid("ours")
    await host.vms.destroy("ours")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert host.of(VmGone, "ours") == [VmGone("ours", "destroyed")]
    await host.vms.destroy("ours")
    killed = time.monotonic()
    kill_as_the_guard_does(host)
    await host.until(lambda: host.of(VmGone, "guards"))
    assert time.monotonic() - killed < 3.0
    assert host.of(VmGone, "guards") == [VmGone("guards", "failed")]


def kill_as_the_guard_does(host: Host) -> None:
    if cgroup := default_cgroup(f"test-vm-{os.getpid()}"):
        (cgroup / "cgroup.kill").write_text("1")
    else:
        os.kill(host.pid("guards"), 9)


async def test_a_missing_image_or_file_is_named(host: Host, images: Path, tmp_path: Path) -> None:
    with pytest.raises(VmStartError, match=r"image 'none' is not in .* \(there: .*debian-numpy"):
        await host.vms.start(replace(spec("x", "true"), image="none"), may_run=lambda: True)
    gone = VolumeMount("ckpt", "/mnt/ckpt", str(tmp_path / "gone.img"), 16)
    with pytest.raises(VmStartError, match=re.escape(f"file {gone.file} does not exist")):
        await host.vms.start(replace(spec("x", "true"), volumes=(gone,)), may_run=lambda: True)


async def test_a_vm_outlives_its_agent(images: Path) -> None:
    with short_folder() as folder:
        script = "echo up; for i in 1 2 3 4 5 6; do sleep 1; echo $i; done; exit 5"
        async with agent(folder, images, script) as first:
            await first.until("lines=(('stdout', 'up'),)")
            async with agent(folder, images) as rival:
                await rival.until("another agent holds")
        async with agent(folder, images) as second:
            await second.until("open adopted")
            await second.until("('stdout', '6')")
            await second.until("GuestExited(allocation='adopted', exit_code=5)")
            await second.until("VmGone(allocation='adopted', reason='shutdown')")


async def test_an_end_while_the_agent_was_away_is_told(images: Path) -> None:
    with short_folder() as folder:
        async with agent(folder, images, "echo up; sleep 1; exit 6") as first:
            await first.until("lines=(('stdout', 'up'),)")
        await until_on_console(folder / "guests/adopted/console", "gpupool-exit: 6")
        kill_vms(folder)  # it would wait a minute for a host to tell
        async with agent(folder, images) as second:
            await second.until("GuestExited(allocation='adopted', exit_code=6)")
            await second.until("VmGone(allocation='adopted', reason='it ended while the agent was away')")


async def until_on_console(console: Path, text: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while text not in console.read_text():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.1)


class Process:
    """An agent's process, and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        self._output = process.stdout
        self.seen = ""

    async def until(self, text: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while text not in self.seen:
                line = await self._output.readline()
                assert line, f"ended before {text}:\n{self.seen}"
                self.seen += line.decode()


@contextlib.asynccontextmanager
async def agent(folder: Path, images: Path, *command: str, uri: str = "") -> AsyncIterator[Process]:
    """An agent that is killed in the end, as a machine out of memory would."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.e2e.vm_agent", str(folder), str(images), *command,
        cwd=REPO, env={**os.environ, "VM_URI": uri}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield Process(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.skipif(Path("/run/libvirt/libvirt-sock").exists(), reason="this machine has a libvirtd")
async def test_a_daemon_that_is_not_there(images: Path) -> None:
    with short_folder() as folder:
        async with agent(folder, images, uri="qemu:///system") as process:
            await process.until("RuntimeUnavailableError: qemu:///system: no libvirtd listens on")
