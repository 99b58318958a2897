"""The guest helper's protocol, spoken over a socket pair, with made-up hardware and real job processes."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.guest import gpupool_guest as guest

Message = dict[str, Any]
PATIENCE_S = 20.0


class FakeMachine(guest.Machine):
    """A machine whose /sys is a folder, and which notes what is done to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root / "sys"), str(root / "dev"))
        self.done: list[str] = []
        self.mountable = True

    def mount(self, device: str, path: str) -> None:
        if not self.mountable:
            raise OSError(5, "broken")
        self.done.append(f"mount {Path(device).name} {path}")

    def unmount(self, path: str) -> None:
        self.done.append(f"unmount {path}")

    def power_off(self) -> None:
        self.done.append("power off")


class Host:
    """The host's end, and the helper running in a thread at the other."""

    def __init__(self, root: Path) -> None:
        self.machine = FakeMachine(root)
        self._end, self._guest_end = socket.socketpair()
        self._end.settimeout(PATIENCE_S)
        self._unread = b""
        self.seen: list[Message] = []
        port = guest.Port(self._guest_end.fileno())
        helper = guest.Helper(port, self.machine, str(root / "done"))
        self._thread = threading.Thread(target=helper.serve, daemon=True)
        self._thread.start()

    def send(self, kind: str, **fields: Any) -> None:
        self._end.sendall(json.dumps({"type": kind} | fields).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        self._end.sendall(data)

    def run(self, program: str, **fields: Any) -> None:
        self.receive("hello")
        self.send("run", argv=[sys.executable, "-u", "-c", program], env={}, **fields)

    def receive(self, kind: str) -> Message:
        """The next message of a kind; what comes before it goes to `seen`."""
        while True:
            while b"\n" not in self._unread:
                data = self._end.recv(65536)
                assert data, f"the helper ended before {kind}"
                self._unread += data
            line, self._unread = self._unread.split(b"\n", 1)
            message: Message = json.loads(line)
            self.seen.append(message)
            if message["type"] == kind:
                return message

    def lines(self) -> list[tuple[str, str]]:
        return [(m["stream"], m["line"]) for m in self.seen if m["type"] == "log"]

    def finish(self) -> list[str]:
        """Say goodbye; what was done to the machine."""
        self.send("bye")
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.machine.done

    def close(self) -> None:
        self._end.close()
        self._thread.join(0.1)
        if not self._thread.is_alive():
            self._guest_end.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    add_file(tmp_path, "sys/block/vda/serial", "gpupool-root")
    add_file(tmp_path, "sys/block/vdb/serial", "ckpt\n")
    add_file(tmp_path, "sys/class/virtio-ports/vport1p1/name", "org.gpupool.guest.0\n")
    for address, pci_class in (("0000:00:05.0", "0x038000"), ("0000:00:02.0", "0x010000")):
        for name, text in (("class", pci_class), ("vendor", "0x1af4"), ("device", "0x1050")):
            add_file(tmp_path, f"sys/bus/pci/devices/{address}/{name}", text + "\n")
    host = Host(tmp_path)
    yield host
    host.close()


def add_file(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_one_life_from_hello_to_power_off(host: Host) -> None:
    host.run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert host.receive("started")["pid"] > 0
    assert host.receive("devices")["gpus"] == [{"address": "0000:00:05.0", "id": "1af4:1050"}]
    assert host.receive("exit") == {"type": "exit", "code": 3}
    assert sorted(host.lines()) == [("stderr", "err"), ("stdout", "out")]
    assert host.finish() == ["power off"]


def test_hello_is_repeated_until_run_and_noise_is_skipped(host: Host) -> None:
    assert host.receive("hello") == {"type": "hello", "version": 1}
    host.send_raw(b'\nnot json\n[1]\n{"type":"unknown"}\n{"type":"stop"}\n{"type":"bye"}\n')
    host.receive("hello")
    host.run("pass")
    assert host.receive("exit")["code"] == 0
    host.finish()


def test_second_run_only_repeats_the_present_state(host: Host) -> None:
    host.run("input() if False else __import__('time').sleep(60)")
    pid = host.receive("started")["pid"]
    host.receive("heartbeat")
    host.send("run", argv=["/bin/false"], env={})
    assert host.receive("started")["pid"] == pid
    host.send("stop", grace_s=5)
    assert host.receive("exit")["code"] == 128 + 15
    host.send("run", argv=["/bin/false"], env={})
    assert host.receive("exit")["code"] == 128 + 15
    host.finish()


def test_stop_kills_after_the_grace(host: Host) -> None:
    host.run("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(60)")
    host.receive("log")
    begun = time.monotonic()
    host.send("stop", grace_s=0.5)
    assert host.receive("exit")["code"] == 128 + 9
    assert time.monotonic() - begun >= 0.5
    host.finish()


def test_checkpoint_is_reported_when_the_job_touches_the_mark(host: Host) -> None:
    host.run(
        "import os, pathlib, signal, time\n"
        "mark = pathlib.Path(os.environ['GPUPOOL_CHECKPOINT_DONE'])\n"
        "signal.signal(signal.SIGUSR1, lambda *_: mark.touch())\n"
        "print('ready'); time.sleep(60)"
    )
    host.receive("log")
    for _ in range(2):
        host.send("checkpoint", grace_s=10)
        host.receive("checkpointed")
    host.send("stop", grace_s=1)
    host.receive("exit")
    host.finish()


def test_checkpoint_without_an_answer_is_silence(host: Host) -> None:
    host.run("import signal, time; signal.signal(signal.SIGUSR1, lambda *_: None); print('ready'); time.sleep(1)")
    host.receive("log")
    host.send("checkpoint", grace_s=0.2)
    assert host.receive("exit")["code"] == 0
    assert all(message["type"] != "checkpointed" for message in host.seen)
    host.finish()


def test_volumes_are_mounted_before_the_job_and_unmounted_before_power_off(host: Host) -> None:
    host.run("pass", volumes=[{"name": "ckpt", "serial": "ckpt", "path": "/mnt/ckpt"}])
    host.receive("exit")
    assert host.finish() == ["mount vdb /mnt/ckpt", "unmount /mnt/ckpt", "power off"]


def test_unmountable_volume_is_126(host: Host) -> None:
    host.machine.mountable = False
    host.run("pass", volumes=[{"name": "ckpt", "serial": "ckpt", "path": "/mnt/ckpt"}])
    assert host.receive("exit")["code"] == 126
    [(stream, line)] = host.lines()
    assert stream == "stderr"
    assert "cannot mount volume ckpt at /mnt/ckpt" in line
    host.finish()


def test_absent_volume_is_126(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "DEVICE_WAIT_S", 0.1)
    host.run("pass", volumes=[{"name": "data", "serial": "data", "path": "/mnt/data"}])
    assert host.receive("exit")["code"] == 126
    assert "no disk with serial data" in host.lines()[0][1]
    assert host.finish() == ["power off"]


@pytest.mark.parametrize(
    ("argv", "code"), [(["no-such-program"], 127), (["/no/such"], 127), (["/dev/null/x"], 127), ([], 126)]
)
def test_program_that_cannot_start(host: Host, argv: list[str], code: int) -> None:
    host.receive("hello")
    host.send("run", argv=argv, env={})
    assert host.receive("exit")["code"] == code
    assert len(host.lines()) == 1
    host.finish()


def test_a_host_that_does_not_read_costs_log_lines_and_never_the_job(host: Host, tmp_path: Path) -> None:
    mark = tmp_path / "written"
    host.run(f"import pathlib, sys\nfor i in range(8000): print(i, 'x' * 1000)\npathlib.Path({str(mark)!r}).touch()")
    stop_at = time.monotonic() + PATIENCE_S
    while not mark.exists() and time.monotonic() < stop_at:
        time.sleep(0.02)
    assert mark.exists(), "the job was blocked"
    assert host.receive("exit")["code"] == 0
    lines = [line for _, line in host.lines()]
    [notice] = [line for line in lines if line.startswith("gpupool:")]
    kept = [int(line.split()[0]) for line in lines if line != notice]
    assert kept == sorted(kept)
    assert kept[-1] == 7999
    assert notice == f"gpupool: {8000 - len(kept)} log lines dropped"
    host.finish()


def test_children_left_behind_do_not_delay_the_exit(host: Host) -> None:
    host.run("import subprocess, sys; subprocess.Popen(['sleep', '60']); print('left'); sys.exit(0)")
    host.receive("log")
    begun = time.monotonic()
    assert host.receive("exit")["code"] == 0
    assert time.monotonic() - begun < 5
    host.finish()


def test_power_off_without_bye(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "BYE_WAIT_S", 0.3)
    host.run("pass")
    host.receive("exit")
    stop_at = time.monotonic() + PATIENCE_S
    while not host.machine.done and time.monotonic() < stop_at:
        time.sleep(0.02)
    assert host.machine.done == ["power off"]


def test_port_and_disk_are_found_by_name(host: Host) -> None:
    assert str(host.machine.port_path()).endswith("/dev/vport1p1")
    assert str(host.machine.disk_path("ckpt")).endswith("/dev/vdb")
    assert host.machine.disk_path("other") is None
    host.run("pass")
    host.receive("exit")
    host.finish()


def test_long_lines_are_cut() -> None:
    assert [len(piece) for piece in guest.cut(b"a" * 10_000)] == [4096, 4096, 1808]
    assert guest.cut(b"") == [""]
    assert guest.cut(b"\xff\r") == ["\N{REPLACEMENT CHARACTER}"]


def test_outbox_keeps_control_messages_and_the_latest_heartbeat() -> None:
    outbox = guest.Outbox(max_log_bytes=150)
    outbox.put({"type": "started", "pid": 1})
    for beat in (1, 2):
        outbox.put({"type": "heartbeat", "uptime_s": beat})
    for number in range(5):
        outbox.put({"type": "log", "stream": "stdout", "line": str(number)})
    taken = []
    while outbox:
        taken.append(json.loads(outbox.take()))
    assert [m["type"] for m in taken] == ["started", "heartbeat", "log", "log", "log", "log"]
    assert taken[1]["uptime_s"] == 2
    assert [m["line"] for m in taken[2:]] == ["gpupool: 2 log lines dropped", "2", "3", "4"]
