"""VMs by libvirt: its calls, its events, its errors. The only module that imports it.

It decides nothing about a VM (see vmruntime.py). Calls may block and are made in threads; events come in the thread of
libvirt's event loop and are handed on at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt

from ..ports import VmStartError
from . import reaper
from .domain import allocation_of
from .embed import embed_root, prepare_root, run_dir
from .errors import HypervisorError, RuntimeUnavailableError, readable_open
from .runtime import Runtime

_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
}
# Pauses of a domain that was made and never let run; others, such as an I/O error, are of VMs that ran.
_NEVER_RAN = (libvirt.VIR_DOMAIN_PAUSED_UNKNOWN, libvirt.VIR_DOMAIN_PAUSED_USER, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
_loop_started = threading.Lock()


class LibvirtRuntime(Runtime):
    """Implements ports.VmRuntime. `uri` is qemu:///embed?root=DIR or qemu:///system; `cgroup` the guard's directory.

    A `simulated` host has emulated GPUs and pins nothing; `accel` is "auto", "kvm" or "tcg". libvirt allows one
    embedded root in a process, for the process's whole life.
    """

    def __init__(
        self,
        *,
        uri: str,
        images: Path,
        state_dir: Path,
        cgroup: Path | None,
        simulated: bool,
        accel: str = "auto",
        max_threads: int = 4,
    ) -> None:
        super().__init__(
            Libvirt(uri),
            run_dir=run_dir(uri),
            images=images,
            state_dir=state_dir,
            cgroup=cgroup,
            simulated=simulated,
            accel=accel,
            max_threads=max_threads,
        )


class Libvirt:
    """Implements vmruntime.Hypervisor. A connection that broke is made again at the next call."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None
        self._on_stop: Callable[[str, str], None] = lambda _name, _reason: None

    def open(self, on_stop: Callable[[str, str], None]) -> None:
        """See Hypervisor."""
        self._on_stop = on_stop
        if (root := embed_root(self._uri)) is not None:
            prepare_root(root)
            reaper.start()
        _start_event_loop()
        self._connected()

    def domains(self) -> list[tuple[str, bool]]:
        """See Hypervisor."""
        with _translated():
            found = self._connected().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        ours = [domain for domain in found if allocation_of(domain.name())]
        return sorted((domain.name(), never_ran) for domain in ours if (never_ran := _never_ran(domain)) is not None)

    def create_paused(self, xml: str) -> None:
        """See Hypervisor."""
        with _translated():
            self._connected().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

    def resume(self, name: str, wanted: Callable[[], bool]) -> None:
        """See Hypervisor."""
        with _translated():
            domain = self._connected().lookupByName(name)
            if not wanted():
                raise VmStartError("the start was given up")
            domain.resume()

    def destroy(self, name: str) -> None:
        """See Hypervisor."""
        with _translated():
            try:
                self._connected().lookupByName(name).destroy()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    raise

    def close(self) -> None:
        """See Hypervisor."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> Any:
        try:
            connection = libvirt.open(self._uri)
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        except libvirt.libvirtError as exc:
            raise RuntimeUnavailableError(f"{self._uri}: {readable_open(str(exc))}") from exc
        return connection

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._on_stop(domain.name(), _STOPPED.get(detail, "failed"))


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as exc:
        raise HypervisorError(str(exc)) from exc


def _never_ran(domain: Any) -> bool | None:
    """Whether the VM was made and never let run; None if it has ended since it was listed."""
    try:
        state, reason = domain.state()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise HypervisorError(str(exc)) from exc
    return state == libvirt.VIR_DOMAIN_PAUSED and reason in _NEVER_RAN


def _start_event_loop() -> None:
    """Run libvirt's event loop in a daemon thread, once in this process and before the first connection."""
    if not _loop_started.acquire(blocking=False):
        return
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else it also prints what it raises
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="gpupool-libvirt-events", daemon=True).start()
