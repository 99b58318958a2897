"""The hypervisor with time limits: every call ends, and one whose connection broke under it is made again.

Each call is such that making it twice is making it once, which is what allows that: to make a domain first ends one of
the same name, to let it run does nothing to one that runs, to end it is fine if there is none. Whether a VM lives is
asked of its process, never of the hypervisor (see process.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from ..domain.shape import PREFIX
from . import process as vmproc
from .calls import Calls
from .errors import ConnectionLostError, HypervisorError
from .process import QemuProcess

T = TypeVar("T")
_log = logging.getLogger(__name__)
_OPEN_S = 60.0
_LOOK_UP_S = 30.0
_CREATE_S = 120.0  # and a second for each GiB of memory, which is allocated and pinned meanwhile
_DESTROY_S = 5.0  # for the hypervisor to end a VM; then its process is killed directly
_RECONNECT_S = 20.0  # a libvirtd that is restarted is back by then
_RETRY_S = 0.25
_LOOK_S = 0.02


class Hypervisor(Protocol):
    """What makes domains. Every method may block; all but `open` raise HypervisorError, and its kind
    ConnectionLostError if the connection broke and it is not known what was done.
    """

    def open(self, on_stop: Callable[[str, str], None], on_pause: Callable[[str, str], None]) -> None:
        """Connect; `on_stop` is then called, in any thread, with each domain that stops and why, `on_pause` with each
        that was let run and is paused.

        Raises RuntimeUnavailableError with what is missing.
        """
        ...

    def domains(self) -> list[tuple[str, bool]]:
        """Our active domains: name, and whether it was never let run."""
        ...

    def foreign_devices(self) -> Mapping[str, str]:
        """PCI functions that active domains of others own, each with its domain's name."""
        ...

    def create_paused(self, xml: str) -> None:
        """Make a domain whose CPUs do not run yet. One of the same name, left by an earlier try, is ended first."""
        ...

    def resume(self, name: str, wanted: Callable[[], bool]) -> None:
        """Let the CPUs run, if that is still wanted by then; else VmStartError. One that runs already is fine."""
        ...

    def shutdown(self, name: str) -> None:
        """Press the domain's ACPI power button; one that does not exist is fine."""
        ...

    def destroy(self, name: str) -> None:
        """End the domain by force; one that does not exist is fine."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Driver:
    """A hypervisor and its VMs' processes. `run_dir` is where it keeps pid files."""

    def __init__(self, hypervisor: Hypervisor, run_dir: Path) -> None:
        self._virt = hypervisor
        self._run_dir = run_dir
        self._calls = Calls()

    async def open(self, on_stop: Callable[[str, str], None], on_pause: Callable[[str, str], None]) -> None:
        """See Hypervisor."""
        await self._calls.run("open", lambda: self._virt.open(on_stop, on_pause), _OPEN_S)

    async def close(self) -> None:
        """See Hypervisor."""
        await self._calls.run("close", self._virt.close, _LOOK_UP_S)

    async def domains(self) -> list[tuple[str, bool]]:
        """See Hypervisor."""
        return await self._insist("list domains", self._virt.domains, _LOOK_UP_S)

    async def foreign_devices(self) -> Mapping[str, str]:
        """See Hypervisor."""
        return await self._insist("list devices", self._virt.foreign_devices, _LOOK_UP_S)

    async def create(self, xml: str, memory_mib: int, wanted: Callable[[], bool], late: Callable[[None], None]) -> None:
        """Make the domain, paused. `late`: it was given up, and there is a domain after all."""
        limit_s = _CREATE_S + memory_mib / 1024
        await self._insist("create", lambda: self._virt.create_paused(xml), limit_s, wanted, late)

    async def resume(self, allocation: str, wanted: Callable[[], bool]) -> None:
        """Let it run, if still wanted when it comes to it."""
        await self._insist("resume", lambda: self._virt.resume(PREFIX + allocation, wanted), _LOOK_UP_S, wanted)

    async def find(self, allocation: str) -> QemuProcess | None:
        """The VM's living process."""
        return await asyncio.to_thread(vmproc.find, self._run_dir, PREFIX + allocation)

    async def living(self) -> set[str]:
        """Allocations whose VMs have a living process."""
        return await asyncio.to_thread(vmproc.living, self._run_dir)

    async def shutdown(self, allocation: str) -> None:
        """Press the power button. Made once: a second press could mean something else to the guest."""
        await self._calls.run("shutdown", lambda: self._virt.shutdown(PREFIX + allocation), _LOOK_UP_S)

    async def end(self, allocation: str, process: QemuProcess) -> None:
        """End the process, returning when it is gone: by the hypervisor, which lets it finish writes, else directly."""
        try:
            await self._calls.run("destroy", lambda: self._virt.destroy(PREFIX + allocation), _DESTROY_S)
        except HypervisorError as exc:
            if process.alive:
                _log.warning("libvirt cannot end VM %s, killing it: %s", allocation, exc)
        process.kill()
        while process.alive:  # noqa: ASYNC110 - the watch may hold the only reader of this descriptor
            await asyncio.sleep(_LOOK_S)

    async def clear(self, allocation: str) -> None:
        """Leave neither domain nor process of that name, as far as the hypervisor can be asked."""
        try:
            await self._calls.run("destroy", lambda: self._virt.destroy(PREFIX + allocation), _DESTROY_S)
        except HypervisorError as exc:
            _log.warning("cannot make sure that libvirt has no domain of %s: %s", allocation, exc)
        if process := await self.find(allocation):
            await self.end(allocation, process)
            process.close()

    async def _insist(
        self,
        what: str,
        call: Callable[[], T],
        limit_s: float,
        wanted: Callable[[], bool] = lambda: True,
        late: Callable[[T], None] | None = None,
    ) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _RECONNECT_S
        while True:
            try:
                return await self._calls.run(what, call, limit_s, late=late)
            except ConnectionLostError as exc:
                if loop.time() >= deadline or not wanted():
                    raise
                _log.warning("the connection to libvirt broke (%s), trying again: %s", what, exc)
            await asyncio.sleep(_RETRY_S)
