"""What NVIDIA's own library knows of GPUs that the host's nvidia driver has: memory, and signs of a sick card.

A GPU that is bound to vfio-pci is invisible to it. Needs the optional extra `nvml` (nvidia-ml-py) and the driver;
without either there is nothing to tell. Xid errors are not here: NVML delivers them as events to whoever waits, and
keeps none to be asked for later.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..inventory.pci import canonical_address

MIB = 1024 * 1024
DRIVER = "nvidia"


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU. What the card or the driver does not tell is 0, False or empty."""

    address: str
    memory_mib: int = 0
    uncorrected_ecc: int = 0  # errors since the driver was loaded
    retirement_pending: bool = False  # pages or rows of memory that the next reset takes out of use
    remapping_failed: bool = False  # no spare rows are left
    links_down: tuple[int, ...] = ()  # NVLinks that the card has and that are not active


def read_gpus(library: str = "pynvml") -> list[GpuFacts]:
    """All GPUs that NVML sees, by address; none if there is no NVML. Blocks for as long as the driver does."""
    try:
        nvml: Any = importlib.import_module(library)
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or it does not fit the library
        return []
    try:
        return sorted(_gpus(nvml), key=lambda gpu: gpu.address)
    finally:
        nvml.nvmlShutdown()


def sick(gpu: GpuFacts) -> str:
    """What is wrong with the GPU, for people; empty: nothing.

    Policy: NVIDIA's GPU memory error management guide has cards with failed row remapping replaced.
    """
    found = []
    if gpu.uncorrected_ecc:
        found.append(f"{gpu.uncorrected_ecc} uncorrected ECC errors")
    if gpu.remapping_failed:
        found.append("no spare memory rows left (row remapping failed)")
    if gpu.retirement_pending:
        found.append("memory waits for a reset to be retired")
    if gpu.links_down:
        found.append(f"NVLinks down: {' '.join(map(str, gpu.links_down))}")
    return f"{gpu.address}: {', '.join(found)}" if found else ""


def _gpus(nvml: Any) -> Iterator[GpuFacts]:
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            address = _address(nvml.nvmlDeviceGetPciInfo(handle).busId)
        except nvml.NVMLError:  # one that fell off the bus; the others still count
            continue
        if address:
            yield _facts(nvml, handle, address)


def _facts(nvml: Any, handle: Any, address: str) -> GpuFacts:
    def ask(name: str, *arguments: Any) -> Any:
        """The call's answer; None if the card, the driver or the library has no such thing."""
        try:
            return getattr(nvml, name)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    memory = ask("nvmlDeviceGetMemoryInfo")
    kinds = getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1), getattr(nvml, "NVML_VOLATILE_ECC", 0)
    remapped = ask("nvmlDeviceGetRemappedRows")  # corrected, uncorrected, pending, failed
    links = [ask("nvmlDeviceGetNvLinkState", link) for link in range(getattr(nvml, "NVML_NVLINK_MAX_LINKS", 0))]
    return GpuFacts(
        address=address,
        memory_mib=memory.total // MIB if memory else 0,
        uncorrected_ecc=ask("nvmlDeviceGetTotalEccErrors", *kinds) or 0,
        retirement_pending=bool(ask("nvmlDeviceGetRetiredPagesPendingStatus") or (remapped and remapped[2])),
        remapping_failed=bool(remapped and remapped[3]),
        links_down=tuple(link for link, state in enumerate(links) if state == 0),
    )


def _address(bus_id: bytes | str) -> str | None:
    """NVML writes "00000000:3B:00.0"; older libraries give bytes."""
    return canonical_address(bus_id.decode() if isinstance(bus_id, bytes) else bus_id)
