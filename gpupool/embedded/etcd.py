"""One etcd member as our child, on loopback: for `gpupool up`, `make demo` and tests; production brings its own.

It must never outlive us by accident (the kernel kills it when we die), never listen beyond loopback, and never lose
what it acknowledged, unless `durable` is False.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"

_READY = b"serving client traffic"  # logged by 3.4 to 3.6, with or without TLS, once the member has a leader
_START_TRIES = 5


class EtcdError(Exception):
    """etcd is not installed, or did not start. The message carries the end of its log."""


class EmbeddedEtcd:
    """A single-member cluster. It may be stopped, killed and started again, and keeps its data and its port.

    `data_dir` is made when absent; None is a temporary folder that `stop` and `kill` leave for the next `start` and
    `remove` deletes. `binary` defaults to $GPUPOOL_ETCD, then `etcd` in PATH. `extra` are further command-line flags,
    such as TLS files (then `scheme` must be "https"). `durable=False` trades safety at a power cut for speed, where
    this etcd can. With `fast`, elections take 0.1 s and the smallest lease TTL is 1 s instead of 2 s.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        binary: str | None = None,
        scheme: str = "http",
        extra: Sequence[str] = (),
        durable: bool = True,
        fast: bool = False,
    ) -> None:
        self._temporary = data_dir is None
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="gpupool-etcd-"))
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log_file = self.data_dir / "etcd.log"
        self._binary = binary or os.environ.get("GPUPOOL_ETCD") or "etcd"
        self._scheme = scheme
        self._extra = list(extra)
        if fast:
            self._extra += ["--heartbeat-interval=10", "--election-timeout=100"]
        if not durable and "--unsafe-no-fsync" in _help(self.path()):
            self._extra.append("--unsafe-no-fsync")
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def path(self) -> str:
        """The etcd binary. Raises EtcdError that says how to install it."""
        found = shutil.which(self._binary)
        if not found:
            raise EtcdError(f"{self._binary!r} was not found; on Debian and Ubuntu: apt-get install etcd-server")
        return found

    @property
    def endpoint(self) -> str:
        """host:port for clients, fixed by the first start."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id. Raises EtcdError when it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise EtcdError("etcd is not running")
        return self._process.pid

    async def start(self, timeout_s: float = 30.0) -> None:
        """Start and wait until it serves. Raises EtcdError."""
        fixed = self._port != 0
        for tries_left in reversed(range(_START_TRIES)):
            if not fixed:
                self._port = free_port()
            offset = self.log_file.stat().st_size if self.log_file.exists() else 0
            self._process = self._spawn()
            try:
                await self._wait_ready(offset, timeout_s)
            except EtcdError as exc:
                await self.kill()
                # Somebody took the port between our look and etcd's.
                if "address already in use" not in str(exc) or not tries_left:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    def _spawn(self) -> subprocess.Popen[bytes]:
        client, peer = f"{self._scheme}://{self.endpoint}", f"http://{LOOPBACK}:{free_port()}"
        command = [
            *die_with_us(),
            self.path(),
            "--name=gpupool",
            f"--data-dir={self.data_dir / 'member'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=gpupool={peer}",
            "--auto-compaction-retention=1",  # hours; without it the history grows for ever
            "--logger=zap",
            "--log-outputs=stderr",
            *self._extra,
        ]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    async def _wait_ready(self, offset: int, timeout_s: float) -> None:
        give_up = asyncio.get_running_loop().time() + timeout_s
        while True:
            log = self.log_file.read_bytes()[offset:]
            if _READY in log:
                return
            tail = log[-2000:].decode(errors="replace")
            if self._process is None or self._process.poll() is not None:
                raise EtcdError(f"etcd ended while starting; the end of {self.log_file}:\n{tail}")
            if asyncio.get_running_loop().time() > give_up:
                raise EtcdError(f"etcd is not ready after {timeout_s:g} s; the end of {self.log_file}:\n{tail}")
            await asyncio.sleep(0.02)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ask it to end, and kill it when it has not within `grace_s`."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            # In a thread, as Popen belongs to no event loop: a member may serve the tests of many loops.
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, grace_s)
        await self.kill()

    async def kill(self) -> None:
        """End it as a power cut would, frozen or not."""
        if self._process:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None

    def freeze(self) -> None:
        """Stop the process without closing its connections; on return its last thread has stopped."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Delete a temporary data folder; one that was given stays."""
        if self._temporary:
            shutil.rmtree(self.data_dir, ignore_errors=True)


@functools.cache
def _help(path: str) -> str:
    return subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout


def die_with_us() -> list[str]:
    """A command prefix that makes the kernel kill the child when our thread ends; empty without util-linux.

    A prefix and not preexec_fn, which is unsafe in a process with threads. SIGKILL, for a frozen child ignores SIGTERM.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
