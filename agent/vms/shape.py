"""Which domain a VM gets on this host. Pure."""

from __future__ import annotations

from ..ports import VmSpec
from .domain import PREFIX, DomainShape
from .files import GuestFiles
from .images import Image

# A simulated host pretends to more than the machine below it has: its VMs get what lets their guests work.
SIMULATED_VCPUS = 2
SIMULATED_MEMORY_MIB = 1024


def shape_of(spec: VmSpec, image: Image, files: GuestFiles, *, accel: str, simulated: bool) -> DomainShape:
    """The domain of `spec`. Raises ValueError for what no domain can be made of.

    On a simulated host each function .0 becomes an emulated GPU, companions (a GPU's sound function) nothing.
    """
    gpus = [address for address in spec.functions if address.endswith(".0")]
    return DomainShape(
        name=PREFIX + spec.allocation,
        allocation=spec.allocation,
        accel=accel,
        vcpus=min(spec.vcpus, SIMULATED_VCPUS) if simulated else spec.vcpus,
        memory_mib=min(spec.memory_mib, SIMULATED_MEMORY_MIB) if simulated else spec.memory_mib,
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        root=str(image.root),
        cmdline=image.cmdline,
        channel=str(files.channel),
        console=str(files.console),
        cpus=spec.cpus,
        nodes=spec.nodes,
        volumes=tuple((volume.serial, volume.file) for volume in spec.volumes),
        hostdevs=() if simulated else spec.functions,
        emulated_gpus=len(gpus) if simulated else 0,
        simulated=simulated,
    )
