"""`gpupool up` for real: others find it, and whatever ends it, nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpupool.embedded.daemons import CGROUP_ROOTS
from tests.e2e import needs
from tests.e2e.fleet import PATIENCE_S, processes, until

pytestmark = [*needs.ETCD, *needs.VMS]

JOB = "{name: long, image: debian-numpy, command: [sleep, '600'], cpus: 1, memory_mib: 160, gpus: {count: 1}}"


class Up:
    """`gpupool up` as a process, and other commands of the same user."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    async def gpupool(self, *arguments: str) -> str:
        """What a command prints. It must succeed."""
        asked = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gpupool", *arguments, env=environment(self.folder),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await asked.communicate()
        assert asked.returncode == 0, errors.decode()
        return output.decode()

    async def prints(self, text: str) -> None:
        assert self.process.stdout
        async with asyncio.timeout(PATIENCE_S):
            seen = ""
            while text not in seen:
                line = await self.process.stdout.readline()
                assert line, f"it ended: {seen}"
                seen += line.decode()

    async def runs_a_vm(self) -> set[int]:
        """Submit a job; its QEMU's process, once there is one."""
        spec = self.folder / "job.yaml"
        spec.write_text(JOB)
        await self.gpupool("submit", str(spec))
        found: set[int] = await until(lambda: processes("guest=gpupool-") & self.alive())
        return found

    async def lists_a_running_job(self) -> bool:
        return "long" in await self.gpupool("jobs", "--state", "running")

    def alive(self) -> set[int]:
        """All processes of the cluster: each has its folder in its command line."""
        return processes(f"{self.folder}/data")


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GPUPOOL")}
    return {**kept, "XDG_RUNTIME_DIR": str(folder)}


@contextlib.asynccontextmanager
async def started(folder: Path, images: Path) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "gpupool", "up", "--host", "a=1xnvidia-t4", "--replicas", "1", "--port", "0",
        "--data-dir", str(folder / "data"), "--images", str(images), env=environment(folder),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    up = Up(process, folder)
    try:
        await up.prints("Ready.")
        yield up
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        for name in (f"gpupool-{process.pid}-a/vms", f"gpupool-{process.pid}-a"):
            for root in CGROUP_ROOTS:
                with contextlib.suppress(OSError):
                    (root / name).rmdir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_is_found_and_ends_when_asked(short_folder: Path, images: Path, number: signal.Signals) -> None:
    async with started(short_folder, images) as up:
        assert "a  " in await up.gpupool("units")
        await up.runs_a_vm()
        up.process.send_signal(number)
        assert await asyncio.wait_for(up.process.wait(), PATIENCE_S) == 0
        assert not up.alive()
        assert not (short_folder / f"gpupool-{os.getuid()}" / "server").exists()


@pytest.mark.parametrize("moment", ["starting", "running"])
async def test_nothing_is_left_when_it_is_killed(short_folder: Path, images: Path, moment: str) -> None:
    """The kernel ends its daemons with it; the guard ends the VMs at their deadline, and then itself."""
    async with started(short_folder, images) as up:
        await up.runs_a_vm()
        if moment == "running":
            await until(up.lists_a_running_job)
        up.process.kill()
        await up.process.wait()
        await until(lambda: not up.alive(), within_s=15)


async def test_what_was_kept_is_there_again_and_no_vm_of_before(short_folder: Path, images: Path) -> None:
    async with started(short_folder, images) as up:
        old = await up.runs_a_vm()
        up.process.kill()
        await up.process.wait()
    async with started(short_folder, images) as up:
        assert not old & up.alive()  # or the job would run twice
        assert "long" in await up.gpupool("jobs")
        up.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(up.process.wait(), PATIENCE_S) == 0
