"""Health in use: what is a fault of the device, and what only a guest at work; AER counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.devices.aer import AerCounts, parse, risen
from agent.devices.health import HealthWatch, Vitals, judge, read_vitals
from gpupool.v1.inventory_pb2 import PciFunction, Unit
from tests.fakes.agent_rig import MemoryRecords
from tests.unit.sysfs_fake import FakeSysfs

GPU = "0000:01:00.0"
BASE = f"bus/pci/devices/{GPU}"


def vitals(*, present: bool = True, answers: bool | None = True, width: int = 16, fatal: int = 0) -> Vitals:
    return Vitals(GPU, present, answers, width, AerCounts({"fatal": {"Malformed TLP": fatal}}))


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (vitals(), vitals(), ""),
        (vitals(), vitals(present=False), f"{GPU} has vanished from the bus"),
        (vitals(), vitals(answers=False), ""),
        (
            vitals(answers=False),
            vitals(answers=False),
            f"{GPU} does not answer: its config space reads 0xff throughout",
        ),
        (vitals(answers=False), vitals(answers=None), ""),
        (vitals(), vitals(width=8), ""),
        (vitals(width=8), vitals(width=8), f"{GPU}: link width fell to x8 from x16"),
        (vitals(width=8), vitals(width=16), ""),
        (vitals(width=0), vitals(width=0), f"{GPU}: link width fell to none from x16"),
        (vitals(), vitals(fatal=2), f"{GPU} had fatal PCIe errors (AER): Malformed TLP +2"),
    ],
)
def test_judge(before: Vitals, now: Vitals, found: str) -> None:
    assert judge(vitals(), before, now) == found


def test_a_link_that_was_never_up_cannot_fall() -> None:
    assert judge(vitals(width=0), vitals(width=0), vitals(width=0)) == ""


@pytest.mark.parametrize(
    ("config", "answers"), [(b"\xde\x10\xb5\x20", True), (b"\xff" * 4, False), (b"", None), (b"\xff", None)]
)
def test_read_vitals(config: bytes, answers: bool | None) -> None:
    files: dict[str, str | bytes] = {
        f"{BASE}/config": config,
        f"{BASE}/current_link_width": "16",
        f"{BASE}/aer_dev_fatal": "Malformed TLP 1\nTOTAL_ERR_FATAL 1",
    }
    found = read_vitals(FakeSysfs(files), GPU)
    assert found == Vitals(GPU, True, answers, 16, AerCounts({"fatal": {"Malformed TLP": 1}}))
    assert read_vitals(FakeSysfs({}), GPU) == Vitals(GPU, present=False)


def test_a_watch_remembers_between_two_looks() -> None:
    files: dict[str, str | bytes] = {f"{BASE}/config": b"\xde\x10\xb5\x20", f"{BASE}/current_link_width": "16"}
    tree = FakeSysfs(files)
    unit = Unit(id=GPU, functions=[PciFunction(address=GPU)])
    watch = HealthWatch(tree, MemoryRecords())
    assert watch.look(unit) == ""
    tree.files[f"{BASE}/current_link_width"] = "4"
    assert watch.look(unit) == ""
    assert watch.look(unit) == f"{GPU}: link width fell to x4 from x16"
    watch.end(unit)
    assert watch.look(unit) == "", "another VM, another first sight"


def test_a_watch_that_is_new_goes_on_from_what_the_vm_found() -> None:
    """The agent was restarted: an error meanwhile is one of this VM's use; one look tells no more than before."""
    files: dict[str, str | bytes] = {f"{BASE}/config": b"\xde\x10\xb5\x20", f"{BASE}/current_link_width": "16"}
    files[f"{BASE}/aer_dev_fatal"] = "Malformed TLP 1"
    tree, unit, records = FakeSysfs(files), Unit(id=GPU, functions=[PciFunction(address=GPU)]), MemoryRecords()
    HealthWatch(tree, records).begin(unit)
    tree.files[f"{BASE}/current_link_width"] = "4"
    restarted = HealthWatch(tree, records)
    assert restarted.look(unit) == ""
    assert restarted.look(unit) == f"{GPU}: link width fell to x4 from x16"
    tree.files[f"{BASE}/aer_dev_fatal"] = "Malformed TLP 2"
    restarted = HealthWatch(tree, records)
    assert restarted.look(unit) == f"{GPU} had fatal PCIe errors (AER): Malformed TLP +1"
    assert restarted.toll(unit) == f"{GPU} had fatal PCIe errors (AER): Malformed TLP +1"
    restarted.end(unit)
    assert HealthWatch(tree, records).toll(unit) == "", "its reclaim has forgotten it"


