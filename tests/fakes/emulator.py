"""sushy-tools' Redfish emulator over libvirt, on loopback, with TLS and a password: for real requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import bcrypt
import requests

USER, PASSWORD = "admin", "s3cret-hunter2"
CHILD = Path(__file__).with_name("emulator_child.py")
REPO = CHILD.parents[2]


class Emulator:
    """One emulated BMC. `address` and `port` are where it listens. `qemu`: its machine is a real QEMU."""

    def __init__(self, folder: Path, *, qemu: bool = False) -> None:
        self.folder = folder
        self._qemu = qemu
        self.log = folder / "emulator.log"
        self.certificate = folder / "cert.pem"
        self.password_file = folder / "password"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.password_file.write_text(f"{PASSWORD}\n")
        self.password_file.chmod(0o600)
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        (self.folder / "htpasswd").write_text(f"{USER}:{hashed}\n")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bmc",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.folder / "key.pem", "-out", self.certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        with self.log.open("wb") as log:
            command = [sys.executable, str(CHILD), str(self.folder), *["qemu"] * self._qemu]
            environment = os.environ | {"PYTHONPATH": str(REPO)}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + 60
        while not (self.folder / "port").exists():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        self.port = int((self.folder / "port").read_text())
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
        if pid := self.machine_pid:  # libvirt's QEMUs outlive it
            os.kill(pid, signal.SIGKILL)

    @property
    def machine_pid(self) -> int:
        """The QEMU of the machine that is on; 0: there is none."""
        try:
            pid = int((self.folder / "libvirt/run/qemu/bmc.pid").read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return 0
        return 0 if state in "ZX" else pid

    def stop_answering(self) -> None:
        """As a BMC that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, path: str, **post: str) -> Any:
        answer = requests.request(
            "POST" if post else "GET", self.address + path, json=post or None, auth=(USER, PASSWORD),
            verify=str(self.certificate), timeout=30,
        )  # fmt: skip
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @property
    def system(self) -> str:
        (member,) = self.ask("/redfish/v1/Systems")["Members"]
        return str(member["@odata.id"])

    @property
    def power(self) -> str:
        return str(self.ask(self.system)["PowerState"])

    def switch(self, how: str) -> None:
        self.ask(f"{self.system}/Actions/ComputerSystem.Reset", ResetType=how)
