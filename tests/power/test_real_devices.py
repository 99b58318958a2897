"""Real Redfish requests and a real fence program, against sushy-tools' emulator: off is seen, secrets stay secret."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.fencing.agents import FenceProgram
from scheduler.fencing.config import load_power
from scheduler.fencing.port import FenceDevice, FenceError, Power, SeenOff
from scheduler.fencing.programs import describe
from scheduler.fencing.redfish import Redfish
from tests.fakes.emulator import PASSWORD, USER, Emulator

BOTH = pytest.mark.parametrize("kind", ["redfish", "fence_redfish"])


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("bmc")) as found:
        yield found


@pytest.fixture
def bmc(emulator: Emulator) -> Emulator:
    """Its host is on."""
    emulator.switch("On")
    return emulator


def power_file(folder: Path, bmc: Emulator, kind: str, *, password: str = PASSWORD, more: str = "") -> Path:
    secret = folder / "password"
    secret.write_text(f"{password}\n")
    secret.chmod(0o600)
    if kind == "redfish":
        device = f"address: '{bmc.address}', username: {USER}, verify: {bmc.certificate}"
    else:
        device = f"parameters: {{ip: 127.0.0.1, ipport: {bmc.port}, username: {USER}, ssl_insecure: true}}"
    path = folder / "power.yaml"
    path.write_text(f"hosts: {{h1: {{device: {kind}, password_file: {secret}, {device}{more}}}}}\n")
    return path


def device(folder: Path, bmc: Emulator, kind: str, *, password: str = PASSWORD, more: str = "") -> FenceDevice:
    return load_power(power_file(folder, bmc, kind, password=password, more=more))["h1"]


@BOTH
async def test_off_seen_off_and_on(tmp_path: Path, bmc: Emulator, kind: str) -> None:
    fence = device(tmp_path, bmc, kind)
    assert await fence.status() is Power.ON
    assert await fence.off() == SeenOff()
    assert await asyncio.to_thread(lambda: bmc.power) == "Off"
    assert await fence.status() is Power.OFF
    assert await fence.off() == SeenOff(already=True)
    await fence.on()
    assert await asyncio.to_thread(lambda: bmc.power) == "On"


@BOTH
async def test_wrong_credentials(tmp_path: Path, bmc: Emulator, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fence = device(tmp_path, bmc, kind, password="wrong-hunter3")
    for call in (fence.off, fence.status):
        with pytest.raises(FenceError) as caught:
            await call()
        assert "hunter3" not in str(caught.value)
    if kind == "redfish":
        assert f"refuses user {USER} with the password in {tmp_path / 'password'}" in str(caught.value)
    assert "hunter3" not in caplog.text
    assert await asyncio.to_thread(lambda: bmc.power) == "On"


@BOTH
async def test_nobody_listens(tmp_path: Path, bmc: Emulator, kind: str) -> None:
    fence = device(tmp_path, bmc, kind)
    if isinstance(fence, FenceProgram):
        fence = replace(fence, parameters={**fence.parameters, "ipport": "1"})
    else:
        assert isinstance(fence, Redfish)
        fence = replace(fence, address="https://127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(FenceError, match=r"127\.0\.0\.1"):
        await fence.off()
    assert time.monotonic() - begun < 30


async def test_a_certificate_of_nobodys(tmp_path: Path, bmc: Emulator) -> None:
    fence = device(tmp_path, bmc, "redfish")
    assert isinstance(fence, Redfish)
    with pytest.raises(FenceError, match=r"(?i)certificate"):
        await replace(fence, verify=True).off()
    assert await asyncio.to_thread(lambda: bmc.power) == "On"


async def test_a_named_system_that_is_not_there(tmp_path: Path, bmc: Emulator) -> None:
    with pytest.raises(FenceError, match="Systems/nosuch not found"):
        await device(tmp_path, bmc, "redfish", more=", system: /redfish/v1/Systems/nosuch").off()


@BOTH
async def test_a_bmc_that_hangs_is_given_up(tmp_path: Path, kind: str) -> None:
    with Emulator(tmp_path) as frozen:
        fence = device(tmp_path, frozen, kind, more=", limit_s: 1")
        frozen.stop_answering()
        begun = time.monotonic()
        with pytest.raises(FenceError):
            await fence.off()
        assert time.monotonic() - begun < 40
        if kind == "redfish":
            assert threading.active_count() < 20


@BOTH
def test_no_password_in_any_command_line(tmp_path: Path, bmc: Emulator, kind: str) -> None:
    """The whole scheduler program, while all of /proc is searched."""
    path = power_file(tmp_path, bmc, kind)
    found: list[str] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdecimal():
                    try:
                        line = (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    if PASSWORD.encode() in line:
                        found.append(line.decode(errors="replace"))

    searcher = threading.Thread(target=search)
    searcher.start()
    try:
        command = [sys.executable, "-m", "scheduler", "--power", str(path), "--check-power", "--log-level", "debug"]
        done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False, timeout=120)
    finally:
        stop.set()
        searcher.join()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"hosts": [{"host": "h1", "device": kind, "power": "on", "error": ""}]}
    assert found == []
    assert PASSWORD not in done.stdout + done.stderr


def test_the_check_says_which_device_does_not_answer(tmp_path: Path, bmc: Emulator) -> None:
    path = power_file(tmp_path, bmc, "redfish", password="wrong-hunter3")
    command = [sys.executable, "-m", "scheduler", "--power", str(path), "--check-power"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 10
    assert "h1" in done.stdout
    assert f"refuses user {USER}" in done.stdout
    assert "hunter3" not in done.stdout + done.stderr
    assert bmc.power == "On"


def test_the_programs_of_debian_are_understood() -> None:
    """Those that operators most likely have."""
    for name in ("fence_ipmilan", "fence_redfish", "fence_virsh", "fence_idrac", "fence_ilo5", "fence_apc_snmp"):
        assert describe(name).password_name
