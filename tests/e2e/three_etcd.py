"""Three etcd members in place of the embedded one; a minority of them goes on when they are stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gpupool.embedded.etcd import EmbeddedEtcd, free_port


async def three_members(directory: Path, binary: str | None = None) -> list[EmbeddedEtcd]:
    """A cluster of three, started. EmbeddedEtcd makes clusters of one; etcd takes the last of repeated flags."""
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
    cluster = ",".join(f"m{number}={url}" for number, url in enumerate(peers))
    members = [
        EmbeddedEtcd(
            directory / f"m{number}",
            binary=binary,
            durable=False,
            extra=[
                f"--name=m{number}", f"--listen-peer-urls={url}", f"--initial-advertise-peer-urls={url}",
                f"--initial-cluster={cluster}",
            ],
        )
        for number, url in enumerate(peers)
    ]  # fmt: skip
    await asyncio.gather(*(member.start(60) for member in members))
    return members


class ThreeEtcd(EmbeddedEtcd):
    """`stop` stops two of three, `start` starts what does not run."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._members: list[EmbeddedEtcd] = []

    @property
    def endpoint(self) -> str:
        """Those of all members."""
        return ",".join(member.endpoint for member in self._members)

    async def start(self, timeout_s: float = 30.0) -> None:
        """See EmbeddedEtcd."""
        if not self._members:
            self._members = await three_members(self.data_dir)
            return
        await asyncio.gather(*(member.start(timeout_s) for member in self._members[1:]))

    async def stop(self, grace_s: float = 5.0) -> None:
        """See EmbeddedEtcd."""
        await asyncio.gather(*(member.stop(grace_s) for member in self._members[1:]))

    async def kill(self) -> None:
        """End all of them."""
        await asyncio.gather(*(member.kill() for member in self._members))
