"""The many seeds: run beside the other tests, on what these leave of the CPUs.

GPUPOOL_SIM_SEEDS says how many (default 300). The test that asks for the result comes last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

COUNT = os.environ.get("GPUPOOL_SIM_SEEDS", "300")
ASKS = "tests/sim/test_cluster.py::test_seeds"
REPO = Path(__file__).parents[2]
_running = pytest.StashKey["Seeds"]()


class Seeds:
    """`python -m tests.sim.soak` in a session of its own, which is one scheduling group to Linux (see sched(7))."""

    def __init__(self) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "tests.sim.soak", "--count", COUNT]
        self._process = subprocess.Popen(
            command, cwd=REPO, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )
        with contextlib.suppress(OSError):  # no autogroup: it takes its share
            Path(f"/proc/{self._process.pid}/autogroup").write_text("19")

    def result(self) -> tuple[int, str]:
        """Its exit code and what it printed, once it has ended."""
        code = self._process.wait()
        self._output.seek(0)
        return code, self._output.read()

    def end(self) -> None:
        """End it, with its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.nodeid == ASKS)


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly and any(item.nodeid == ASKS for item in session.items):
        session.stash[_running] = Seeds()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _running in session.stash:
        session.stash[_running].end()


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> Seeds:
    """The run that is under way."""
    return request.session.stash[_running]
