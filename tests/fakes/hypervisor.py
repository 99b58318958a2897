"""A hypervisor without libvirt whose VMs are small processes: for tests of the runtime, and for bench/start.py.

A VM is `sleep` under the name that QEMU would have, with a pid file as libvirt writes it, so that all that asks the
process and not the hypervisor (see agent/vms/process.py) works for real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from agent.ports import VmStartError

Fault = Callable[[], None]


@dataclass
class FakeHypervisor:
    """Implements agent.vms.driver.Hypervisor. `before` and `after` hold a fault for a step ("create", "resume",
    "destroy", "list"): called before or after the step does its work; what it raises, the step raises.
    """

    run_dir: Path
    before: dict[str, Fault] = field(default_factory=dict)
    after: dict[str, Fault] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    xml: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    on_stop: Callable[[str, str], None] = lambda _name, _reason: None
    on_pause: Callable[[str, str], None] = lambda _name, _reason: None
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, on_stop: Callable[[str, str], None], on_pause: Callable[[str, str], None]) -> None:
        self.on_stop, self.on_pause = on_stop, on_pause
        self.run_dir.mkdir(parents=True, exist_ok=True)

    def domains(self) -> list[tuple[str, bool]]:
        with self._step("list"):
            return sorted((name, name not in self.ran) for name in self.alive())

    def foreign_devices(self) -> Mapping[str, str]:
        with self._step("list"):
            return dict(self.foreign)

    def create_paused(self, xml: str) -> None:
        with self._step("create"):
            name = ET.fromstring(xml).findtext("name", "")
            self._end(name)
            words = [f"guest={name},", "1000"]
            process = subprocess.Popen(words, executable="/bin/sleep", start_new_session=True)
            self._processes[name], self.xml[name] = process, xml
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # the kernel sets it last
                pass
            (self.run_dir / f"{name}.pid").write_text(str(process.pid))

    def resume(self, name: str, wanted: Callable[[], bool]) -> None:
        with self._step("resume"):
            if not wanted():
                raise VmStartError("the start was given up")
            self.ran.add(name)

    def shutdown(self, name: str) -> None:
        with self._step("shutdown"):
            pass  # its guest has no system that would hear

    def destroy(self, name: str) -> None:
        with self._step("destroy"):
            self._end(name)

    def close(self) -> None:
        self.calls.append("close")

    # The world's side

    def alive(self) -> list[str]:
        """Names of the domains that have a process."""
        return sorted(name for name, process in self._processes.items() if process.poll() is None)

    def kill(self, name: str, reason: str = "failed") -> None:
        """The process dies by SIGKILL, and libvirt says why."""
        os.kill(self._processes[name].pid, signal.SIGKILL)
        self._processes[name].wait()
        self.on_stop(name, reason)

    def kill_all(self) -> None:
        for name in list(self._processes):
            self._end(name)

    def _end(self, name: str) -> None:
        if process := self._processes.get(name):
            process.kill()
            process.wait()
            self.on_stop(name, "destroyed")

    @contextlib.contextmanager
    def _step(self, step: str) -> Iterator[None]:
        self.calls.append(step)
        self.before.get(step, lambda: None)()
        with self._lock:
            yield
        self.after.get(step, lambda: None)()
