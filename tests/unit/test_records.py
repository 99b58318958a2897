"""The agent's records: the last word on each stands, whatever the process, the disk or an older agent did."""

from __future__ import annotations

import errno
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.work.records import FileRecords

KINDS = ("vms", "units")


def test_the_next_agent_of_the_boot_finds_them(tmp_path: Path) -> None:
    first = FileRecords(tmp_path, "b1")
    first.save("units", "0000:21:00.0", {"state": "HELD"})
    first.save("units", "0000:21:00.0", {"state": "DIRTY", "since_s": 1.5, "used": True, "seen": [1, None]})
    first.save("vms", "j.1", {"state": "ENDED"})
    first.remove("vms", "j.1")
    first.remove("vms", "never there")
    found = FileRecords(tmp_path, "b1")
    assert found.load("units") == {"0000:21:00.0": {"state": "DIRTY", "since_s": 1.5, "used": True, "seen": [1, None]}}
    assert found.load("vms") == {}
    assert FileRecords(tmp_path, "b2").load("units") == {}, "they mean nothing after a reboot"
    assert not (tmp_path / "boots" / "b1").exists()


def test_what_is_given_out_is_nobody_elses(tmp_path: Path) -> None:
    records, given_s = FileRecords(tmp_path, "b1"), {"list": [1]}
    records.save("vms", "j.1", given_s)
    given_s["list"].append(2)
    records.load("vms")["j.1"]["list"].append(3)
    assert records.load("vms") == {"j.1": {"list": [1]}}


def test_a_record_that_the_disk_took_in_part_leaves_the_one_before(tmp_path: Path) -> None:
    def write(file: Path, data: bytes) -> None:
        file.write_bytes(data[: len(data) if whole else 5])
        if not whole:
            raise OSError(errno.EIO, "Input/output error")

    whole = True
    records = FileRecords(tmp_path, "b1", write=write)
    records.save("vms", "j.1", {"state": "RUNNING"})
    whole = False
    with pytest.raises(OSError, match="Input/output"):
        records.save("vms", "j.1", {"state": "ENDED"})
    assert records.load("vms") == FileRecords(tmp_path, "b1").load("vms") == {"j.1": {"state": "RUNNING"}}


Step = tuple[str, str, Any]


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(["a", "b", 'c\n"ü']), st.none() | st.integers() | st.text()),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_they_are_what_was_last_said(steps: list[Step], reopened: int) -> None:
    said: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    with TemporaryDirectory() as folder:
        records = FileRecords(Path(folder), "b1")
        for number, (kind, name, value) in enumerate(steps):
            if number == reopened:
                records = FileRecords(Path(folder), "b1")
            if value is None:
                records.remove(kind, name)
                said[kind].pop(name, None)
            else:
                records.save(kind, name, {"value": value})
                said[kind][name] = {"value": value}
        assert {kind: records.load(kind) for kind in KINDS} == said
        assert {kind: FileRecords(Path(folder), "b1").load(kind) for kind in KINDS} == said
