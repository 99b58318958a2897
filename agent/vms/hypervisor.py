"""VMs by libvirt: its calls, its events, its errors. The only module that imports it.

It decides nothing about a VM (see runtime.py). Calls may block and are made in threads; events come in the thread of
libvirt's event loop and are handed on at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import libvirt

from ..domain.xml import allocation_of
from ..ports import VmStartError
from . import reaper
from .capacity import LinuxHost
from .embed import embed_root, prepare_root, run_dir
from .errors import ConnectionLostError, HypervisorError, RuntimeUnavailableError, readable_open
from .foreign import passed_addresses
from .runtime import Runtime

_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
}
_PAUSED = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED: "somebody suspended it (virsh suspend)",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR: "an I/O error of its disks",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG: "its watchdog",
}
# Pauses of a domain that was made and never let run; others, such as an I/O error, are of VMs that ran.
_NEVER_RAN = (libvirt.VIR_DOMAIN_PAUSED_UNKNOWN, libvirt.VIR_DOMAIN_PAUSED_USER, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
_KEEPALIVE_S, _KEEPALIVE_COUNT = 5, 3
_RECONNECT_S = 1.0
_PID_FILES = (Path("/run/libvirtd.pid"), Path("/run/virtqemud.pid"))
_loop_started = threading.Lock()
T = TypeVar("T")


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
        overlays: Path | None = None,
    ) -> None:
        super().__init__(
            Libvirt(uri),
            run_dir=run_dir(uri),
            images=images,
            state_dir=state_dir,
            cgroup=cgroup,
            simulated=simulated,
            accel=accel,
            host=LinuxHost(lambda: libvirtd_pid(uri)),
            overlays=overlays,
        )


class Libvirt:
    """Implements driver.Hypervisor. A connection that broke is made again at once, so that no event is missed, and at
    the next call. Keepalive messages tell of a libvirtd that hangs.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Any = None
        self._on_stop: Callable[[str, str], None] = lambda _name, _reason: None
        self._on_pause: Callable[[str, str], None] = lambda _name, _reason: None
        self._made: set[str] = set()  # domains that are made paused, until libvirt says that they run

    def open(self, on_stop: Callable[[str, str], None], on_pause: Callable[[str, str], None]) -> None:
        """See Hypervisor."""
        self._on_stop, self._on_pause = on_stop, on_pause
        if (root := embed_root(self._uri)) is not None:
            prepare_root(root)
            reaper.start()
        _start_event_loop()
        self._connected()

    def domains(self) -> list[tuple[str, bool]]:
        """See Hypervisor."""
        with self._translated():
            ours = [domain for domain in self._active() if allocation_of(domain.name())]
            states = [(domain.name(), _never_ran(domain)) for domain in ours]
        return sorted((name, never_ran) for name, never_ran in states if never_ran is not None)

    def foreign_devices(self) -> Mapping[str, str]:
        """See Hypervisor."""
        found: dict[str, str] = {}
        with self._translated():
            for domain in sorted(self._active(), key=lambda domain: str(domain.name())):
                name = domain.name()
                if allocation_of(name) is None and (xml := _unless_gone(domain.XMLDesc)) is not None:
                    found |= dict.fromkeys(passed_addresses(xml), name)
        return found

    def create_paused(self, xml: str) -> None:
        """See Hypervisor."""
        name = ET.fromstring(xml).findtext("name", "")  # noqa: S314 - our own
        self.destroy(name)
        self._made.add(name)
        with self._translated():
            self._connected().createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)

    def resume(self, name: str, wanted: Callable[[], bool]) -> None:
        """See Hypervisor."""
        with self._translated():
            domain = self._connected().lookupByName(name)
            if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                return
            if not wanted():
                raise VmStartError("the start was given up")
            domain.resume()

    def shutdown(self, name: str) -> None:
        """See Hypervisor."""
        with self._translated():
            self._unless_ended(lambda: self._domain(name).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    def destroy(self, name: str) -> None:
        """See Hypervisor."""
        self._made.discard(name)
        with self._translated():
            self._unless_ended(lambda: self._domain(name).destroy())

    def _domain(self, name: str) -> Any:
        return self._connected().lookupByName(name)

    @staticmethod
    def _unless_ended(call: Callable[[], object]) -> None:
        """Make the call; a domain that has ended is fine."""
        try:
            call()
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

    def _active(self) -> list[Any]:
        return list(self._connected().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))

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
        with contextlib.suppress(libvirt.libvirtError):  # an embedded driver has neither
            connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
            connection.registerCloseCallback(self._lost, None)
        return connection

    def _lost(self, connection: Any, _reason: int, _opaque: object) -> None:
        """The event loop of libvirt says that the connection closed; it must not be kept waiting."""
        if connection is not None and self._connection is not None:
            threading.Thread(target=self._reconnect, name="gpupool-libvirt-reconnect", daemon=True).start()

    def _reconnect(self) -> None:
        while self._connection is not None:  # None: `close` was called
            try:
                self._connected()
            except (RuntimeUnavailableError, libvirt.libvirtError):
                time.sleep(_RECONNECT_S)
            else:
                return

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        name = domain.name()
        match event:
            case libvirt.VIR_DOMAIN_EVENT_STOPPED:
                self._on_stop(name, _STOPPED.get(detail, "failed"))
            case libvirt.VIR_DOMAIN_EVENT_CRASHED:
                self._on_stop(name, "crashed")
            case libvirt.VIR_DOMAIN_EVENT_RESUMED:
                self._made.discard(name)
            case libvirt.VIR_DOMAIN_EVENT_SUSPENDED if name not in self._made:
                self._on_pause(name, _PAUSED.get(detail, "libvirt paused it"))
            case libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED:
                self._on_pause(name, "its guest went to sleep")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RuntimeUnavailableError as exc:
            raise ConnectionLostError(str(exc)) from exc
        except libvirt.libvirtError as exc:
            connection = self._connection
            lost = connection is not None and not connection.isAlive()
            raise (ConnectionLostError if lost else HypervisorError)(str(exc)) from exc


def libvirtd_pid(uri: str) -> int | None:
    """The process that starts QEMU: 0 for this one, None if nobody says (a remote URI, or a daemon not yet started)."""
    if embed_root(uri) is not None:
        return 0
    for file in _PID_FILES if urlsplit(uri).path == "/system" else ():
        with contextlib.suppress(OSError, ValueError):
            return int(file.read_text())
    return None


def _unless_gone(call: Callable[[], T]) -> T | None:
    """What the call of a domain's says; None if the domain has ended since it was listed."""
    try:
        return call()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _never_ran(domain: Any) -> bool | None:
    """Whether the VM was made and never let run; None if it has ended since it was listed."""
    found = _unless_gone(domain.state)
    return None if found is None else found[0] == libvirt.VIR_DOMAIN_PAUSED and found[1] in _NEVER_RAN


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
