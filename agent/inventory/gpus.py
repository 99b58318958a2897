"""Which GPU a pair of PCI ids is. A literal table: what it does not list has no model name and no memory size.

Ids: pci.ids (https://pci-ids.ucw.cz). Form factors share a model name (an "nvidia-a100-80gb" may be PCIe or SXM),
because that is how jobs ask for them. Memory: the vendor's nominal gigabytes times 1024; what a guest sees is a few
percent less (ECC, firmware).
"""

from __future__ import annotations

from dataclasses import dataclass

from .bars import windows
from .pci import Function

MIB = 1 << 20
LEAST_WHOLE_BAR = 1 << 30
MOST_MEMORY = 1 << 43  # 8 TiB: far above any GPU's, so that nonsense does not pass for memory


@dataclass(frozen=True, slots=True)
class Gpu:
    """A model of GPU: its canonical name, and the memory of one device in MiB (0: unknown)."""

    model: str
    memory_mib: int


NVIDIA, AMD, INTEL, VIRTIO, ASPEED, MATROX = 0x10DE, 0x1002, 0x8086, 0x1AF4, 0x1A03, 0x102B

_V100_16 = Gpu("nvidia-v100-16gb", 16 * 1024)
_V100_32 = Gpu("nvidia-v100-32gb", 32 * 1024)
_A100_40 = Gpu("nvidia-a100-40gb", 40 * 1024)
_A100_80 = Gpu("nvidia-a100-80gb", 80 * 1024)
_H100_80 = Gpu("nvidia-h100-80gb", 80 * 1024)
_H200 = Gpu("nvidia-h200", 141 * 1024)
_MI250X = Gpu("amd-mi250x", 64 * 1024)  # a card is two of these: each die is a PCI device with half the memory
_MAX_1100 = Gpu("intel-max-1100", 48 * 1024)
_MAX_1550 = Gpu("intel-max-1550", 128 * 1024)

# Of several ids of one model the first is the one that simulated hosts use.
_GPUS: dict[tuple[int, int], Gpu] = {
    (NVIDIA, 0x1DB1): _V100_16,  # SXM2
    (NVIDIA, 0x1DB4): _V100_16,  # PCIe
    (NVIDIA, 0x1DF5): _V100_16,  # SXM2
    (NVIDIA, 0x1DB5): _V100_32,  # SXM2
    (NVIDIA, 0x1DB6): _V100_32,  # PCIe
    (NVIDIA, 0x1DB8): _V100_32,  # SXM3
    (NVIDIA, 0x1DF6): Gpu("nvidia-v100s-32gb", 32 * 1024),
    (NVIDIA, 0x1EB8): Gpu("nvidia-t4", 16 * 1024),
    (NVIDIA, 0x20B0): _A100_40,  # SXM4
    (NVIDIA, 0x20B1): _A100_40,  # PCIe
    (NVIDIA, 0x20F1): _A100_40,  # PCIe
    (NVIDIA, 0x20B2): _A100_80,  # SXM4
    (NVIDIA, 0x20B5): _A100_80,  # PCIe
    (NVIDIA, 0x20B7): Gpu("nvidia-a30", 24 * 1024),
    (NVIDIA, 0x2230): Gpu("nvidia-rtx-a6000", 48 * 1024),
    (NVIDIA, 0x2235): Gpu("nvidia-a40", 48 * 1024),
    (NVIDIA, 0x2236): Gpu("nvidia-a10", 24 * 1024),
    (NVIDIA, 0x2237): Gpu("nvidia-a10g", 24 * 1024),
    (NVIDIA, 0x26B1): Gpu("nvidia-rtx-6000-ada", 48 * 1024),
    (NVIDIA, 0x26B5): Gpu("nvidia-l40", 48 * 1024),
    (NVIDIA, 0x26B9): Gpu("nvidia-l40s", 48 * 1024),
    (NVIDIA, 0x27B8): Gpu("nvidia-l4", 24 * 1024),
    (NVIDIA, 0x2330): _H100_80,  # SXM5
    (NVIDIA, 0x2331): _H100_80,  # PCIe
    (NVIDIA, 0x2321): Gpu("nvidia-h100-94gb", 94 * 1024),  # NVL
    (NVIDIA, 0x2335): _H200,  # SXM
    (NVIDIA, 0x233B): _H200,  # NVL
    (NVIDIA, 0x2901): Gpu("nvidia-b200", 180 * 1024),
    (AMD, 0x738C): Gpu("amd-mi100", 32 * 1024),
    (AMD, 0x740F): Gpu("amd-mi210", 64 * 1024),
    (AMD, 0x7408): _MI250X,
    (AMD, 0x740C): _MI250X,  # MI250 shares this id
    (AMD, 0x74A1): Gpu("amd-mi300x", 192 * 1024),
    (AMD, 0x74A5): Gpu("amd-mi325x", 256 * 1024),
    (INTEL, 0x0BD9): _MAX_1100,
    (INTEL, 0x0BDA): _MAX_1100,
    (INTEL, 0x0BDB): _MAX_1100,
    (INTEL, 0x0BD5): _MAX_1550,
    (INTEL, 0x0BD6): _MAX_1550,
    (VIRTIO, 0x1050): Gpu("virtio-gpu", 0),  # QEMU's: the lab's stand-in for a GPU
}

# Server management controllers: display class, but the screen of the machine itself.
_MANAGEMENT_DISPLAY_VENDORS = frozenset({ASPEED, MATROX})


def identify(vendor_id: int, device_id: int) -> Gpu:
    """The GPU with these PCI ids. One that the table lacks is called "pci-vvvv-dddd", its memory unknown (0)."""
    return _GPUS.get((vendor_id, device_id)) or Gpu(f"pci-{vendor_id:04x}-{device_id:04x}", 0)


def memory_of(gpu: Function) -> tuple[int, str]:
    """The GPU's memory in MiB and its source: "table", "bar", or empty with 0 where it is unknown.

    A BAR of a gibibyte or more is the whole memory, rounded up to a power of two as BARs are: on datacentre cards, and
    on others whose BAR was resized. So "bar" is an upper bound, less than twice too high. A smaller BAR (256 MiB is the
    rule without resizing) says nothing, and neither does that of a device which is no GPU by its class.
    """
    if (known := _GPUS.get((gpu.vendor_id, gpu.device_id))) is not None:
        return known.memory_mib, "table" if known.memory_mib else ""
    sizes = [bar.size_bytes for bar in windows(gpu.bars) if bar.is_64bit and bar.prefetchable]
    largest = max(sizes, default=0)
    plausible = gpu.has_gpu_class and LEAST_WHOLE_BAR <= largest <= MOST_MEMORY and largest.bit_count() == 1
    return (largest // MIB, "bar") if plausible else (0, "")


def is_management_display(vendor_id: int) -> bool:
    """Whether a display-class device of this vendor is a server's management screen and not a GPU."""
    return vendor_id in _MANAGEMENT_DISPLAY_VENDORS


def known_models() -> list[str]:
    """Every canonical model name of the table, sorted."""
    return sorted({gpu.model for gpu in _GPUS.values()})


def ids_of(model: str) -> tuple[int, int]:
    """PCI vendor and device id of a model of the table. Raises KeyError for any other name."""
    for ids, gpu in _GPUS.items():
        if gpu.model == model:
            return ids
    raise KeyError(model)
