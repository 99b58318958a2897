"""Starts that go wrong: at every step, in every way, nothing may be left and the reason must be said."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.ports import GuestCell, GuestOptions, PassedFunction, VmEvent, VmGone, VmPaused, VmSpec, VmStartError
from agent.vms import driver, files, runtime, watch
from agent.vms.errors import ConnectionLostError, HypervisorError
from agent.vms.images import FILES
from agent.vms.runtime import Runtime
from tests.fakes.hypervisor import FakeHypervisor

SPEC = VmSpec(
    allocation="j.1",
    image="tiny",
    command=("true",),
    env=(),
    vcpus=1,
    memory_mib=64,
    cells=(GuestCell(0, ((0,),), 64),),
    functions=(PassedFunction("0000:21:00.0", 0),),
    options=GuestOptions(user_data="#cloud-config\n"),
)
NAME = "gpupool-j.1"


class PlentifulHost:
    """Implements HostState."""

    pages: int | None = 1000

    def free_mib(self, node: int) -> int | None:
        return 1 << 20

    def free_pages(self, node: int, size_kib: int) -> int | None:
        return self.pages

    def lock_limit_mib(self) -> int | None:
        return None

    def online_cpus(self) -> frozenset[int] | None:
        return frozenset(range(8))


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.virt = FakeHypervisor(folder / "run")
        self.host = PlentifulHost()
        self.events: list[VmEvent] = []
        self.vms = Runtime(
            self.virt,
            run_dir=folder / "run",
            images=folder / "images",
            state_dir=folder / "state",
            overlays=folder / "overlays",
            cgroup=folder / "cgroup",
            simulated=False,
            accel="tcg",
            host=self.host,
        )

    def left(self) -> dict[str, Any]:
        """All that a VM could leave behind; must be empty."""
        found = {
            "processes": self.virt.alive(),
            "files": [str(file) for root in ("state/guests", "overlays") for file in (self.folder / root).glob("*")],
        }
        return {kind: some for kind, some in found.items() if some}

    async def start(self, spec: VmSpec = SPEC, *, may_run: Callable[[], bool] = lambda: True) -> None:
        await self.vms.start(spec, may_run=may_run)

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_CREATE_S", 0.5)
    monkeypatch.setattr(driver, "_LOOK_UP_S", 0.5)
    monkeypatch.setattr(driver, "_DESTROY_S", 0.3)
    monkeypatch.setattr(driver, "_RECONNECT_S", 0.6)
    monkeypatch.setattr(driver, "_RETRY_S", 0.05)
    monkeypatch.setattr(runtime, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(watch, "_REASON_S", 0.2)
    monkeypatch.setattr(watch, "_LAST_WORDS_S", 0.1)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(files, "MAX_SOCKET_PATH", 1000)  # pytest's paths are long, and nobody makes the socket here
    image = tmp_path / "images/tiny"
    image.mkdir(parents=True)
    for file in FILES:
        (image / file).touch()
    (image / "manifest.json").write_text("{}")
    rig = Rig(tmp_path)
    await rig.vms.open(rig.events.append)
    yield rig
    for name in await rig.vms.running():
        await rig.vms.destroy(name)
    await rig.vms.close()
    rig.virt.kill_all()


class Hang:
    """A fault that hangs until it is over."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wait(self) -> None:
        self._event.wait()

    def set(self) -> None:
        self._event.set()


@pytest.fixture
def released() -> Iterator[Hang]:
    """What a call that hangs waits for; set in the end."""
    hang = Hang()
    yield hang
    hang.set()


