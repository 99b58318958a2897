"""Device operations in child processes: what hangs there harms nothing here. A FIFO hangs whoever opens it."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.devices.isolated import IsolatedSysfs
from agent.devices.isolated_worker import hot_reset
from agent.devices.remember import Remembered
from agent.inventory.sysfs import RealSysfs
from tests.fakes.agent_rig import MemoryRecords
from tests.unit.sysfs_fake import FakeSysfs

GPU, PORT = "0000:01:00.0", "0000:00:01.0"
DEVICES = "bus/pci/devices"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    port = tmp_path / "devices/pci0000:00" / PORT
    gpu = port / GPU
    gpu.mkdir(parents=True)
    (tmp_path / DEVICES).mkdir(parents=True)
    for home in (port, gpu):
        (tmp_path / DEVICES / home.name).symlink_to(home)
    (gpu / "config").write_bytes(bytes(range(64)))
    (gpu / "vendor").write_text("0x10de\n")
    (gpu / "driver_override").write_text("(null)\n")
    for name in ("reset", "sriov_numvfs"):
        os.mkfifo(gpu / name)
    os.mkfifo(port / "reset_subordinate")
    return tmp_path


@pytest.fixture
def sysfs(root: Path) -> Iterator[IsolatedSysfs]:
    isolated = IsolatedSysfs(RealSysfs(root), MemoryRecords(), read_limit_s=0.3)
    yield isolated
    isolated.close()


def release(fifo: Path) -> None:
    """Let whoever writes to the FIFO, now or soon, go on; returns when that is done."""
    file = os.open(fifo, os.O_RDWR)
    assert os.read(file, 1) == b"1"
    os.close(file)


def in_thread(call: Any) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def eventually(holds: Any) -> None:
    """Wait until it holds: the test's own time limit says for how long."""
    while not holds():
        threading.Event().wait(0.01)


def test_it_reads_and_writes_as_the_tree_itself(sysfs: IsolatedSysfs, root: Path) -> None:
    assert sysfs.read(f"{DEVICES}/{GPU}/vendor") == "0x10de"
    assert sysfs.read(f"{DEVICES}/{GPU}/driver_override") == "(null)"
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config", 4) == b"\0\1\2\3"
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config", 2, 8) == b"\x08\x09"
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/none/config") is None
    assert sysfs.link_name(f"{DEVICES}/{GPU}") == GPU
    assert (sysfs.link_target(f"{DEVICES}/{GPU}") or "").endswith(f"{PORT}/{GPU}")
    assert GPU in sysfs.list(DEVICES)
    sysfs.write(f"{DEVICES}/{GPU}/vendor", "0x1234")
    assert (root / DEVICES / GPU / "vendor").read_text() == "0x1234\n", "one write, no truncation, no newline"


