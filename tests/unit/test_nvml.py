"""NVIDIA's library, played by a module of ours: what it does not tell must not become a fault."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agent.devices.nvml import GpuFacts, read_gpus, sick


class NVMLError(Exception):
    pass


@pytest.fixture
def library() -> Iterator[Any]:
    """A library for two GPUs: one that tells all, one that tells nothing and one that fell off the bus."""
    module: Any = ModuleType("fake_nvml")
    module.NVMLError, module.NVML_NVLINK_MAX_LINKS, module.open = NVMLError, 3, 0

    def count(change: int) -> None:
        module.open += change

    def only(handle: int, answer: Any) -> Any:
        if handle != 0:
            raise NVMLError("not supported")
        return answer

    def handle_of(index: int) -> int:
        if index == 2:
            raise NVMLError("GPU is lost")
        return index

    module.nvmlInit = lambda: count(1)
    module.nvmlShutdown = lambda: count(-1)
    module.nvmlDeviceGetCount = lambda: 3
    module.nvmlDeviceGetHandleByIndex = handle_of
    module.nvmlDeviceGetPciInfo = lambda h: SimpleNamespace(busId=["00000000:3B:00.0", b"00000000:1A:00.0"][h])
    module.nvmlDeviceGetMemoryInfo = lambda h: only(h, SimpleNamespace(total=81920 * 1024 * 1024))
    module.nvmlDeviceGetTotalEccErrors = lambda h, kind, counter: only(h, 4 if (kind, counter) == (1, 0) else 0)
    module.nvmlDeviceGetRemappedRows = lambda h: only(h, (0, 1, 1, 0))
    module.nvmlDeviceGetNvLinkState = lambda h, link: only(h, int(link != 1))
    sys.modules["fake_nvml"] = module
    yield module
    del sys.modules["fake_nvml"]


def test_what_it_tells(library: Any) -> None:
    assert read_gpus("fake_nvml") == [
        GpuFacts("0000:1a:00.0"),
        GpuFacts("0000:3b:00.0", 81920, 4, retirement_pending=True, remapping_failed=False, links_down=(1,)),
    ]
    assert library.open == 0


def test_no_driver(library: Any) -> None:
    def no_driver() -> None:
        raise NVMLError("driver not loaded")

    library.nvmlInit = no_driver
    assert read_gpus("fake_nvml") == []


def test_no_library() -> None:
    assert read_gpus("no_such_library_at_all") == []


def test_sick() -> None:
    assert sick(GpuFacts("0000:1a:00.0", 81920)) == ""
    found = sick(GpuFacts("0000:3b:00.0", 0, 4, retirement_pending=True, remapping_failed=True, links_down=(1, 2)))
    assert found == (
        "0000:3b:00.0: 4 uncorrected ECC errors, no spare memory rows left (row remapping failed), "
        "memory waits for a reset to be retired, NVLinks down: 1 2"
    )
