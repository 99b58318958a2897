"""Fence programs: what they must show before "off" counts, and what they must not be able to do to us."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from scheduler.fencing.agents import FenceProgram
from scheduler.fencing.port import FenceError, Power, SeenOff
from scheduler.fencing.secret import Secret, cleaned
from tests.fakes.fence_program import fence_program
from tests.fakes.virtual_time import until

PASSWORD = "s3cret hunter2&/"


@pytest.fixture
def password(tmp_path: Path) -> Secret:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    path.chmod(0o600)
    return Secret(path)


def device(tmp_path: Path, secret: Secret, cases: str = "", limit_s: float = 10.0) -> FenceProgram:
    program = fence_program(tmp_path, cases)
    return FenceProgram("fence_test", str(program), {"ip": "10.0.0.7", "username": "ann"}, secret, limit_s=limit_s)


async def test_off_is_seen_by_a_status_of_its_own(tmp_path: Path, password: Secret) -> None:
    fence = device(tmp_path, password)
    assert await fence.status() is Power.ON
    assert await fence.off() == SeenOff()
    assert await fence.off() == SeenOff(already=True)
    assert (tmp_path / "actions").read_text().split() == ["status", "off", "status", "off", "status"]
    await fence.on()
    assert await fence.status() is Power.ON


async def test_an_acknowledged_off_that_is_not_seen_proves_nothing(tmp_path: Path, password: Secret) -> None:
    with pytest.raises(FenceError, match="reported success, but the power is on"):
        await device(tmp_path, password, 'off) echo "Success: Powered OFF"; exit 0 ;;').off()


@pytest.mark.parametrize("code", [1, 2, 3, 255])
async def test_any_other_exit_code_of_off_is_a_failure(tmp_path: Path, password: Secret, code: int) -> None:
    with pytest.raises(FenceError, match=f"action off failed with {code}: no route"):
        await device(tmp_path, password, f"off) echo off > $here/power; echo no route >&2; exit {code} ;;").off()


async def test_a_status_that_fails_is_not_off(tmp_path: Path, password: Secret) -> None:
    with pytest.raises(FenceError, match="action status failed with 1"):
        await device(tmp_path, password, "status) exit 1 ;;").off()


async def test_the_password_is_told_on_standard_input_only(tmp_path: Path, password: Secret) -> None:
    os.environ["BMC_OF_ANOTHER"] = "other-password"
    try:
        await device(tmp_path, password).off()
    finally:
        del os.environ["BMC_OF_ANOTHER"]
    assert f"password={PASSWORD}\n" in (tmp_path / "stdin").read_text()
    assert PASSWORD not in (tmp_path / "cmdlines").read_text()
    assert "other-password" not in (tmp_path / "env").read_text()


async def test_what_a_program_prints_is_told_without_the_password(tmp_path: Path, password: Secret) -> None:
    """As fence-agents do: "Ignoring unknown option 'password=...'"."""
    fence = device(tmp_path, password, "status) cat $here/stdin; cat $here/stdin >&2; exit 1 ;;")
    with pytest.raises(FenceError) as caught:
        await fence.status()
    assert "password=***" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [f"x{PASSWORD}x", "https://ann:s3cret%20hunter2%26%2F@bmc", "s3cret%20hunter2%26/", "YW5uOnMzY3JldCBodW50ZXIyJi8="],
)
def test_every_spelling_of_a_password_is_cut_out(text: str) -> None:
    assert "***" in cleaned(text, PASSWORD, "ann")
    assert len(cleaned("x" * 5000, PASSWORD)) < 400


async def test_a_late_program_is_killed_with_its_children(tmp_path: Path, password: Secret) -> None:
    fence = device(tmp_path, password, "off) sleep 300 & echo $! > $here/child; wait ;;", limit_s=0.5)
    begun = time.monotonic()
    with pytest.raises(FenceError, match=r"did not end within 0.5 s, and was killed"):
        await fence.off()
    assert time.monotonic() - begun < 5
    await _gone(int((tmp_path / "child").read_text()))


async def test_a_child_that_keeps_the_output_open_is_killed(tmp_path: Path, password: Secret) -> None:
    fence = device(tmp_path, password, "off) sleep 300 & echo $! > $here/child; exit 0 ;;", limit_s=0.5)
    with pytest.raises(FenceError, match="did not end"):
        await fence.off()
    await _gone(int((tmp_path / "child").read_text()))


async def test_a_try_that_is_given_up_leaves_no_program(tmp_path: Path, password: Secret) -> None:
    fence = device(tmp_path, password, "off) echo $$ > $here/child; sleep 300 ;;", limit_s=100)
    task = asyncio.create_task(fence.off())
    await until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await _gone(int((tmp_path / "child").read_text()))


async def _gone(pid: int) -> None:
    stat = Path(f"/proc/{pid}/stat")
    await until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", within_s=10)


async def test_a_flood_of_output_is_cut(tmp_path: Path, password: Secret) -> None:
    fence = device(tmp_path, password, "status) yes x | head -c 3000000; exit 1 ;;")
    with pytest.raises(FenceError) as caught:
        await fence.status()
    assert len(str(caught.value)) < 500


async def test_a_program_that_does_not_listen(tmp_path: Path, password: Secret) -> None:
    program = tmp_path / "fence_deaf"
    program.write_text("#!/bin/sh\nexec 0<&-\nexit 1\n")
    program.chmod(0o755)
    many = {f"p{n}": "x" * 1000 for n in range(200)}
    with pytest.raises(FenceError, match="failed with 1"):
        await FenceProgram("fence_deaf", str(program), many, password).off()


async def test_a_program_that_is_gone(tmp_path: Path, password: Secret) -> None:
    with pytest.raises(FenceError, match="fence_away"):
        await FenceProgram("fence_away", str(tmp_path / "fence_away"), {}, password).off()


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [(None, 0, "cannot read"), ("", 0o600, "is empty"), ("x\ny\n", 0o600, "line break"), ("x\n", 0o644, "chmod o-rwx")],
)
def test_password_files_that_are_refused(tmp_path: Path, content: str | None, mode: int, complaint: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(FenceError, match=complaint):
        Secret(path).read()


def test_a_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FenceError, match="BMC_X"):
        Secret(env="BMC_X").read()
    monkeypatch.setenv("BMC_X", "y")
    assert Secret(env="BMC_X").read() == "y"
    assert Secret().read() == ""
