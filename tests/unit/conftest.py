"""What tests of the command line stand on: a scheduler that says what it is told to, and the program itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpupool.cli.app import run
from tests.fakes.cli import Done, Run
from tests.fakes.server import FakeScheduler


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeScheduler]:
    """The scheduler that commands find."""
    with FakeScheduler() as server:
        monkeypatch.setenv("GPUPOOL_SERVER", server.address)
        yield server


@pytest.fixture
def gpupool(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line in this process."""

    def call(*arguments: str) -> Done:
        code = run(arguments)
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A small job, to submit."""
    path = tmp_path / "job.yaml"
    path.write_text("{image: img, command: [x], cpus: 1, memory_mib: 1024}")
    return str(path)
