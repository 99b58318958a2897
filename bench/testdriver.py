"""VMs on libvirt's test driver: real calls and real events of libvirt, with domains that are only its memory.

A bench's VmRuntime. It knows no process, no guest channel and no guard's cgroup, as this driver has none of them; so
it must never be used for more than measuring. The guest is played: let run, it says that it started, that its command
ended with 0, and powers off, which is a call to libvirt, whose event is then the VM's end.

The domain's XML is built as for a real host, and thrown away: the driver takes only domains of its own type, without
devices. It cannot make a domain paused, so `may_run` is asked just before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import libvirt

from agent.domain.shape import PREFIX, shape_of
from agent.domain.xml import allocation_of, domain_xml
from agent.ports import GuestExited, GuestStarted, VmEvent, VmGone, VmSpec, VmStartError
from agent.vms.calls import Calls
from agent.vms.files import GuestFiles
from agent.vms.hypervisor import Libvirt
from agent.vms.images import load_image

NODE = "<node/>"
LIMIT_S = 30.0


class Hypervisor(Libvirt):
    """libvirt's connection of one made-up host, whose domains nobody else sees."""

    def create(self, name: str, memory_mib: int) -> None:
        """Make the domain, which runs at once."""
        xml = (
            f"<domain type='test'><name>{name}</name><memory unit='MiB'>{memory_mib}</memory>"
            "<os><type>hvm</type></os></domain>"
        )
        with self._translated():
            self._connected().createXML(xml, 0)

    def power_off(self, name: str) -> None:
        """What its guest does when its command has ended."""
        with self._translated():
            self._unless_ended(lambda: self._domain(name).shutdown())


class TestDriverVms:
    """Implements ports.VmRuntime; see the module docstring. `folder` is this host's own."""

    def __init__(self, folder: Path, images: Path) -> None:
        node = folder / "node.xml"
        node.write_text(NODE)
        self._virt = Hypervisor(f"test://{node}")
        self._folder = folder
        self._images = images
        self._calls = Calls()
        self._sink: Callable[[VmEvent], None] = lambda _: None
        self._vms: dict[str, asyncio.Event] = {}

    async def open(self, sink: Callable[[VmEvent], None]) -> None:
        """See VmRuntime."""
        self._sink = sink
        loop = asyncio.get_running_loop()

        def on_stop(name: str, reason: str) -> None:
            loop.call_soon_threadsafe(self._stopped, name, reason)

        await self._calls.run("open", lambda: self._virt.open(on_stop, lambda _name, _reason: None), LIMIT_S)

    async def running(self) -> Sequence[str]:
        """See VmRuntime."""
        return sorted(self._vms)

    async def start(self, spec: VmSpec, *, may_run: Callable[[], bool]) -> None:
        """See VmRuntime."""
        name = spec.allocation
        shape = shape_of(
            spec, load_image(self._images, spec.image), GuestFiles(self._folder, name), accel="tcg", simulated=True
        )
        domain_xml(shape)
        if not may_run():
            raise VmStartError("the session is not fresh")
        self._vms[name] = asyncio.Event()
        await self._calls.run("create", lambda: self._virt.create(shape.name, shape.memory_mib), LIMIT_S)
        asyncio.get_running_loop().call_soon(self._play, name)

    def _play(self, name: str) -> None:
        """The guest's whole life."""
        if name not in self._vms:
            return
        self._sink(GuestStarted(name))
        self._sink(GuestExited(name, 0))
        self._virt.power_off(PREFIX + name)  # 0.1 ms, and no thread for it: this is not the agent's work

    async def checkpoint(self, allocation: str, grace_s: int) -> None:
        """See VmRuntime."""

    async def stop(self, allocation: str, grace_s: int) -> None:
        """See VmRuntime: the command of this guest has ended already."""

    async def press_power_button(self, allocation: str) -> None:
        """See VmRuntime."""

    async def destroy(self, allocation: str) -> None:
        """See VmRuntime."""
        if (gone := self._vms.get(allocation)) is None:
            return
        await self._calls.run("destroy", lambda: self._virt.destroy(PREFIX + allocation), LIMIT_S)
        await gone.wait()

    async def foreign_devices(self) -> Mapping[str, str]:
        """See VmRuntime."""
        return {}

    async def close(self) -> None:
        """See VmRuntime."""
        self._virt.close()

    def _stopped(self, name: str, reason: str) -> None:
        allocation = allocation_of(name) or ""
        if gone := self._vms.pop(allocation, None):
            self._sink(VmGone(allocation, reason))
            gone.set()


def version() -> str:
    """libvirt's."""
    number = libvirt.getVersion()
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
