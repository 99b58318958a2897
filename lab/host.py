"""A lab host that runs: started, waited for, spoken to, unplugged, reset, switched off. One QEMU process each.

The process dies with ours. What a test does to a host goes through here, so that nothing else needs to know of QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpupool.embedded.etcd import die_with_us

from . import shell
from .images import Images
from .machine import Files, Machine, Ports, qemu_argv
from .qmp import Qmp, QmpError

BOOT_S = 300.0
NVME_BYTES = 64 * 1024 * 1024
_MARK = re.compile(r"LAB\[([0-9.]+)\] (\S+)\r?\n")


class HostError(Exception):
    """A host did not start, or ended. The message has the end of its console."""


class Host:
    """One host; `folder`, made anew at each start, has its console, its QEMU's log and sockets.

    It runs on the logical CPU `core`. `timings` has seconds from the last start to each word on its console, and what
    others add.
    """

    def __init__(self, name: str, machine: Machine, images: Images, folder: Path, *, ports: Ports, core: int) -> None:
        self.name = name
        self.machine = machine
        self.folder = folder
        self.ports = ports
        self.timings: dict[str, float] = {}
        self._images = images
        self._core = core
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def argv(self) -> list[str]:
        """The command of its QEMU."""
        images = self._images
        files = Files(images.qemu, images.kernel, images.initrd, images.disks, self.folder)
        return qemu_argv(self.name, self.machine, files, self.ports)

    @property
    def console(self) -> str:
        """All that it wrote to its console since it was started."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""

    @property
    def running(self) -> bool:
        """Whether it is powered."""
        return self._process is not None and self._process.poll() is None

    @property
    def broken(self) -> str:
        """What the emulator did to it that no hardware would do; empty: nothing that we know of.

        QEMU 10.0 can abort when BARs move, and an emulated CPU that runs a guest can lose its timer: the interrupt
        stays in service for ever, and Linux tells of stalls.
        """
        if self._process is not None and not self.running:
            return "its QEMU ended"
        return "a CPU lost its timer" if "detected stalls" in self.console else ""

    def start(self) -> None:
        """Switch it on. Call it on a thread that lives on: the host dies with it."""
        assert not self.running, self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, device in self.machine.devices().items():
            if device.driver == "nvme":
                with (self.folder / f"{name}.img").open("wb") as disk:
                    disk.truncate(NVME_BYTES)
        (self.folder / "command").write_text(shlex.join(self.argv) + "\n")
        with (self.folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                # One core for all its CPUs: when two of them really run at once, QEMU 10.0 aborts now and then in
                # iotlb_to_section while BARs move. With thread=single instead, guests hang in their firmware.
                [*die_with_us(), "taskset", "-c", str(self._core), *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._images.qemu_environment},
                start_new_session=True,
            )
        self._started = time.monotonic()
        self.timings = {}

    async def booted(self, boots: int = 1, within_s: float = BOOT_S) -> None:
        """Return once it is ready for the given time since it was switched on. Raises HostError."""
        try:
            async with asyncio.timeout(within_s):
                while sum(word == "ready" for _, word in self._marks()) < boots:
                    self.check()
                    if boots == 1 and self.broken:  # a later boot may follow on a kernel that a test made hang
                        raise HostError(f"the emulator broke {self.name}: {self.broken}")
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise HostError(f"{self.name} is not ready after {within_s:g} s; {self._last_words()}") from None

    def check(self) -> None:
        """Raise HostError if it is not running."""
        self._note_marks()
        if not self.running:
            said = (self.folder / "qemu.log").read_text(errors="replace")[-1000:] if self.folder.exists() else ""
            raise HostError(f"{self.name} is off; QEMU said: {said!r}; {self._last_words()}")

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout_s: float = 120.0, check: bool = True
    ) -> shell.Result:
        """Run a shell command in it as root; see shell.run. Raises ShellError."""
        return await shell.run(self.ports.control, command, stdin=stdin, timeout_s=timeout_s, check=check)

    async def text(self, command: str, *, timeout_s: float = 120.0) -> str:
        """The output of a command that must succeed. Raises ShellError."""
        return (await self.run(command, timeout_s=timeout_s)).text

    async def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in it. Raises ShellError."""
        where = shlex.quote(path)
        await self.run(f"mkdir -p $(dirname {where}) && cat > {where} && chmod {mode:o} {where}", stdin=data)

    async def get(self, path: str) -> bytes:
        """A file in it. Raises ShellError."""
        return (await self.run(f"cat {shlex.quote(path)}")).output

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """One command to its QEMU, such as device_del. Raises QmpError."""
        async with Qmp(self.folder / "qmp.sock") as qmp:
            return await qmp.execute(command, **arguments)

    async def addresses(self) -> Mapping[str, str]:
        """Where its firmware and kernel have put each device of its topology, by name: "0000:21:00.0"."""
        wanted = self.machine.devices()
        found = _pci_ids(await self.qmp("query-pci"))
        return {name: address for name, address in sorted(found) if name in wanted}

    async def virtual_functions(self, adapter: str) -> list[str]:
        """Addresses of the SR-IOV virtual functions that are switched on of a device, in their order."""
        home = f"/sys/bus/pci/devices/{(await self.addresses())[adapter]}"
        return (await self.text(f"cd {home}; ls -dv virtfn* | xargs -rn1 readlink | xargs -rn1 basename")).split()

    async def switch_on_virtual_functions(self) -> None:
        """As many of each device as the machine says; done again at each boot, as on any host."""
        for name, device in self.machine.devices().items():
            if device.vfs:
                home = f"/sys/bus/pci/devices/{(await self.addresses())[name]}"
                await self.run(f"echo {device.vfs} > {home}/sriov_numvfs && udevadm settle -t 60")

    async def unplug(self, device: str) -> None:
        """Pull a device, as if the slot's button were pressed: the host's kernel is asked and lets go, or does not."""
        await self.qmp("device_del", id=device)

    async def partition(self, *, cut: bool) -> None:
        """Unplug the cable of the network to the cluster, or plug it in; `run` still works."""
        await self.qmp("set_link", name="nic-data", up=not cut)

    async def reset(self) -> None:
        """Press the reset button. Then wait with `booted(boots)`."""
        await self.qmp("system_reset")

    async def power_cut(self) -> None:
        """Switch it off at once, with all that runs in it; return when its process is gone."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None

    async def quit(self) -> None:
        """The same through QMP's `quit`."""
        with contextlib.suppress(QmpError):
            await self.qmp("quit")
        await self.power_cut()

    def _marks(self) -> list[tuple[float, str]]:
        self._note_marks()
        return [(float(up), word) for up, word in _MARK.findall(self.console)]

    def _note_marks(self) -> None:
        """Remember when each word was first seen, in seconds of our own clock."""
        for _, word in _MARK.findall(self.console):
            self.timings.setdefault(word, round(time.monotonic() - self._started, 1))

    def _last_words(self) -> str:
        return f"its console ends: {self.console[-1500:]!r}"


def _pci_ids(buses: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(id, address) of every device that `query-pci` lists."""
    for bus in buses:
        for device in bus["devices"]:
            yield device["qdev_id"], f"0000:{device['bus']:02x}:{device['slot']:02x}.{device['function']}"
            if "pci_bridge" in device:
                yield from _pci_ids([{"devices": device["pci_bridge"].get("devices", [])}])
