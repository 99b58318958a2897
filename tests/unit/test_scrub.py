"""The operator's scrub command: its exit code, its end in time, and what it said."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from agent.devices.baseline import Final
from agent.devices.scrub import scrub
from gpupool.v1.inventory_pb2 import PciFunction, Unit
from tests.fakes.virtual_time import until

UNIT = Unit(id="0000:01:00.0", functions=[PciFunction(address="0000:01:00.0")])


async def test_success_says_nothing() -> None:
    await scrub(("true",), UNIT, "", 30)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("false",), "scrub command is exit code 1, expected exit code 0"),
        (("sh", "-c", "kill -9 $$"), "scrub command is ended by signal 9, expected exit code 0"),
        (("/no/such/command",), "scrub command is not to be started (/no/such/command: No such file or directory)"),
        (
            ("sh", "-c", "for n in 1 2 3 4 5 6 7; do echo line $n >&2; done; exit 7"),
            "scrub command is exit code 7: line 3 / line 4 / line 5 / line 6 / line 7, expected exit code 0",
        ),
    ],
)
async def test_failure_says_why(command: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Final) as caught:
        await scrub(command, UNIT, "", 30)
    assert reason in str(caught.value)


async def test_much_output_is_no_trouble() -> None:
    script = "print('x' * 3_000_000 + '\\nlast'); raise SystemExit(1)"
    with pytest.raises(Final, match=r"exit code 1: .*last"):
        await scrub((sys.executable, "-c", script), UNIT, "", 60)


async def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $! >> {pids}; echo $$ >> {pids}; echo still at it; wait"
    with pytest.raises(Final, match="still running after 1 s: still at it"):
        await scrub(("sh", "-c", script), UNIT, "", 1)
    await gone(pids)


async def test_nothing_is_left_of_a_command_that_nobody_waits_for_any_more(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    task = asyncio.create_task(
        scrub(("sh", "-c", f"echo $$ > {pids}.new; mv {pids}.new {pids}; sleep 600"), UNIT, "", 600)
    )
    await until(pids.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(pids)


async def gone(pids: Path) -> None:
    """Wait until none of the processes is alive; one that is dead and not yet reaped is not alive."""
    await until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
