"""The agent's records: the last word on each stands, whatever the process, the disk or an older agent did."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.work import records as module
from agent.work.journal import Journal
from agent.work.records import FileRecords

KINDS = ("vms", "units")


def journal(folder: Path) -> Path:
    return folder / "boots" / "b1" / "records"


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
    assert not journal(tmp_path).exists()


def test_what_is_given_out_is_nobody_elses(tmp_path: Path) -> None:
    records, given_s = FileRecords(tmp_path, "b1"), {"list": [1]}
    records.save("vms", "j.1", given_s)
    given_s["list"].append(2)
    records.load("vms")["j.1"]["list"].append(3)
    assert records.load("vms") == {"j.1": {"list": [1]}}


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_that_the_end_of_the_process_cut_short_does_not_count(tmp_path: Path, cut: int) -> None:
    first = FileRecords(tmp_path, "b1")
    first.save("vms", "j.1", {"state": "RUNNING"})
    whole = journal(tmp_path).read_bytes()
    first.save("vms", "j.1", {"state": "ENDED"})
    journal(tmp_path).write_bytes(journal(tmp_path).read_bytes()[: len(whole) + cut])
    second = FileRecords(tmp_path, "b1")
    assert second.load("vms") == {"j.1": {"state": "RUNNING"}}
    second.save("vms", "j.2", {"state": "PREPARING"})
    assert FileRecords(tmp_path, "b1").load("vms") == {"j.1": {"state": "RUNNING"}, "j.2": {"state": "PREPARING"}}


def test_a_line_that_the_disk_took_in_part_is_taken_back(tmp_path: Path) -> None:
    room = [10**9]

    def write(file: int, data: bytes) -> int:
        if not (taken := min(len(data), room[0])):
            raise OSError(errno.EIO, "Input/output error")
        room[0] -= taken
        return os.write(file, data[:taken])

    records = FileRecords(tmp_path, "b1", write=write)
    records.save("vms", "j.1", {"state": "RUNNING"})
    room[0] = 12
    with pytest.raises(OSError, match="Input/output"):
        records.save("vms", "j.1", {"state": "ENDED"})
    assert records.load("vms") == {"j.1": {"state": "RUNNING"}}, "as it would be for the next agent"
    room[0] = 10**9
    records.save("vms", "j.2", {"state": "PREPARING"})
    assert FileRecords(tmp_path, "b1").load("vms") == records.load("vms")
    assert set(records.load("vms")) == {"j.1", "j.2"}


def test_a_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    records = FileRecords(tmp_path, "b1")
    records.save("units", "u1", {"state": "QUARANTINED"})
    for number in range(8_000):
        records.save("vms", f"j.{number % 3}", {"number": number, "text": "x" * 100})
        if number % 100 == 0:
            assert journal(tmp_path).stat().st_size < module.LONG_BYTES + 1000
    assert FileRecords(tmp_path, "b1").load("vms") == records.load("vms")
    assert {one["number"] for one in records.load("vms").values()} == {7_997, 7_998, 7_999}
    assert records.load("units") == {"u1": {"state": "QUARANTINED"}}


def test_files_of_an_older_agent_are_taken_over(tmp_path: Path) -> None:
    for kind, name, record in (("vms", "j.1", {"state": "RUNNING"}), ("units", "0000:21:00.0", {"state": "HELD"})):
        file = tmp_path / "boots" / "b1" / kind / f"{name}.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(record))
    (file.parent / "half.new").write_text("{")
    for _ in range(2):
        records = FileRecords(tmp_path, "b1")
        assert records.load("vms") == {"j.1": {"state": "RUNNING"}}
        assert records.load("units") == {"0000:21:00.0": {"state": "HELD"}}
    assert not file.parent.exists()


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


def test_a_replacement_that_fails_leaves_the_lines(tmp_path: Path) -> None:
    full = False

    def write(file: int, data: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(file, data)

    lines = Journal(tmp_path / "lines", write)
    lines.append(b"one")
    full = True
    with pytest.raises(OSError, match="No space"):
        lines.replace([b"two"])
    full = False
    lines.append(b"three")
    assert Journal(tmp_path / "lines").lines() == [b"one", b"three"]
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]
