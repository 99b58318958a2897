"""What command lines themselves refuse: one line that names the value, exit code 2, nothing asked of the scheduler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.config import ConfigError, parse_cpus
from gpupool.cli import up
from gpupool.cli.settings import server_file
from gpupool.v1 import scheduler_pb2
from tests.fakes.cli import Run
from tests.fakes.server import FakeScheduler, job

HUGE = "99999999999"


@pytest.fixture
def fake(fake: FakeScheduler) -> FakeScheduler:
    fake.hosts = [scheduler_pb2.Host(name="h1")]
    fake.jobs["j1"] = job("j1")
    return fake


@pytest.mark.parametrize(
    "words",
    [
        f"submit FILE --gpu-memory-mib {HUGE}",
        f"submit FILE --max-failures-per-host {HUGE}",
        f"submit FILE --gang {HUGE}",
        f"submit FILE --array {HUGE}",
        f"drain h1 --grace-s {HUGE}",
        f"drain h1 --at-once {HUGE}",
        f"queue create q --weight {HUGE}",
        f"queue create q --min-priority {HUGE}",
        f"queue create q --max-gpus {HUGE}",
        f"logs j1 --tail {HUGE}",
        f"events --last {HUGE}",
        f"failover report --last {HUGE}",
        f"reboot h1 --command true --grace-s {HUGE}",
        "status --timeout nan",
        "status --timeout inf",
        "drain h1 --timeout-s nan",
        "reboot h1 --command true --back-within-s nan",
        "reboot h1 --command true --since 0001-01-01",
    ],
)
def test_a_number_that_is_none_or_too_large(fake: FakeScheduler, gpupool: Run, file: str, words: str) -> None:
    done = gpupool(*words.replace("FILE", file).split())
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words.rsplit(maxsplit=1)[-1] in done.err
    assert not fake.asked


@pytest.mark.parametrize("command", ["", "  "])
def test_a_reboot_by_no_command_drains_nobody(fake: FakeScheduler, gpupool: Run, command: str) -> None:
    done = gpupool("reboot", "h1", "--command", command)
    assert done == (2, "", f"error: --command {command!r} is empty: say what reboots a host\n")
    assert not fake.asked


def test_text_that_is_none(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    bad = os.fsdecode(b"\xff")
    for words in (("show", bad), ("submit", file, "--name", bad), ("cordon", "h1", "--reason", bad)):
        assert gpupool(*words) == (2, "", r"error: '\udcff' is not text in UTF-8" + "\n")


def test_a_label_with_two_values(fake: FakeScheduler, gpupool: Run, file: str) -> None:
    done = gpupool("submit", file, "--require", "zone=a", "--require", "zone=b")
    assert (done.code, "'zone=b': zone=a stands there too" in done.err) == (2, True)
    assert gpupool("submit", file, "--require", "zone=a", "--require", "zone=a").code == 0


def test_a_misspelt_host_drains_none(fake: FakeScheduler, gpupool: Run) -> None:
    assert gpupool("drain", "h1", "h9", "--no-wait") == (3, "", "error: no host h9; known hosts: h1\n")
    assert not fake.calls["DrainHost"]


def test_a_fix_is_no_document(fake: FakeScheduler, gpupool: Run) -> None:
    done = gpupool("doctor", "--fix", "--dry-run", "-o", "json")
    assert (done.code, done.out, "--fix prints a diff" in done.err) == (2, "", True)


@pytest.mark.parametrize("text", ["3-1", "0-", "-1", "0--5", "0-99999999999", "a", "0,,1"])
def test_cpus_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--reserved-cpus: '{text}' is no list like 0-3,8 of CPUs from 0 to 65535"):
        parse_cpus(text)
    assert parse_cpus("8,0-3") == (0, 1, 2, 3, 8)


def test_a_cluster_that_ends_leaves_another_ones_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with up._published("one:1"), up._published("two:2"):
        pass
    assert not server_file().exists()
    with up._published("one:1"):
        server_file().write_text("two:2")
    assert server_file().read_text() == "two:2"
