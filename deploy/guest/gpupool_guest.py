"""The helper inside a gpupool guest: runs one job and tells the host what becomes of it.

It decides: when the job is started, where its volumes are mounted, which signal it gets, what its exit code is, and
when the machine powers off. It speaks JSON lines over the virtio-serial port `org.gpupool.guest.0`.

    guest -> host  hello, started, devices, heartbeat, log, checkpointed, exit
    host -> guest  run, checkpoint, stop, bye

It must never block the job on a host that does not read (log lines are dropped, oldest first, and counted), never run
a second job, never format a volume, and never power off before the volumes are unmounted.

Either side may vanish for a while. After a reconnect the guest first writes an empty line, so that a line cut in half
is one unreadable line and no more; both sides skip what they cannot read. A host that lost its place sends `run`
again and is told the present state (`started`, or `exit`), which changes nothing else. The exit code also goes to the
serial console, for a host that was not listening.

The guest is emulated where there is no KVM, so imports are few: `typing`, `subprocess` and `dataclasses` would cost
more than the whole of the rest.
"""

# pathlib takes longer to import in the guest than all the rest:
# ruff: noqa: PTH103, PTH113, PTH116, PTH208

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Message: TypeAlias = dict[str, Any]

PORT_NAME = "org.gpupool.guest.0"
VERSION = 1
MAX_LINE_BYTES = 4096
MAX_LOG_BYTES = 2 << 20  # of queued log messages; a guest may have as little as 128 MiB
HELLO_EVERY_S = 1.0
HEARTBEAT_EVERY_S = 2.0
TICK_S = 0.1  # how often a checkpoint mark and an absent host are looked for
DRAIN_S = 0.5  # how long output is read after the job's end, should a stray process hold the pipe
BYE_WAIT_S = 5.0  # after `exit` has been written
EXIT_HOLD_S = 60.0  # while `exit` cannot be written because no host is connected
DEVICE_WAIT_S = 3.0
CANNOT_START = 126
NOT_FOUND = 127
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
CHECKPOINT_DONE = "/run/gpupool-checkpoint-done"


class Outbox:
    """What waits to be written: every control message, and as many of the latest log lines as fit."""

    def __init__(self, max_log_bytes: int = MAX_LOG_BYTES) -> None:
        self._queue: deque[tuple[str, bytes]] = deque()
        self._max_log_bytes = max_log_bytes
        self._log_bytes = 0
        self._dropped = 0

    def put(self, message: Message) -> None:
        """Queue a message; of `hello` and `heartbeat` only the latest is kept."""
        kind, data = message["type"], encode(message)
        if kind in {"hello", "heartbeat"}:
            self._queue = deque(entry for entry in self._queue if entry[0] != kind)
        self._queue.append((kind, data))
        if kind == "log":
            self._log_bytes += len(data)
            while self._log_bytes > self._max_log_bytes:
                self._drop_oldest_log()

    def take(self) -> bytes:
        """The next message as one line; empty when nothing waits."""
        if not self._queue:
            return b""
        if self._dropped and self._queue[0][0] in {"log", "exit"}:
            line = f"gpupool: {self._dropped} log lines dropped"
            self._dropped = 0
            return encode({"type": "log", "stream": "stderr", "line": line})
        kind, data = self._queue.popleft()
        if kind == "log":
            self._log_bytes -= len(data)
        return data

    def __bool__(self) -> bool:
        return bool(self._queue)

    def _drop_oldest_log(self) -> None:
        index = next(i for i, (kind, _) in enumerate(self._queue) if kind == "log")
        self._log_bytes -= len(self._queue[index][1])
        del self._queue[index]
        self._dropped += 1


