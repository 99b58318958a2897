"""A sysfs tree whose dangerous accesses run in child processes.

A write to a sick device, and some reads, can put whoever makes them into uninterruptible sleep for ever: they wait in
the kernel for the device's lock, or for its config space (pci_wait_cfg, drivers/pci/access.c). A thread of the agent in
that state would keep the whole process from ever exiting, so systemd could not restart it. A child that hangs costs
one process; the agent goes on, and remembers, over its own restarts, which functions the child may be holding.

Children are reused: starting one takes 20 to 90 ms, asking one that is there about 1 ms on a busy machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..inventory.pci import DEVICES, canonical_address
from ..inventory.sysfs import MAX_TEXT_BYTES, RealSysfs
from ..work.records import Records

READ_LIMIT_S = 5.0  # a read that takes longer counts as failed: a reset by the kernel blocks one for about a second
MAX_IDLE = 8  # children kept for later
# Attributes that wait for the device's lock (sriov_numvfs_show, driver_override_show) or its config space.
BLOCKING_READS = frozenset({"config", "driver_override", "sriov_numvfs"})
_KIND = "operations"
_SCRIPT = Path(__file__).with_name("isolated_worker.py")


class IsolatedSysfs:
    """The tree of `sysfs`, with every write and each read that may block in a child. Implements `ports.Sysfs`.

    Calls block the thread that makes them, writes for as long as the kernel does; that thread can still be abandoned.
    `records` keep which operations are under way; without them, those of an earlier agent are not known.
    """

    def __init__(
        self,
        sysfs: RealSysfs,
        records: Records | None = None,
        *,
        vfio: str = "/dev/vfio",
        read_limit_s: float = READ_LIMIT_S,
    ) -> None:
        self._sysfs = sysfs
        self._records = records
        self._vfio = vfio
        self._read_limit_s = read_limit_s
        self._idle: list[_Child] = []
        self._children: dict[int, _Child] = {}  # by process id
        self._lock = threading.Lock()
        self._left = records.load(_KIND) if records else {}
        self._stuck: dict[str, _Child] = {}  # by directory: the last read there that did not come back

    def read(self, path: str) -> str | None:
        """See ports.Sysfs. None also if the kernel does not answer in time."""
        if PurePosixPath(path).name not in BLOCKING_READS:
            return self._sysfs.read(path)
        raw = self.read_bytes(path, MAX_TEXT_BYTES)
        return None if raw is None else raw.decode("utf-8", errors="replace").strip()

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        """See ports.Sysfs. None also if the kernel does not answer in time."""
        if PurePosixPath(path).name not in BLOCKING_READS:
            return self._sysfs.read_bytes(path, limit, offset)
        directory = str(PurePosixPath(path).parent)
        if (stuck := self._stuck.get(directory)) and stuck.lives():
            return None
        child = self._take()
        try:
            request = {"op": "read", "path": self._full(path), "limit": limit, "offset": offset}
            answer = self._ask(request, self._read_limit_s, child)
        except TimeoutError:
            self._stuck[directory] = child
            return None
        except OSError:
            return None
        return bytes.fromhex(answer["data"])

    def list(self, path: str) -> list[str]:
        """See ports.Sysfs."""
        return self._sysfs.list(path)

    def link_name(self, path: str) -> str | None:
        """See ports.Sysfs."""
        return self._sysfs.link_name(path)

    def link_target(self, path: str) -> str | None:
        """See ports.Sysfs."""
        return self._sysfs.link_target(path)

    def write(self, path: str, text: str) -> None:
        """See ports.Sysfs."""
        request = {"op": "write", "path": self._full(path), "text": text}
        self._recorded(request, f"write to {path}", self._functions(path, text))

    def hot_reset(self, address: str, groups: Sequence[int], ours: Collection[str]) -> None:
        """Reset the slot or bus of `address` through vfio-pci, if that hits no function but `ours`. Raises OSError.

        All of `ours` must be bound to vfio-pci and unused; `groups` are their IOMMU groups.
        """
        request = {"op": "hot-reset", "vfio": self._vfio, "address": address, "groups": sorted(groups)}
        self._recorded({**request, "ours": sorted(ours)}, "vfio hot reset", sorted(ours))

    def hung(self) -> dict[str, str]:
        """Functions on which an operation of an earlier agent still hangs, with what it is."""
        self._left = {name: record for name, record in self._left.items() if _lives(record) or self._forget(name)}
        return {address: record["what"] for record in self._left.values() for address in record["functions"]}

    def pids(self) -> set[int]:
        """The children, which have devices open now and then."""
        with self._lock:
            self._children = {pid: child for pid, child in self._children.items() if child.lives()}
            return {*self._children}

    def close(self) -> None:
        """End the children that have nothing to do. Those that hang stay, for the next agent to know of."""
        with self._lock:
            children, self._idle = self._idle, []
        for child in children:
            child.end()

    def _full(self, path: str) -> str:
        return str(self._sysfs.root / path)

    def _functions(self, path: str, text: str) -> Sequence[str]:
        """Functions that a write may lock: the one in its path, or named in its text, and all behind that."""
        parts = PurePosixPath(path).parts
        address = parts[3] if path.startswith(f"{DEVICES}/") and len(parts) > 3 else text.strip()
        return [] if canonical_address(address) != address else [address, *self._behind(f"{DEVICES}/{address}")]

    def _behind(self, directory: str) -> Iterator[str]:
        for entry in self._sysfs.list(directory):
            if canonical_address(entry) == entry:
                yield entry
                yield from self._behind(f"{directory}/{entry}")

    def _recorded(self, request: dict[str, Any], what: str, functions: Sequence[str]) -> None:
        """Ask, with a record of it for the agent after this one, should the child outlive this one."""
        child = self._take()
        if self._records:
            record = {"pid": child.pid, "started": _started(child.pid), "what": what, "functions": list(functions)}
            self._records.save(_KIND, str(child.pid), record)
        try:
            self._ask(request, None, child)
        finally:
            if self._records:
                self._records.remove(_KIND, str(child.pid))

    def _ask(self, request: dict[str, Any], limit_s: float | None, child: _Child | None = None) -> dict[str, Any]:
        child = child or self._take()
        answer = child.ask(request, limit_s)
        self._give_back(child)
        if number := answer.get("errno"):
            raise OSError(number, answer.get("message") or os.strerror(number), request.get("path"))
        return answer

    def _take(self) -> _Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        child = _Child()  # not under the lock: of several that are wanted at once, none has to wait for the others
        with self._lock:
            self._children[child.pid] = child
        return child

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(child)
                return
        child.end()

    def _forget(self, name: str) -> bool:
        if self._records:
            self._records.remove(_KIND, name)
        return False


class _Child:
    """One child process."""

    def __init__(self) -> None:
        # -I -S: no site packages, no environment: a fast start, and nothing that anybody put there. A session of its
        # own: a Ctrl-C that ends the agent must not cut a reset short.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has started: from here on, only the kernel takes time

    def ask(self, request: dict[str, Any], limit_s: float | None) -> dict[str, Any]:
        """The child's answer. Raises OSError if it dies, TimeoutError (an OSError) if it takes longer than `limit_s`.

        After an error the child is of no more use: it was told to end, which it does once the kernel lets go of it.
        """
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        try:
            pipe_in.write(json.dumps(request).encode() + b"\n")
            pipe_in.flush()
            if not select.select([pipe_out], [], [], limit_s)[0]:
                raise TimeoutError(None, f"no answer from the kernel after {limit_s:g} s")
            if not (line := pipe_out.readline()):
                raise BrokenPipeError(None, f"the process that did it died ({self._process.wait()})")
        except OSError:
            self._process.kill()
            threading.Thread(target=self._process.wait, name="gpupool-reaper", daemon=True).start()
            raise
        answer: dict[str, Any] = json.loads(line)
        return answer

    def lives(self) -> bool:
        """Whether there is still a process."""
        return self._process.poll() is None

    def end(self) -> None:
        """Let the idle child go."""
        with contextlib.suppress(OSError):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
        self._process.wait()


def _started(pid: int) -> int:
    """When the process began, in clock ticks since boot (field 22 of /proc/<pid>/stat); 0 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def _lives(record: dict[str, Any]) -> bool:
    return bool(record["started"]) and _started(record["pid"]) == record["started"]
