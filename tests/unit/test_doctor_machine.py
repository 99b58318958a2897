"""What the doctor asks of the living machine: answers, or None; never an exception."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.doctor.__main__ import leave_command, run_command
from agent.doctor.machine import LiveMachine, NoMachine


def test_a_program_is_run_or_nothing_is_known() -> None:
    machine = LiveMachine()
    assert machine.run((sys.executable, "-c", "print('QEMU 9')")) == "QEMU 9\n"
    assert machine.run((sys.executable, "-c", "raise SystemExit(1)")) is None
    assert machine.run(("/nowhere/qemu", "--version")) is None


def test_the_clock_and_the_disk_answer(tmp_path: Path) -> None:
    machine = LiveMachine()
    assert machine.clock_synchronised() in (True, False, None)
    assert machine.writable(str(tmp_path)) is True
    assert machine.writable(str(tmp_path / "absent")) is False


def test_a_copied_tree_has_no_machine() -> None:
    machine = NoMachine()
    assert (machine.run(("true",)), machine.writable("/"), machine.clock_synchronised()) == (None, None, None)


def test_commands_of_fix_say_what_went_wrong(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command((sys.executable, "-c", "")) == ""
    assert run_command((sys.executable, "-c", "raise SystemExit(3)")) == "ended with 3"
    assert "nowhere" in run_command(("/nowhere/update-grub",))
    assert leave_command(("update-grub",)) == ""
    assert "not run" in capfd.readouterr().out