class Port:
    """The line to the host: a non-blocking file descriptor that may have nobody at its other end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.connected = True
        self.outbox = Outbox()
        self._unsent = b""
        self._current = b""
        self._unread = b""
        os.set_blocking(fd, False)

    @property
    def idle(self) -> bool:
        """Whether everything has been written."""
        return not self._unsent and not self.outbox

    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (0 if self.idle else select.POLLOUT)

    def check(self) -> None:
        """See whether an absent host is back; without one, poll() would return POLLHUP for ever."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if not any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0)):
            self.connected = True
            self._unsent = b"\n" + self._current

    def lost(self) -> None:
        """Note that the host went away: a message half written is written again, one half read is forgotten."""
        self.connected = False
        self._unread = b""

    def read(self) -> list[Message]:
        """Messages that arrived; unreadable lines are skipped."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.lost()
            return []
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [message for message in map(decode, lines) if message is not None]

    def write(self) -> None:
        """Write as much as the host takes now."""
        while True:
            if not self._unsent:
                self._unsent = self._current = self.outbox.take()
                if not self._unsent:
                    return
            try:
                self._unsent = self._unsent[os.write(self.fd, self._unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self.lost()
                return
            if not self._unsent:
                self._current = b""


class Machine:
    """The guest's own hardware: ports, disks, PCI devices, power."""

    def __init__(self, sys_root: str = "/sys", dev_root: str = "/dev") -> None:
        self._sys = sys_root
        self._dev = dev_root

    def port_path(self) -> str | None:
        """The character device of our virtio-serial port (there is no udev to link it by name)."""
        folder = f"{self._sys}/class/virtio-ports"
        ports = (port for port in entries(folder) if read_text(f"{folder}/{port}/name") == PORT_NAME)
        return next((f"{self._dev}/{port}" for port in ports), None)

    def gpus(self) -> list[dict[str, str]]:
        """PCI devices of class 0x03 (display), by address."""
        folder = f"{self._sys}/bus/pci/devices"
        found = []
        for address in entries(folder):
            if read_text(f"{folder}/{address}/class").startswith("0x03"):
                vendor, device = (read_text(f"{folder}/{address}/{part}")[2:] for part in ("vendor", "device"))
                found.append({"address": address, "id": f"{vendor}:{device}"})
        return found

    def disk_path(self, serial: str) -> str | None:
        """The virtio disk with this serial (virtio-blk keeps 20 bytes of it)."""
        disks = (d for d in entries(f"{self._sys}/block") if read_text(f"{self._sys}/block/{d}/serial") == serial[:20])
        return next((f"{self._dev}/{disk}" for disk in disks), None)

    def mount(self, device: str, path: str) -> None:
        """Mount an ext4 file system; OSError when that fails."""
        os.makedirs(path, exist_ok=True)
        busybox("mount", "-t", "ext4", "-o", "rw,noatime", device, path)

    def unmount(self, path: str) -> None:
        """Unmount; OSError when that fails."""
        busybox("umount", path)

    def power_off(self) -> None:
        """End the machine; does not return on a real one."""
        busybox("poweroff", "-f")


