"""BMCs that misbehave: whatever they answer, only a power state "Off" that was read is success."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from scheduler.fencing.port import FenceError, Power, SeenOff
from scheduler.fencing.redfish import Redfish
from scheduler.fencing.secret import Secret
from tests.fakes.bmc import BadBmc


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMC_TEST", "hunter2")


def device(bmc: BadBmc, limit_s: float = 3.0) -> Redfish:
    return Redfish(bmc.address, "ann", Secret(env="BMC_TEST"), limit_s=limit_s)


async def test_an_acknowledged_command_is_not_success() -> None:
    with BadBmc("On") as bmc:
        with pytest.raises(FenceError, match=r"told to switch off, and its power is still on, after 3 s"):
            await device(bmc).off()
        assert bmc.commands == ["ForceOff"]


async def test_it_looks_until_it_sees_off() -> None:
    with BadBmc("On", "On", "PoweringOff", "Off") as bmc:
        assert await device(bmc, limit_s=20).off() == SeenOff()
        assert bmc.commands == ["ForceOff"]


async def test_off_already_needs_no_command() -> None:
    with BadBmc("Off") as bmc:
        assert await device(bmc).off() == SeenOff(already=True)
        assert bmc.commands == []


@pytest.mark.parametrize("state", ["PoweringOff", "Paused", "off ", "", None, 0, ["Off"]])
async def test_no_other_state_is_off(state: object) -> None:
    with BadBmc(state) as bmc:
        with pytest.raises(FenceError):
            await device(bmc, limit_s=1).off()
        with suppress(FenceError):
            assert await device(bmc).status() is Power.BETWEEN


@pytest.mark.parametrize(
    "bmc",
    [
        BadBmc(status=500, text=b"{}"), BadBmc(status=403, text=b"{}"), BadBmc(text=b"<html>login</html>"),
        BadBmc(text=b"[]"), BadBmc(text=b'{"PowerState": "Off"'), BadBmc("On", members=2), BadBmc("On", members=0),
    ],
)  # fmt: skip
async def test_answers_without_a_meaning(bmc: BadBmc) -> None:
    with bmc, pytest.raises(FenceError) as caught:
        await device(bmc).off()
    assert "hunter2" not in str(caught.value)
    assert bmc.commands == []


async def test_several_systems_are_named() -> None:
    with BadBmc("On", members=2) as bmc, pytest.raises(FenceError, match="has 2 systems; name one as `system`"):
        await device(bmc).status()


async def test_a_call_that_hangs_keeps_away_the_next_to_the_same_bmc_only() -> None:
    with BadBmc("On") as stuck, BadBmc("Off") as fine:
        stuck.hang.clear()
        one = device(stuck)
        first = asyncio.create_task(one.off())
        await asyncio.sleep(0.2)
        begun = time.monotonic()
        with pytest.raises(FenceError, match="hangs still"):
            await one.off()
        assert await device(fine).off() == SeenOff(already=True)
        assert time.monotonic() - begun < 3
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        stuck.hang.set()
        await asyncio.sleep(1)
        assert stuck.commands == []  # given up before the command: it is not sent late
