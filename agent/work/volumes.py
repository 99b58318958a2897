"""Disks that outlive a VM: sparse ext4 images on storage that every host of the site mounts at the same place.

That storage may hang. Whatever touches it does so in a thread of its own: the event loop renews the host's session.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol

from gpupool.store.keys import check_name

from ..devices.blocking import in_own_thread


class VolumeError(Exception):
    """The volume could not be made; the message says why."""


class VolumeStore(Protocol):
    """Where volumes are kept."""

    async def ensure(self, job: str, name: str, size_mib: int) -> str:
        """The volume's file, made (with an empty file system) if there is none yet. Raises VolumeError."""
        ...


class DirectoryVolumes:
    """Implements VolumeStore as <root>/<job>/<name>.img."""

    def __init__(self, root: Path | None, host: str) -> None:
        self._root = root
        self._host = host

    async def ensure(self, job: str, name: str, size_mib: int) -> str:
        """See VolumeStore. A volume appears under its name only when whole, and is never made twice."""
        if self._root is None:
            raise VolumeError(f"volume {name!r} is asked for, but this host has no --volumes directory")
        file = self._root / check_name(job, "job") / f"{check_name(name, 'volume')}.img"
        # The host's name keeps two hosts apart that make it at once; the link decides who was first.
        draft = file.with_name(f".{name}.{self._host}.new")
        try:
            if not await in_own_thread(lambda: _prepare(file, draft, size_mib)):
                await self._format(draft)
                await in_own_thread(lambda: _place(draft, file))
        except OSError as exc:
            raise VolumeError(f"volume {file}: {exc.strerror}") from exc
        return str(file)

    async def _format(self, draft: Path) -> None:
        tool = await asyncio.create_subprocess_exec(
            "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", str(draft),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, errors = await tool.communicate()
        if tool.returncode != 0:
            await in_own_thread(lambda: draft.unlink(missing_ok=True))
            raise VolumeError(f"mke2fs of {draft}: {errors.decode(errors='replace').strip()}")


def _prepare(file: Path, draft: Path, size_mib: int) -> bool:
    """Whether the volume is there already; if not, an empty draft of it is."""
    if file.exists():
        return True
    file.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("wb") as image:
        image.truncate(size_mib << 20)
    return False


def _place(draft: Path, file: Path) -> None:
    try:
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
