"""A full state directory: nothing new begins, what ends is still put on record, and a guest's output stops nothing."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.work.logs import LogStore
from agent.work.records import BALLAST_BYTES, FileRecords
from tests.fakes.vms import FakeClock


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for the ballast and little more."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={BALLAST_BYTES + 64 * 1024}", "small", tmp_path], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left."""
    file = folder / "filler"
    with file.open("ab", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError as exc:
            assert exc.errno == errno.ENOSPC  # noqa: PT017
    return file


def test_ends_are_put_on_record_though_the_disk_is_full(small: Path) -> None:
    records = FileRecords(small, "b1")
    records.save("vms", "j.1", {"state": "RUNNING"})
    assert records.no_room() == ""
    filler = fill(small)
    ended = {"j.1": {"state": "ENDED", "message": "more than is left of the last page: " + "." * 8192}}
    records.save("vms", "j.1", ended["j.1"])
    assert records.load("vms") == FileRecords(small, "b1").load("vms") == ended
    fill(small)
    assert str(small) in records.no_room()
    assert "No space left" in records.no_room()
    filler.unlink()
    assert records.no_room() == ""


def test_other_errors_are_told(tmp_path: Path) -> None:
    def broken(_: Path, __: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    records = FileRecords(tmp_path, "b1", write=broken)
    assert "Input/output error" in records.no_room()
    with pytest.raises(OSError, match="Input/output"):
        records.save("vms", "j.1", {})


async def test_output_that_finds_no_room_is_lost_and_nothing_else(small: Path) -> None:
    logs = LogStore(small, FakeClock())
    logs.append("j.1", [("stdout", "before")])
    filler = fill(small)
    logs.append("j.1", [("stdout", "lost" * 10_000)])  # the first page of it still fits into the file's last block
    filler.unlink()
    logs.append("j.1", [("stdout", "after")])
    assert [line[2] async for chunk in logs.read("j.1") for line in chunk] == ["before", "after"]
