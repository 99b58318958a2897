"""The same requests, where the machine that is switched off is a QEMU under libvirt: off is the end of its process."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator

import pytest

from scheduler.fencing.port import Power, SeenOff
from tests.fakes.emulator import Emulator
from tests.power.test_real_devices import BOTH, device

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"), reason="root and QEMU are needed for a domain"
)


@pytest.fixture(scope="module")
def bmc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Emulator(tmp_path_factory.mktemp("bmc"), qemu=True) as found:
        yield found


@BOTH
async def test_off_ends_the_machine(tmp_path_factory: pytest.TempPathFactory, bmc: Emulator, kind: str) -> None:
    fence = device(tmp_path_factory.mktemp(kind), bmc, kind)
    await fence.on()
    assert await fence.status() is Power.ON
    assert (machine := bmc.machine_pid)
    assert await fence.off() == SeenOff()
    assert not bmc.machine_pid
    assert await fence.status() is Power.OFF
    assert await fence.off() == SeenOff(already=True)
    await fence.on()
    assert await asyncio.to_thread(lambda: bmc.power) == "On"
    assert bmc.machine_pid not in (0, machine)
