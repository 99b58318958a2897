"""Our own daemons as child processes: found, started, watched, ended; on loopback, for `gpupool up` and tests."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from gpupool.embedded.etcd import die_with_us

CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


class DaemonError(Exception):
    """A daemon ended, or did not become ready. The message carries the reason that it gave, or the end of its log."""


def module_of(daemon: str) -> str:
    """The module of "scheduler" or "agent": under gpupool in an installed wheel, at the top in the source tree."""
    for module in (f"gpupool.{daemon}", daemon):
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(f"{module}.__main__"):
                return module
    raise DaemonError(f"the {daemon} is not installed; install it with: pip install 'gpupool[all]'")


class Daemon:
    """One child. Its output goes to `log`; it dies with us."""

    def __init__(self, daemon: str, arguments: Sequence[str], log: Path) -> None:
        self._command = [*die_with_us(), sys.executable, "-m", module_of(daemon), *arguments]
        self._daemon = daemon
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def pid(self) -> int:
        """Its process id; 0 when it was not started."""
        return self._process.pid if self._process is not None else 0

    def check(self) -> None:
        """Raise DaemonError if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            who = f"the {self._daemon} {self.log.stem}"
            lines = self.log.read_text(errors="replace").splitlines()
            if told := [line.removeprefix("error: ") for line in lines[-30:] if line.startswith("error: ")]:
                raise DaemonError(f"{who} ended: {told[-1]}")
            tail = "\n".join(lines[-15:])
            raise DaemonError(f"{who} ended with {self._process.returncode}; {self.log} ends:\n{tail}")

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ask it to end, then make it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, grace_s)
        await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None


class Fuse:
    """All processes of one simulated host, so that a power cut can end them at once.

    A cgroup where one may be made; and in any case everything whose command line names the host's folder.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        self.cgroup = _make_cgroup(name)

    def add(self, pid: int) -> None:
        """Put a process under the fuse; what it starts from now on is under it too."""
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text(str(pid))

    async def blow(self) -> None:
        """Kill all of them, and return when none is left."""
        for _ in range(200):
            if self.cgroup is not None:
                (self.cgroup / "cgroup.kill").write_text("1")
            found = list(_naming(self._folder))
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return
            await asyncio.sleep(0.02)
        raise DaemonError(f"processes of {self._folder} do not die: {list(_naming(self._folder))}")

    def remove(self) -> None:
        """Give the cgroup back."""
        if self.cgroup is None:
            return
        for child in sorted((p for p in self.cgroup.rglob("*") if p.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                child.rmdir()
        with contextlib.suppress(OSError):
            self.cgroup.rmdir()


def _make_cgroup(name: str) -> Path | None:
    """One of its own: several clusters of one process may have hosts of one name."""
    for root in CGROUP_ROOTS:
        if (root / "cgroup.procs").exists() and os.access(root, os.W_OK):
            with contextlib.suppress(OSError):
                path = _new_folder(root / name)
                if (path / "cgroup.kill").exists():
                    return path
                path.rmdir()
    return None


def _new_folder(path: Path) -> Path:
    for number in count(2):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
        path = path.with_name(f"{path.name.partition('.')[0]}.{number}")
    return path


def _naming(folder: Path) -> Iterable[int]:
    """Living processes, other than this one, whose command line names `folder`."""
    wanted = f"{folder}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except OSError:
            continue


def remove_tree(folder: Path) -> None:
    """Delete a folder with all in it; what cannot be deleted stays."""
    shutil.rmtree(folder, ignore_errors=True)
