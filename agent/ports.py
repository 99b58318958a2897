"""The agent's ports: what it needs of the machine, so that one agent runs on hardware, in a lab and on virtual time.

`Sysfs` is how devices are read and driven, `VmRuntime` how VMs are run, `Guard` what kills them when the session
cannot be renewed, `Clock` what time it is. The agent's logic (session, reconcile, reclaim) sees nothing else of the
host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Sysfs(Protocol):
    """A sysfs tree. Paths are relative to its root, e.g. "bus/pci/devices/0000:21:00.0/vendor". Reading never raises:
    what cannot be read is None (or empty), and the caller notes it.
    """

    def read(self, path: str) -> str | None:
        """The file's text, stripped; None if it is missing or cannot be read."""
        ...

    def read_bytes(self, path: str, limit: int = 4096, offset: int = 0) -> bytes | None:
        """Up to `limit` bytes of the file from `offset` on; None if it is missing or cannot be read."""
        ...

    def list(self, path: str) -> list[str]:
        """The directory's entries, sorted; empty if there is none."""
        ...

    def link_name(self, path: str) -> str | None:
        """The last component of the symbolic link's target; None if there is no link."""
        ...

    def link_target(self, path: str) -> str | None:
        """The symbolic link's target as it is written, for a device where it sits; None if there is no link."""
        ...

    def write(self, path: str, text: str) -> None:
        """Write to an attribute. Raises OSError as the kernel would; may block for as long as the kernel does."""
        ...


class Clock(Protocol):
    """Both clocks in seconds."""

    def wall(self) -> float:
        """Unix time, for people and records only."""
        ...

    def boot(self) -> float:
        """Time since boot, suspend included (CLOCK_BOOTTIME): the clock of every deadline."""
        ...


class Guard(Protocol):
    """The process that kills this host's VMs at a deadline, whatever has become of the agent."""

    def extend(self, deadline_boot_s: float, limit_boot_s: float = 0.0) -> None:
        """Let VMs live until `deadline_boot_s` on the boot clock; by `limit_boot_s` a hardware watchdog, if there is
        one, resets the machine should the guard stand still. Never moves either back.
        """
        ...

    @property
    def deadline(self) -> float:
        """Until when VMs may live, on the boot clock."""
        ...

    def watchdog_s(self) -> float:
        """The timeout of the hardware watchdog that is armed and petted; 0: none is."""
        ...

    def refused(self) -> str:
        """What the system refused the guard that keeps it running on a host in trouble, in words; "": nothing."""
        ...

    def alive(self) -> bool:
        """Whether the guard has shown, within the last second or so, that it is watching."""
        ...

    async def ensure(self) -> None:
        """Start the guard, or take over the one that runs; returns once it is alive. Raises GuardError."""
        ...


class GuardError(Exception):
    """No guard could be armed, so no VM may start."""


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A disk that outlives the VM: `serial` is how the guest finds it, `path` where the guest mounts it."""

    serial: str
    path: str
    file: str  # the disk image, on storage that every host of the site sees
    size_mib: int


@dataclass(frozen=True, slots=True)
class GuestCell:
    """What a VM gets of one NUMA node of the host; the guest sees it as a node of its own.

    `cores` are whole physical cores, each the tuple of its logical CPUs. `distances` are to the cells of the same VM,
    in their order, as the host's firmware tells; empty: unknown.
    """

    node: int
    cores: tuple[tuple[int, ...], ...]
    memory_mib: int
    distances: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PassedFunction:
    """A PCI function for a VM. `node` is the host's, -1 if unknown; `bar_bytes` the sizes of its memory BARs."""

    address: str
    node: int = -1
    bar_bytes: tuple[int, ...] = ()
    is_gpu: bool = True
    unit: str = ""


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """What a user may ask of a VM beside its size; see VmOptions in job.proto. `network`: "", user, bridge, macvtap."""

    hugepage_size_kib: int = 0
    network: str = ""
    network_source: str = ""
    user_data: str = ""
    guest_iommu: bool = False
    hide_hypervisor: bool = False
    hypervisor_vendor_id: str = ""


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A VM to start, with everything decided. `emulator_cpus` are the host's CPUs for QEMU's own threads."""

    allocation: str
    image: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    vcpus: int
    memory_mib: int
    cells: tuple[GuestCell, ...] = ()
    functions: tuple[PassedFunction, ...] = ()
    emulator_cpus: tuple[int, ...] = ()
    volumes: tuple[VolumeMount, ...] = field(default=())
    options: GuestOptions = field(default=GuestOptions())


class VmRuntimeError(Exception):
    """The hypervisor did not do what it was asked, or did not answer; the message is its own. Ask again later."""


class VmStartError(Exception):
    """The VM could not be started; the message says what to do. Nothing of it is left behind."""


@dataclass(frozen=True, slots=True)
class GuestStarted:
    """The guest runs the command; `gpus` are the display-class PCI devices that it sees, "address vvvv:dddd"."""

    allocation: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestLog:
    """Lines of the guest's output: (stream, text)."""

    allocation: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class GuestExited:
    """The command ended; the VM powers off by itself soon after."""

    allocation: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class GuestCheckpointed:
    """The guest answered a checkpoint request."""

    allocation: str


@dataclass(frozen=True, slots=True)
class VmPaused:
    """The VM ran and does not run any more, though its process lives and has its devices; `reason`: who paused it."""

    allocation: str
    reason: str


@dataclass(frozen=True, slots=True)
class VmGone:
    """No process of this VM exists any more."""

    allocation: str
    reason: str  # "shutdown", "destroyed", "crashed", "failed", or a sentence that says more


VmEvent = GuestStarted | GuestLog | GuestExited | GuestCheckpointed | VmPaused | VmGone


class VmRuntime(Protocol):
    """Runs VMs. Events go to the sink given to `open`, on the event loop's thread, in order for each VM."""

    async def open(self, sink: Callable[[VmEvent], None]) -> None:
        """Connect; VMs left by an earlier agent are found, and their guest channels attached again."""
        ...

    async def running(self) -> Sequence[str]:
        """Allocations that have a VM process now, paused ones included, sorted."""
        ...

    async def start(self, spec: VmSpec, *, may_run: Callable[[], bool]) -> None:
        """Start the VM: made paused, put where the guard reaches it, then let run only if `may_run()` still holds.

        Raises VmStartError (also when `may_run()` does not hold), with nothing of the VM left.
        """
        ...

    async def checkpoint(self, allocation: str, grace_s: int) -> None:
        """Ask the guest to checkpoint; the answer, if any, is a GuestCheckpointed event."""
        ...

    async def stop(self, allocation: str, grace_s: int) -> None:
        """Ask the guest to end its command within `grace_s` seconds and power off. Returns at once."""
        ...

    async def press_power_button(self, allocation: str) -> None:
        """Ask the guest's system, rather than our program in it, to shut down (ACPI). Returns at once."""
        ...

    async def destroy(self, allocation: str) -> None:
        """End the VM by force; returns when no process of it exists. A VM that is gone already is fine."""
        ...

    async def foreign_devices(self) -> Mapping[str, str]:
        """PCI functions that VMs of others own, each with its VM's name. Raises VmRuntimeError."""
        ...

    async def close(self) -> None:
        """Let go of the connection. VMs stay."""
        ...