def raises(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


def once(fault: Callable[[], None]) -> Callable[[], None]:
    left = [fault]
    return lambda: left.pop()() if left else None


async def test_a_vm_starts_and_ends(rig: Rig) -> None:
    await rig.start()
    assert rig.virt.ran == {NAME}
    assert await rig.vms.running() == ["j.1"]
    await rig.vms.destroy("j.1")
    assert rig.events == [VmGone("j.1", "destroyed")]
    assert rig.left() == {}


async def test_a_vm_that_is_paused_is_told_of(rig: Rig) -> None:
    await rig.start()
    rig.virt.on_pause(NAME, "its guest went to sleep")
    rig.virt.on_pause("gpupool-other.1", "its guest went to sleep")
    await rig.until(lambda: rig.events)
    assert rig.events == [VmPaused("j.1", "its guest went to sleep")]


STEPS = ["create", "resume"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails(rig: Rig, step: str, when: str) -> None:
    getattr(rig.virt, when)[step] = raises(HypervisorError("internal error: it is broken"))
    with pytest.raises(VmStartError, match="it is broken"):
        await rig.start()
    assert rig.left() == {}
    assert rig.events == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_libvirtd_restarted_in_the_middle_of_a_step(rig: Rig, step: str, when: str) -> None:
    """The connection breaks, once before the daemon did its work and once after: the start goes on either way."""
    getattr(rig.virt, when)[step] = once(raises(ConnectionLostError("client socket is closed")))
    await rig.start()
    assert rig.virt.alive() == [NAME]
    assert rig.virt.calls.count(step) == 2
    await rig.vms.destroy("j.1")
    assert rig.left() == {}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_libvirtd_does_not_come_back(rig: Rig, step: str, when: str) -> None:
    lost = raises(ConnectionLostError("no libvirtd listens"))
    for other in {step, "destroy"}:
        getattr(rig.virt, when)[other] = lost
    with pytest.raises(VmStartError, match="no libvirtd listens"):
        await rig.start()
    assert rig.left() == {}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_hangs(rig: Rig, step: str, when: str, released: Hang) -> None:
    getattr(rig.virt, when)[step] = released.wait
    getattr(rig.virt, when)["destroy"] = released.wait
    with pytest.raises(VmStartError, match=rf"libvirt has not answered for .* s \({step}\)"):
        await rig.start()
    assert rig.left() == {}
    released.set()
    await rig.until(lambda: not rig.vms._driver._calls.stuck)
    await rig.until(lambda: rig.left() == {})


async def test_a_vm_that_is_made_after_all_is_removed(rig: Rig, released: Hang) -> None:
    """libvirtd was stopped in the middle of a start that was then given up, and goes on with it an hour later."""
    rig.virt.before["create"] = released.wait
    with pytest.raises(VmStartError, match="has not answered"):
        await rig.start()
    made: list[list[str]] = []

    def note() -> None:
        made.append(rig.virt.alive())

    rig.virt.after["create"] = note
    released.set()
    await rig.until(lambda: made and rig.left() == {})
    assert made == [[NAME]]


async def test_a_start_that_hangs_can_be_ended(rig: Rig, released: Hang, monkeypatch: Any) -> None:
    monkeypatch.setattr(driver, "_CREATE_S", 1000.0)
    rig.virt.before["create"] = released.wait
    task = asyncio.create_task(rig.start())
    await rig.until(lambda: "create" in rig.virt.calls)
    assert await rig.vms.running() == ["j.1"]
    await rig.vms.destroy("j.1")
    with pytest.raises(VmStartError, match="given up"):
        await task
    assert await rig.vms.running() == []
    assert rig.left() == {}


@pytest.mark.parametrize("fault", ["hangs", "raises", "lost"])
async def test_a_vm_is_ended_without_libvirt(rig: Rig, fault: str, released: Hang) -> None:
    await rig.start()
    faults = {"hangs": released.wait, "raises": raises(HypervisorError("x")), "lost": raises(ConnectionLostError("x"))}
    rig.virt.before["destroy"] = faults[fault]
    await rig.vms.destroy("j.1")
    assert rig.left() == {}
    assert rig.events == [VmGone("j.1", "failed")]


async def test_hung_calls_do_not_keep_others_from_being_made(rig: Rig, released: Hang) -> None:
    rig.virt.before["list"] = released.wait
    looks = [asyncio.create_task(rig.vms.foreign_devices()) for _ in range(10)]
    await rig.until(lambda: rig.virt.calls.count("list") == 11)  # `open` made the first
    await rig.start()
    results = await asyncio.gather(*looks, return_exceptions=True)
    assert all(isinstance(result, HypervisorError) for result in results)


async def test_calls_without_end_are_not_heaped_up(rig: Rig, released: Hang) -> None:
    rig.virt.before["list"] = released.wait
    await asyncio.gather(*(rig.vms.foreign_devices() for _ in range(16)), return_exceptions=True)
    with pytest.raises(HypervisorError, match=r"16 calls unanswered.*restart libvirtd"):
        await rig.vms.foreign_devices()
    released.set()
    await rig.until(lambda: not rig.vms._driver._calls.stuck)
    assert await rig.vms.foreign_devices() == {}


async def test_a_leftover_domain_of_the_name_is_ended_first(rig: Rig) -> None:
    rig.virt.create_paused(f"<domain><name>{NAME}</name></domain>")
    await rig.start()
    assert rig.virt.alive() == [NAME]
    assert rig.virt.ran == {NAME}


async def test_qemu_that_dies_between_the_steps(rig: Rig) -> None:
    rig.virt.after["create"] = lambda: rig.virt.kill(NAME)
    with pytest.raises(VmStartError, match="its QEMU ended at once"):
        await rig.start()
    assert rig.left() == {}


async def test_a_session_that_is_not_fresh(rig: Rig) -> None:
    with pytest.raises(VmStartError, match="session is not fresh"):
        await rig.start(may_run=lambda: False)
    assert rig.virt.ran == set()
    assert rig.left() == {}


async def test_a_cgroup_that_cannot_be_entered(rig: Rig) -> None:
    (rig.folder / "cgroup/cgroup.procs").mkdir()
    with pytest.raises(VmStartError, match="Is a directory"):
        await rig.start()
    assert rig.virt.ran == set()
    assert rig.left() == {}


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("file", ["run.json", "console", "seed.img"])
async def test_disk_full(rig: Rig, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.GuestFiles._write

    def full(self: files.GuestFiles, path: Path, content: bytes) -> None:
        if path.name == file:
            write(self, path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(self, path, content)

    monkeypatch.setattr(files.GuestFiles, "_write", full)
    with pytest.raises(VmStartError, match=rf"cannot write .*{file}: No space left on device; the host's disk is full"):
        await rig.start()
    assert rig.left() == {}
    assert "create" not in rig.virt.calls


async def test_hugepages_that_are_gone(rig: Rig) -> None:
    rig.host.pages = 3
    spec = VmSpec(**{f: getattr(SPEC, f) for f in SPEC.__slots__} | {"options": GuestOptions(hugepage_size_kib=2048)})
    with pytest.raises(VmStartError, match="node 0 has 3 free hugepages of 2048 KiB, the VM needs 32"):
        await rig.start(spec)
    assert "create" not in rig.virt.calls
    assert rig.left() == {}


async def test_more_vcpus_than_were_reserved(rig: Rig) -> None:
    spec = VmSpec(**{f: getattr(SPEC, f) for f in SPEC.__slots__} | {"vcpus": 2})
    with pytest.raises(VmStartError, match="2 vCPUs are asked for, but only 1"):
        await rig.start(spec)
    assert rig.left() == {}


async def test_a_uefi_image_without_firmware(rig: Rig) -> None:
    manifest = {"boot": "uefi", "disk": {"file": "root.img", "format": "raw"}}
    (rig.folder / "images/tiny/manifest.json").write_text(json.dumps(manifest))
    rig.vms._firmware = lambda: None
    with pytest.raises(VmStartError, match="no UEFI firmware for QEMU: install ovmf"):
        await rig.start()
    assert rig.left() == {}


@pytest.mark.parametrize(
    ("counter", "reason"), [(1, "killed by the host's kernel, which ran out of memory"), (0, "failed")]
)
async def test_killed_by_oom(rig: Rig, counter: int, reason: str) -> None:
    await rig.start()
    (rig.folder / "cgroup/memory.events").write_text(f"low 0\noom 1\noom_kill {counter}\n")
    rig.virt.kill(NAME)
    await rig.until(lambda: rig.events)
    assert rig.events == [VmGone("j.1", reason)]
    await rig.until(lambda: rig.left() == {})


async def test_a_guests_crash_is_told(rig: Rig) -> None:
    await rig.start()
    rig.virt.kill(NAME, "crashed")
    await rig.until(lambda: rig.events)
    assert rig.events == [VmGone("j.1", "crashed")]


async def test_others_devices(rig: Rig) -> None:
    rig.virt.foreign = {"0000:21:00.0": "windows"}
    assert await rig.vms.foreign_devices() == {"0000:21:00.0": "windows"}


async def test_a_planted_leak_is_seen(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of these tests is itself checked: a start that cleans up nothing must not pass it."""

    async def nothing(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(rig.vms, "_undo", nothing)
    rig.virt.before["resume"] = raises(HypervisorError("x"))
    with pytest.raises(VmStartError):
        await rig.start()
    assert set(rig.left()) == {"processes", "files"}
