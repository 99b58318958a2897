"""What the end-to-end tests stand on: guest images, folders with short names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import brief_folder

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
    with brief_folder() as folder:
        yield folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for one test."""
    with brief_folder() as folder:
        yield folder
