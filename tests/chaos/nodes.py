"""The nodes of a run: etcd members, schedulers, hosts; each a process in its namespace, started again when it ends.

As a service manager would, a node starts what ended after a second, unless it is meant to be down. Every process and
mount of it is gone after `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from gpupool.embedded.daemons import Fuse, remove_tree
from gpupool.embedded.etcd import die_with_us
from tests.chaos.net import Network
from tests.e2e.fleet import processes

RESTART_S = 1.0
DISK_MIB = 200  # an etcd member's: two write-ahead files of 64 MiB, and its data
MODEL = "nvidia-t4"
GPUS = f"2x{MODEL}"
_GUEST = re.compile(rb"guest=gpupool-([^,\0]+)")
ETCD_PORT, PEER_PORT, API_PORT, AGENT_PORT = 2379, 2380, 50151, 50152


class Node:
    """One process, kept alive. `starts` counts."""

    def __init__(self, name: str, net: Network, folder: Path) -> None:
        self.name = name
        self.net = net
        self.folder = folder
        self.address = net.address(name)
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.wanted = False
        self.starts = 0
        self._ended = 0.0

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and want it from now on."""
        self.wanted = True
        self.starts += 1
        with self.log.open("ab") as log:
            log.write(f"=== start {self.starts}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [*die_with_us(), *self.net.inside(self.name), *self.command()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def tend(self) -> None:
        """Start it again if it has ended a while ago; to be called often."""
        if self.process is not None and self.process.poll() is not None:
            self.process, self._ended = None, time.monotonic()
        if self.wanted and self.process is None and time.monotonic() - self._ended > RESTART_S:
            self.start()

    @property
    def pid(self) -> int:
        """0: it does not run."""
        return self.process.pid if self.process is not None else 0

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL; it stays down until it is wanted again."""
        self.wanted = False
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None

    async def stop(self) -> None:
        self.wanted = False
        self.signal(signal.SIGCONT)
        await self.kill()


class Etcd(Node):
    """One member of three, on a small disk of its own."""

    def __init__(self, name: str, net: Network, folder: Path, members: Sequence[str]) -> None:
        super().__init__(name, net, folder)
        self._members = members
        self.disk = folder / f"disk-{name}"

    def mount(self) -> None:
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", self.disk], check=True)

    def command(self) -> Sequence[str]:
        peers = ",".join(f"{name}=http://{self.net.address(name)}:{PEER_PORT}" for name in self._members)
        client, peer = f"http://{self.address}:{ETCD_PORT}", f"http://{self.address}:{PEER_PORT}"
        return [
            shutil.which("etcd") or "etcd", f"--name={self.name}", f"--data-dir={self.disk}/member",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster={peers}", "--initial-cluster-state=new",
            f"--initial-cluster-token={self.net.tag}", "--logger=zap", "--log-outputs=stderr",
        ]  # fmt: skip

    def fill(self) -> None:
        """Take all that is left of its disk."""
        with contextlib.suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    def free(self) -> None:
        (self.disk / "filler").unlink(missing_ok=True)

    async def stop(self) -> None:
        await super().stop()
        await (await asyncio.create_subprocess_exec("umount", "-l", self.disk)).wait()


class Scheduler(Node):
    """A replica."""

    def __init__(self, name: str, net: Network, folder: Path, etcd: str) -> None:
        super().__init__(name, net, folder)
        self._etcd = etcd

    def command(self) -> Sequence[str]:
        listen = f"{self.address}:{API_PORT}"
        return [sys.executable, "-m", "scheduler", "--name", self.name, "--etcd", self._etcd, "--listen", listen]


class Host(Node):
    """A simulated host: its agent is the process that is kept alive; guard and VMs live and die by themselves."""

    def __init__(self, name: str, net: Network, folder: Path, etcd: str, images: Path) -> None:
        super().__init__(name, net, folder)
        self._etcd = etcd
        self._images = images
        self.home = folder / "hosts" / name
        self._fuse = Fuse(f"{net.tag}-{name}", self.home)
        self.boot_id = ""

    def boot(self) -> None:
        """Power on: nothing of an earlier boot is left on its tmpfs."""
        remove_tree(self.home)
        self.home.mkdir(parents=True)
        self.boot_id = str(uuid.uuid4())
        self.start()

    def start(self) -> None:
        if self._fuse.cgroup is not None:
            (self._fuse.cgroup / "vms").mkdir(exist_ok=True)
        super().start()
        self._fuse.add(self.pid)

    def command(self) -> Sequence[str]:
        options = {
            "--name": self.name, "--etcd": self._etcd, "--listen": f"{self.address}:{AGENT_PORT}",
            "--simulate": GPUS, "--images": self._images, "--volumes": self.folder / "volumes",
            "--state-dir": self.home / "state", "--libvirt-uri": f"qemu:///embed?root={self.home}/state/vms",
            "--boot-id": self.boot_id,
        }  # fmt: skip
        if self._fuse.cgroup is not None:
            options["--cgroup"] = self._fuse.cgroup / "vms"
        return [sys.executable, "-m", "agent", *(str(word) for pair in options.items() for word in pair)]

    async def power_cut(self) -> None:
        """All that runs here ends at once."""
        self.wanted = False
        await self._fuse.blow()
        await self.kill()

    def kill_guard(self) -> None:
        for pid in processes(f"{self.home}/state/guard.state"):
            with contextlib.suppress(OSError):
                if b"guard" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def vms(self) -> dict[str, int]:
        """Living QEMUs here: allocation -> process."""
        found = {}
        for pid in processes(f"{self.home}/"):
            with contextlib.suppress(OSError):
                if match := _GUEST.search(Path(f"/proc/{pid}/cmdline").read_bytes()):
                    found[match[1].decode()] = pid
        return found

    def in_cgroup(self) -> list[str]:
        """Processes in the VMs' cgroup."""
        if self._fuse.cgroup is None:
            return []
        return [pid for file in (self._fuse.cgroup / "vms").rglob("cgroup.procs") for pid in file.read_text().split()]

    async def stop(self) -> None:
        self.signal(signal.SIGCONT)
        await self.power_cut()
        self._fuse.remove()