class Job:
    """The job's processes and their output; the leader has a session of its own."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        """Start it; FileNotFoundError when there is no such program, OSError when it cannot be run."""
        program = find_program(argv[0], env["PATH"])
        self.streams: dict[int, str] = {}
        self._partial: dict[int, bytes] = {}
        pipes = {name: os.pipe() for name in ("stdout", "stderr")}
        try:
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, pipes["stdout"][1], 1),
                (os.POSIX_SPAWN_DUP2, pipes["stderr"][1], 2),
            ]
            self.pid = os.posix_spawn(
                program, argv, env, file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE, signal.SIGTERM]
            )
        except OSError:
            for read_end, _ in pipes.values():
                os.close(read_end)
            raise
        finally:
            for _, write_end in pipes.values():
                os.close(write_end)
        self.pidfd = os.pidfd_open(self.pid)
        for name, (read_end, _) in pipes.items():
            os.set_blocking(read_end, False)
            self.streams[read_end] = name
            self._partial[read_end] = b""

    def read(self, fd: int) -> list[Message]:
        """Log messages that a stream holds now; at its end the stream is closed and forgotten."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return []
        name = self.streams[fd]
        *lines, rest = (self._partial[fd] + data).split(b"\n")
        if len(rest) >= MAX_LINE_BYTES or (not data and rest):
            lines.append(rest)
            rest = b""
        self._partial[fd] = rest
        if not data:
            os.close(fd)
            del self.streams[fd], self._partial[fd]
        return [{"type": "log", "stream": name, "line": part} for line in lines for part in cut(line)]

    def signal(self, signum: int, *, group: bool) -> None:
        """Signal the leader, or all of its process group."""
        try:
            if group:
                os.killpg(self.pid, signum)
            else:
                os.kill(self.pid, signum)
        except ProcessLookupError:
            pass

    def exit_code(self) -> int | None:
        """The leader's exit code, 128 + signal if one killed it; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


class Helper:
    """One life of the guest: hello, run, exit, bye."""

    def __init__(self, port: Port, machine: Machine, checkpoint_done: str = CHECKPOINT_DONE) -> None:
        self._port = port
        self._machine = machine
        self._done_path = checkpoint_done
        self._job: Job | None = None
        self._exit: int | None = None
        self._mounted: list[str] = []
        self._finished = False
        self._next_beat = 0.0
        self._kill_at: float | None = None
        self._bye_by: float | None = None
        self._exit_by = 0.0
        self._checkpoint: tuple[float, int | None] | None = None  # give up at; mark's time before the request

    def serve(self) -> None:
        """Serve until the job has ended and the host knows it (or cannot be told); then power off."""
        while not self._finished:
            self._beat(time.monotonic())
            self._poll()
            now = time.monotonic()
            self._watch_checkpoint(now)
            self._watch_job(now)
            self._watch_farewell(now)
        self._shut_down()

    def _beat(self, now: float) -> None:
        if now < self._next_beat or self._exit is not None:
            return
        if self._job is None:
            self._port.outbox.put({"type": "hello", "version": VERSION})
            self._next_beat = now + HELLO_EVERY_S
        else:
            self._port.outbox.put({"type": "heartbeat", "uptime_s": round(now, 1)})
            self._next_beat = now + HEARTBEAT_EVERY_S

    def _poll(self) -> None:
        port, job = self._port, self._job
        poller = select.poll()
        if not port.connected:
            port.check()
        if port.connected:
            poller.register(port.fd, port.events())
        if job is not None:
            for fd in job.streams:
                poller.register(fd, select.POLLIN)
            if self._exit is None:
                poller.register(job.pidfd, select.POLLIN)
        busy = self._checkpoint is not None or not port.connected or self._exit is not None or self._kill_at is not None
        wait_s = TICK_S if busy else max(0.0, self._next_beat - time.monotonic())
        for fd, event in poller.poll(wait_s * 1000):
            if fd == port.fd:
                self._port_event(event)
            elif job is not None and fd in job.streams:
                self._forward(job, fd)

    def _port_event(self, event: int) -> None:
        if event & select.POLLIN:
            for message in self._port.read():
                self._handle(message)
        elif event & (select.POLLHUP | select.POLLERR):
            self._port.lost()
        if event & select.POLLOUT:
            self._port.write()

    def _forward(self, job: Job, fd: int) -> None:
        for message in job.read(fd):
            self._port.outbox.put(message)

    def _handle(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "run":
            self._run(message)
        elif kind == "bye" and self._exit is not None:
            self._finished = True
        elif self._job is None or self._exit is not None:
            return
        elif kind == "checkpoint":
            self._checkpoint = (time.monotonic() + float(message.get("grace_s", 30)), modified_ns(self._done_path))
            self._job.signal(signal.SIGUSR1, group=False)
        elif kind == "stop":
            self._job.signal(signal.SIGTERM, group=True)
            self._kill_at = time.monotonic() + float(message.get("grace_s", 10))

    def _run(self, message: Message) -> None:
        if self._exit is not None:
            self._port.outbox.put({"type": "exit", "code": self._exit})
        elif self._job is not None:
            self._port.outbox.put({"type": "started", "pid": self._job.pid})
        elif self._mount_volumes(message.get("volumes", [])):
            self._start([str(word) for word in message["argv"]], message.get("env", {}))

    def _mount_volumes(self, volumes: list[dict[str, str]]) -> bool:
        for volume in volumes:
            try:
                self._machine.mount(self._find_disk(volume["serial"]), volume["path"])
            except OSError as error:
                self._fail(CANNOT_START, f"cannot mount volume {volume['name']} at {volume['path']}: {error}")
                return False
            self._mounted.append(volume["path"])
        return True

    def _find_disk(self, serial: str) -> str:
        device = wait_for(lambda: self._machine.disk_path(serial))
        if device is None:
            raise FileNotFoundError("no disk with serial " + serial)
        return device

    def _start(self, argv: list[str], env: dict[str, str]) -> None:
        base = {"PATH": PATH, "HOME": "/tmp", "LANG": "C.UTF-8", "GPUPOOL_CHECKPOINT_DONE": self._done_path}
        try:
            self._job = Job(argv, base | env)
        except FileNotFoundError:
            self._fail(NOT_FOUND, f"program not found: {argv[0]}")
        except (OSError, IndexError, ValueError) as error:
            self._fail(CANNOT_START, f"cannot start {argv[:1]}: {error}")
        else:
            self._port.outbox.put({"type": "started", "pid": self._job.pid})
            self._port.outbox.put({"type": "devices", "gpus": self._machine.gpus()})

    def _fail(self, code: int, reason: str) -> None:
        self._port.outbox.put({"type": "log", "stream": "stderr", "line": f"gpupool: {reason}"})
        self._report_exit(code)

    def _watch_checkpoint(self, now: float) -> None:
        if self._checkpoint is None:
            return
        give_up_at, before = self._checkpoint
        if modified_ns(self._done_path) != before:
            self._port.outbox.put({"type": "checkpointed"})
            self._checkpoint = None
        elif now >= give_up_at:
            self._checkpoint = None

    def _watch_job(self, now: float) -> None:
        job = self._job
        if job is None or self._exit is not None:
            return
        if self._kill_at is not None and now >= self._kill_at:
            job.signal(signal.SIGKILL, group=True)
            self._kill_at = None
        code = job.exit_code()
        if code is not None:
            job.signal(signal.SIGKILL, group=True)
            self._watch_checkpoint(now)
            self._drain(job)
            self._report_exit(code)
        if os.getpid() == 1:
            reap_orphans(job.pid)

    def _drain(self, job: Job) -> None:
        stop_at = time.monotonic() + DRAIN_S
        while job.streams and time.monotonic() < stop_at:
            poller = select.poll()
            for fd in job.streams:
                poller.register(fd, select.POLLIN)
            for fd, _ in poller.poll(DRAIN_S * 1000):
                self._forward(job, fd)

    def _report_exit(self, code: int) -> None:
        self._exit = code
        self._exit_by = time.monotonic() + EXIT_HOLD_S
        self._port.outbox.put({"type": "exit", "code": code})
        print(f"gpupool-exit: {code}", flush=True)  # the console: a second way to the host

    def _watch_farewell(self, now: float) -> None:
        if self._exit is None:
            return
        if not self._port.idle or not self._port.connected:
            self._bye_by = None
        elif self._bye_by is None:
            self._bye_by = now + BYE_WAIT_S
        if now >= (self._exit_by if self._bye_by is None else self._bye_by):
            self._finished = True

    def _shut_down(self) -> None:
        if os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        os.sync()
        for path in reversed(self._mounted):
            try:
                self._machine.unmount(path)
            except OSError as error:
                print(f"gpupool: cannot unmount {path}: {error}", flush=True)
        os.sync()
        self._machine.power_off()


def encode(message: Message) -> bytes:
    """A message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """A line as a message; None when it is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def cut(line: bytes) -> list[str]:
    """A line of output as text, in pieces of at most MAX_LINE_BYTES."""
    pieces = [line[start : start + MAX_LINE_BYTES] for start in range(0, len(line), MAX_LINE_BYTES)] or [b""]
    return [piece.rstrip(b"\r").decode("utf-8", "replace") for piece in pieces]


def find_program(name: str, path: str) -> str:
    """Where a program lies, as execvp would look for it; FileNotFoundError when it does not exist."""
    places = [name] if "/" in name else [f"{folder}/{name}" for folder in path.split(":")]
    for place in places:
        if os.path.isfile(place):
            return place
    raise FileNotFoundError(name)


def entries(folder: str) -> list[str]:
    """Sorted names in a folder; none when it does not exist."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def read_text(path: str) -> str:
    """A small file's text without white space around it; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def modified_ns(path: str) -> int | None:
    """When a file was last changed; None when it does not exist."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def busybox(*args: str) -> None:
    """Run a busybox applet; OSError with its exit code when it fails."""
    pid = os.posix_spawn("/bin/busybox", ["busybox", *args], {})
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, f"busybox {args[0]} exited with {code}")


def reap_orphans(leader: int) -> None:
    """Reap whatever was left to us as PID 1, but not the job's leader, whose status `Job` wants."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == leader:
            return
        os.waitpid(found.si_pid, 0)


def wait_for(look: Callable[[], str | None]) -> str | None:
    """Ask until there is an answer, for a device that may still be appearing."""
    stop_at = time.monotonic() + DEVICE_WAIT_S
    while True:
        found = look()
        if found is not None or time.monotonic() >= stop_at:
            return found
        time.sleep(0.02)


def main() -> None:
    """Serve the host from inside a real guest."""
    # Inherited by the job: a checkpoint request must not kill a program that has no handler, or none yet.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    machine = Machine()
    path = wait_for(machine.port_path)
    if path is None:
        print(f"gpupool: no virtio-serial port {PORT_NAME}", flush=True)
        machine.power_off()
        sys.exit(1)
    Helper(Port(os.open(path, os.O_RDWR | os.O_CLOEXEC)), machine).serve()
    signal.pause()  # PID 1 must not return before the power is off


if __name__ == "__main__":
    main()
