"""What the end-to-end tests stand on: guest images, folders with short names."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import processes

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def images() -> Path:
    """A directory with the guest image debian-numpy."""
    if folder := os.environ.get("GPUPOOL_IMAGES"):
        return Path(folder)
    found = REPO / "var" / "images"
    subprocess.run([REPO / "deploy/guest/build.sh", found / "debian-numpy"], check=True)
    return found


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """A folder for the tests of one module."""
    with _short_folder() as folder:
        yield folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for one test."""
    with _short_folder() as folder:
        yield folder


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """UNIX sockets allow no long paths such as pytest's. No process may name it in its command line in the end."""
    folder = Path(tempfile.mkdtemp(prefix="e2e-", dir="/tmp"))
    try:
        yield folder
        left = {
            pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:300] for pid in processes(f"{folder}/")
        }
        assert not left, f"these were left: {left}"
    finally:
        for pid in processes(f"{folder}/"):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
