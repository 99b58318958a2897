"""Volumes lie on storage of the site, which may hang: that is the job's trouble, and not the host's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.work.volumes import DirectoryVolumes, VolumeError


async def test_storage_that_hangs_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    (tmp_path / "j1").mkdir()
    fifo = tmp_path / "j1/.data.h1.new"
    os.mkfifo(fifo)  # whoever opens it to write waits for somebody to read
    making = asyncio.create_task(DirectoryVolumes(tmp_path, "h1").ensure("j1", "data", 1))
    await asyncio.sleep(0.1)
    assert not making.done()
    os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    with pytest.raises(VolumeError, match=r"volume .*/j1/data\.img: "):
        await making


async def test_a_volume_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "j1").mkdir()
    (tmp_path / "j1/data.img").write_text("a job's")
    assert await DirectoryVolumes(tmp_path, "h1").ensure("j1", "data", 1) == str(tmp_path / "j1/data.img")
    assert (tmp_path / "j1/data.img").read_text() == "a job's"


async def test_a_host_without_a_directory_for_volumes() -> None:
    with pytest.raises(VolumeError, match="no --volumes directory"):
        await DirectoryVolumes(None, "h1").ensure("j1", "data", 1)
