"""Which domain a VM gets on this host: all that its XML depends on, checked. Pure."""

from __future__ import annotations

import string
from dataclasses import dataclass, field

from ..ports import GuestCell, GuestOptions, PassedFunction, VmSpec
from ..vms.files import GuestFiles
from ..vms.firmware import Firmware
from ..vms.images import Image, ImageError, KernelBoot, UefiBoot
from .cpus import CpuPlan, plan_cpus
from .memory import check_pages
from .network import check_network
from .pci import Slot, slots_of, window_mib

PREFIX = "gpupool-"
ROOT_SERIAL = "gpupool-root"  # by which the image's initrd finds its root disk
SEED_SERIAL = "gpupool-seed"
MAX_EMULATED = 14 * 8  # slots 0x10 to 0x1d of the root complex, which libvirt leaves free, with 8 functions each
MAX_VOLUMES = len(string.ascii_lowercase) - 2  # one letter is the root's, one the seed's
_MAX_VENDOR_ID = 12

# A simulated host pretends to more than the machine below it has: its VMs get what lets their guests work.
SIMULATED_VCPUS = 2
SIMULATED_MEMORY_MIB = 1024


@dataclass(frozen=True, slots=True)
class DomainShape:
    """All that a domain depends on. Paths are absolute.

    `volumes` are (serial, file). A `simulated` host has `emulated_gpus` instead of functions, and neither pinning nor
    NUMA cells. `firmware` is there if the image boots by UEFI. `seed` says whether there is a seed disk.
    """

    allocation: str
    accel: str  # "kvm" or "tcg"
    vcpus: int
    memory_mib: int
    boot: KernelBoot | UefiBoot
    files: GuestFiles
    firmware: Firmware | None = None
    cells: tuple[GuestCell, ...] = ()
    functions: tuple[PassedFunction, ...] = ()
    emulator_cpus: tuple[int, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    options: GuestOptions = field(default=GuestOptions())
    seed: bool = False
    emulated_gpus: int = 0
    simulated: bool = False
    amd: bool = False  # the host's CPU is AMD's
    tb_cache_mib: int = 64  # of translated code; QEMU's own default costs 42 MiB more and gains nothing

    def __post_init__(self) -> None:
        """Raises ValueError for what no domain can be made of."""
        if len(self.volumes) > MAX_VOLUMES:
            raise ValueError(f"{len(self.volumes)} volumes; a VM has at most {MAX_VOLUMES}")
        serials = [serial for serial, _ in self.volumes]
        if taken := [serial for serial in (ROOT_SERIAL, SEED_SERIAL) if serial in serials]:
            raise ValueError(f"no volume may be called {taken[0]!r}: the image's own disk is")
        if self.emulated_gpus > MAX_EMULATED:
            raise ValueError(f"{self.emulated_gpus} emulated GPUs; a VM has at most {MAX_EMULATED}")
        vendor = self.options.hypervisor_vendor_id
        if len(vendor) > _MAX_VENDOR_ID or "," in vendor or not vendor.isprintable():
            raise ValueError(f"hypervisor vendor id {vendor!r}: at most {_MAX_VENDOR_ID} characters, no comma")
        check_network(self.options.network, self.options.network_source)
        if not self.simulated:
            check_pages(self.cells, self.options.hugepage_size_kib)
            self.plan()
            self.slots()
            self.window_mib()

    @property
    def name(self) -> str:
        """The domain's."""
        return PREFIX + self.allocation

    def plan(self) -> CpuPlan:
        """Where the vCPUs lie. Raises ValueError."""
        return plan_cpus(self.cells, self.vcpus)

    def slots(self) -> list[Slot]:
        """The passed devices. Raises ValueError."""
        return slots_of(self.functions, self.cells)

    def window_mib(self) -> int:
        """The 64-bit MMIO window, MiB. Raises ValueError."""
        return window_mib(self.functions)


def shape_of(
    spec: VmSpec,
    image: Image,
    files: GuestFiles,
    *,
    accel: str,
    simulated: bool,
    firmware: Firmware | None = None,
    amd: bool = False,
) -> DomainShape:
    """The domain of `spec`. Raises ValueError for what no domain can be made of, ImageError for want of firmware.

    On a simulated host each function .0 becomes an emulated GPU, companions (a GPU's sound function) nothing.
    """
    if isinstance(image.boot, UefiBoot) and firmware is None:
        raise ImageError(
            f"image {image.name!r} boots by UEFI, and this host has no UEFI firmware for QEMU: install ovmf (Debian, "
            "Ubuntu) or edk2-ovmf (RHEL)"
        )
    gpus = [function for function in spec.functions if function.address.endswith(".0")]
    return DomainShape(
        allocation=spec.allocation,
        accel=accel,
        vcpus=min(spec.vcpus, SIMULATED_VCPUS) if simulated else spec.vcpus,
        memory_mib=min(spec.memory_mib, SIMULATED_MEMORY_MIB) if simulated else spec.memory_mib,
        boot=image.boot,
        files=files,
        firmware=firmware if isinstance(image.boot, UefiBoot) else None,
        cells=() if simulated else spec.cells,
        functions=() if simulated else spec.functions,
        emulator_cpus=spec.emulator_cpus,
        volumes=tuple((volume.serial, volume.file) for volume in spec.volumes),
        options=spec.options,
        seed=bool(spec.options.user_data) or image.cloud_init,
        emulated_gpus=len(gpus) if simulated else 0,
        simulated=simulated,
        amd=amd,
    )