@pytest.mark.parametrize(
    ("path", "number"),
    [(f"{DEVICES}/{GPU}/nothing", errno.ENOENT), (DEVICES, errno.EISDIR), (f"{DEVICES}/{GPU}/vendor/x", errno.ENOTDIR)],
)
def test_the_kernels_refusal_arrives(sysfs: IsolatedSysfs, path: str, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        sysfs.write(path, "1")
    assert caught.value.errno == number


def test_one_child_serves_many_calls(sysfs: IsolatedSysfs) -> None:
    for _ in range(20):
        sysfs.read_bytes(f"{DEVICES}/{GPU}/config", 4)
    assert len(sysfs._idle) == 1


def test_a_write_that_hangs_holds_up_nothing_else(sysfs: IsolatedSysfs, root: Path) -> None:
    thread = in_thread(lambda: sysfs.write(f"{DEVICES}/{GPU}/reset", "1"))
    eventually(lambda: sysfs._records and sysfs._records.load("operations"))
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config", 4) == b"\0\1\2\3"
    assert thread.is_alive()
    release(root / DEVICES / GPU / "reset")
    thread.join()
    assert sysfs._records is not None
    assert sysfs._records.load("operations") == {}


def test_a_read_that_hangs_is_given_up_and_not_tried_again(sysfs: IsolatedSysfs, root: Path) -> None:
    (root / DEVICES / GPU / "config").unlink()
    os.mkfifo(root / DEVICES / GPU / "config")
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config") is None
    (stuck,) = sysfs._stuck.values()
    eventually(lambda: not stuck.lives())  # killed: only the kernel could have kept it
    (root / DEVICES / GPU / "config").unlink()
    (root / DEVICES / GPU / "config").write_bytes(b"\1")
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config") == b"\1"


def test_while_a_read_hangs_the_function_is_not_read_again(sysfs: IsolatedSysfs) -> None:
    class Immortal:
        def lives(self) -> bool:
            return True

    sysfs._stuck[f"{DEVICES}/{GPU}"] = Immortal()  # type: ignore[assignment]
    assert sysfs.read_bytes(f"{DEVICES}/{GPU}/config") is None
    assert sysfs.read(f"{DEVICES}/{GPU}/vendor") == "0x10de", "which waits for nothing"


@pytest.mark.parametrize(
    ("path", "functions"), [(f"{DEVICES}/{GPU}/reset", [GPU]), (f"{DEVICES}/{PORT}/reset_subordinate", [PORT, GPU])]
)
def test_the_next_agent_knows_what_hangs(root: Path, path: str, functions: list[str]) -> None:
    records = MemoryRecords()
    first = IsolatedSysfs(RealSysfs(root), records)
    thread = in_thread(lambda: first.write(path, "1"))
    eventually(lambda: records.load("operations"))
    assert first.hung() == {}, "its own calls are its own to wait for"
    second = IsolatedSysfs(RealSysfs(root), records)
    assert second.hung() == dict.fromkeys(functions, f"write to {path}")
    release(root / path)
    thread.join()
    first.close()
    eventually(lambda: second.hung() == {})


def test_a_record_of_another_process_with_the_same_number_is_none_of_ours(root: Path) -> None:
    records = MemoryRecords()
    records.save("operations", "1", {"pid": os.getpid(), "started": 1, "what": "x", "functions": [GPU]})
    assert IsolatedSysfs(RealSysfs(root), records).hung() == {}
    assert records.load("operations") == {}


def test_an_agent_with_a_call_that_hangs_can_exit(root: Path) -> None:
    program = textwrap.dedent(f"""
        import select, threading
        from pathlib import Path
        from types import SimpleNamespace
        from agent.devices import isolated
        from agent.inventory.sysfs import RealSysfs
        asked = threading.Event()  # the child has its request, so that it will hang whatever becomes of us
        isolated.select = SimpleNamespace(select=lambda *words: asked.set() or select.select(*words))
        sysfs = isolated.IsolatedSysfs(RealSysfs(Path({str(root)!r})))
        threading.Thread(target=lambda: sysfs.write({f"{DEVICES}/{GPU}/reset"!r}, "1"), daemon=True).start()
        asked.wait()
        while not sysfs.read_bytes({f"{DEVICES}/{GPU}/config"!r}, 1): pass
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])
    release(root / DEVICES / GPU / "reset")  # the orphan must not outlive the test


def test_a_child_that_dies_is_an_error_and_not_used_again(sysfs: IsolatedSysfs) -> None:
    sysfs.read_bytes(f"{DEVICES}/{GPU}/config", 4)
    (child,) = sysfs._idle
    os.kill(child.pid, 9)
    eventually(lambda: not child.lives())
    with pytest.raises(OSError, match=r"died|Broken pipe"):
        sysfs.write(f"{DEVICES}/{GPU}/vendor", "0x1234")
    sysfs.write(f"{DEVICES}/{GPU}/vendor", "0x1234")


# The hot reset, against a kernel that is a function. Numbers: linux/vfio.h, on x86


class FakeVfio:
    """Answers ioctls as vfio does; `affected`: (segment, bus, devfn) that a hot reset hits."""

    def __init__(self, affected: list[tuple[int, int, int]], flags: int = 1) -> None:
        self.affected, self.flags = affected, flags
        self.asked: list[int] = []
        self.reset: tuple[int, ...] = ()

    def ioctl(self, _descriptor: int, request: int, argument: Any) -> Any:
        self.asked.append(request)
        if request == 0x3B67:
            struct.pack_into("=II", argument, 0, 8, self.flags)
        elif request == 0x3B66 and argument == 3:
            raise OSError(errno.EINVAL, "no type 1 version 2")
        elif request == 0x3B6A:
            assert bytes(argument) == b"0000:01:00.0\0"
            return os.open("/dev/null", os.O_RDONLY)
        elif request == 0x3B70:
            assert struct.unpack_from("=III", argument) == (len(argument), 0, 0)
            struct.pack_into("=I", argument, 8, len(self.affected))
            for index, (segment, bus, devfn) in enumerate(self.affected):
                struct.pack_into("=IHBB", argument, 12 + 8 * index, 7, segment, bus, devfn)
        elif request == 0x3B71:
            self.reset = struct.unpack("=III2i", argument)
        return 0


@pytest.fixture
def vfio(tmp_path: Path) -> str:
    for name in ("vfio", "7", "8"):
        (tmp_path / name).write_text("")
    return str(tmp_path)


def test_a_hot_reset(vfio: str) -> None:
    fake = FakeVfio([(0, 1, 0), (0, 1, 1)])
    hot_reset(vfio, GPU, [7, 8], [GPU, "0000:01:00.1"], fake.ioctl)
    assert fake.asked == [0x3B67, 0x3B68, 0x3B67, 0x3B68, 0x3B66, 0x3B66, 0x3B6A, 0x3B70, 0x3B71]
    assert fake.reset[:3] == (20, 0, 2)


def test_a_hot_reset_that_would_hit_another_is_not_made(vfio: str) -> None:
    fake = FakeVfio([(0, 1, 0), (0, 1, 0x0B)])
    with pytest.raises(PermissionError, match=r"the reset would hit 0000:01:01\.3 too"):
        hot_reset(vfio, GPU, [7], [GPU], fake.ioctl)
    assert 0x3B71 not in fake.asked


def test_a_hot_reset_of_a_group_with_a_stranger(vfio: str) -> None:
    fake = FakeVfio([], flags=0)
    with pytest.raises(PermissionError, match="IOMMU group 7 has a device that is not bound to vfio-pci"):
        hot_reset(vfio, GPU, [7], [GPU], fake.ioctl)


def test_a_hot_reset_without_vfio(sysfs: IsolatedSysfs, tmp_path: Path) -> None:
    isolated = IsolatedSysfs(RealSysfs(tmp_path), vfio=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        isolated.hot_reset(GPU, [7], [GPU])
    isolated.close()


# The memory


def test_functions_set_aside_are_answered_for_from_memory() -> None:
    base = f"{DEVICES}/{GPU}"
    tree = FakeSysfs({f"{base}/vendor": "0x10de", f"{base}/config": b"\1", f"{base}/reset_method": "flr", "x": "1"})
    tree.links = {f"{base}/driver": "vfio-pci"}
    remembered = Remembered(tree)
    seen = remembered.without([])
    paths = (f"{base}/vendor", f"{base}/reset_method", f"{base}/nothing")
    before = [seen.read(path) for path in paths], seen.read_bytes(f"{base}/config"), seen.link_name(f"{base}/driver")
    seen.list(DEVICES)
    seen.list(base)
    tree.files, tree.links = {"x": "2"}, {}
    aside = remembered.without([GPU])
    after = [aside.read(path) for path in paths], aside.read_bytes(f"{base}/config"), aside.link_name(f"{base}/driver")
    assert after == before
    assert aside.list(DEVICES) == [GPU]
    assert aside.list(base) == ["config", "driver", "reset_method", "vendor"]
    assert aside.read("x") == "2"
    assert remembered.without([]).list(DEVICES) == []
    assert remembered.answers == {}


def test_what_was_never_read_and_may_wait_is_not_read() -> None:
    base = f"{DEVICES}/{GPU}"
    tree = FakeSysfs({f"{base}/vendor": "0x10de", f"{base}/config": b"\1"})
    aside = Remembered(tree).without([GPU])
    assert aside.read(f"{base}/vendor") == "0x10de"
    assert aside.read_bytes(f"{base}/config") is None
    assert aside.list(DEVICES) == [GPU]


# Its end


def test_children_are_known_and_end_with_it(root: Path) -> None:
    isolated = IsolatedSysfs(RealSysfs(root))
    assert isolated.pids() == set()
    isolated.read_bytes(f"{DEVICES}/{GPU}/config")
    (pid,) = isolated.pids()
    assert Path(f"/proc/{pid}").exists()
    isolated.close()
    assert not Path(f"/proc/{pid}").exists()
    assert isolated.pids() == set()