def test_errors_that_no_look_came_in_time_for() -> None:
    files: dict[str, str | bytes] = {f"{BASE}/config": b"\xde\x10\xb5\x20", f"{BASE}/aer_dev_fatal": "Malformed TLP 1"}
    tree, unit = FakeSysfs(files), Unit(id=GPU, functions=[PciFunction(address=GPU)])
    watch = HealthWatch(tree, MemoryRecords())
    assert (watch.toll(unit), watch.noted(unit)) == ("", ""), "no VM of ours has had it"
    watch.begin(unit)
    assert (watch.toll(unit), watch.noted(unit)) == ("", "")
    tree.files |= {f"{BASE}/aer_dev_fatal": "Malformed TLP 4", f"{BASE}/aer_dev_correctable": "Bad TLP 2"}
    assert watch.toll(unit) == f"{GPU} had fatal PCIe errors (AER): Malformed TLP +3"
    assert watch.noted(unit) == f"correctable AER errors of {GPU} in use: Bad TLP +2"


def test_a_free_units_errors_while_no_agent_looked() -> None:
    files: dict[str, str | bytes] = {f"{BASE}/config": b"\xde\x10\xb5\x20", f"{BASE}/current_link_width": "16"}
    files[f"{BASE}/aer_dev_fatal"] = "Malformed TLP 1"
    tree, unit, records = FakeSysfs(files), Unit(id=GPU, functions=[PciFunction(address=GPU)]), MemoryRecords()
    HealthWatch(tree, records).rest(unit)
    tree.files |= {f"{BASE}/aer_dev_fatal": "Malformed TLP 2", f"{BASE}/current_link_width": "63"}
    assert HealthWatch(tree, records).glance(unit) == f"{GPU} had fatal PCIe errors (AER): Malformed TLP +1"


def test_a_free_device_that_answers_no_more_is_told_of_at_the_second_sight() -> None:
    files: dict[str, str | bytes] = {f"{BASE}/config": b"\xde\x10\xb5\x20", f"{BASE}/power_state": "D3hot"}
    files |= {f"{BASE}/current_link_width": "16", f"{BASE}/aer_dev_fatal": "Malformed TLP 1"}
    tree, unit = FakeSysfs(files), Unit(id=GPU, functions=[PciFunction(address=GPU)])
    watch = HealthWatch(tree, MemoryRecords())
    assert watch.glance(unit) == ""
    tree.files[f"{BASE}/current_link_width"] = "63"
    assert [watch.glance(unit), watch.glance(unit)] == ["", ""], "its port may be asleep"
    tree.files[f"{BASE}/config"] = b"\xff" * 4096
    assert watch.glance(unit) == "", "once is not enough"
    assert watch.glance(unit) == f"{GPU} does not answer: its config space reads 0xff throughout"
    watch.end(unit)
    assert watch.glance(unit) == "", "its reclaim has looked at it since"
    tree.files[f"{BASE}/power_state"] = "D3cold"
    assert [watch.glance(unit), watch.glance(unit)] == ["", ""], "it is without power"
    tree.files |= {f"{BASE}/power_state": "D0", f"{BASE}/config": b"\xde\x10\xb5\x20"}
    assert watch.glance(unit) == ""
    tree.files[f"{BASE}/aer_dev_fatal"] = "Malformed TLP 3"
    assert watch.glance(unit) == f"{GPU} had fatal PCIe errors (AER): Malformed TLP +2"
    tree.files.clear()
    assert watch.glance(unit) == "", "what is gone is the inventory's to tell"


def test_aer_files_of_the_kernel() -> None:
    text = "Undefined 0\nData Link Protocol 3\nSurprise Down Error 1\nTOTAL_ERR_FATAL 4"
    assert parse(text) == {"Undefined": 0, "Data Link Protocol": 3, "Surprise Down Error": 1}
    assert parse("nonsense\n\n7\nRxErr x\nA -1") == {}


@given(st.text())
def test_no_aer_file_stops_the_parser(text: str) -> None:
    assert all(name and count >= 0 for name, count in parse(text).items())


def test_counters_that_began_anew_count_in_full() -> None:
    before = AerCounts({"fatal": {"A": 5, "B": 1}})
    assert risen(before, AerCounts({"fatal": {"A": 2, "B": 3, "C": 1}}), "fatal") == "A +2, B +2, C +1"
    assert risen(before, AerCounts({"fatal": {"A": 5}}), "fatal") == ""
    assert risen(before, AerCounts(), "fatal") == ""
