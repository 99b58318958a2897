"""One agent's settings, checked as a whole before anything is touched."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from gpupool.store.keys import check_name

from .inventory.pairing import Choice
from .inventory.pci import canonical_address
from .inventory.topology import MAX_CPU, cpu_list
from .timing import Limits, Timing

_IDS = re.compile(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})")
WATCHDOGS = Path("/sys/class/watchdog")
CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


class ConfigError(ValueError):
    """The settings cannot work; the message names the option and says what to do."""


@dataclass(frozen=True, slots=True)
class Config:
    """One agent's settings. `simulate` is the list of GPUs of a simulated host; None: this machine's real ones."""

    name: str
    etcd: tuple[str, ...]
    listen: str
    advertise: str
    state_dir: Path
    images: Path
    overlays: Path
    volumes: Path | None
    cgroup: Path | None
    libvirt_uri: str
    boot_id: str
    timing: Timing
    limits: Limits
    simulate: str | None = None
    reset_timeout_s: float = 90.0
    reserved_memory_mib: int = 0
    reserved_cpus: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: frozenset[tuple[int, int]] = frozenset()  # PCI ids that count as GPUs whatever their class
    nics: Choice = field(default=Choice())  # network functions that go to VMs with the GPUs near them
    accept: tuple[str, ...] = ()  # doctor's checks whose problem the operator takes upon himself
    pm_reset_is_enough: bool = False
    scrub_command: tuple[str, ...] = ()
    scrub_timeout_s: float = 600.0
    watchdog: Path | None = None
    keep_on_store_loss: bool = False  # VMs outlive an outage of the store; only power fencing proves them dead then

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "host")
        except ValueError as exc:
            raise ConfigError(f"--name: {exc}") from None
        if not all(self.etcd):
            raise ConfigError("--etcd: an endpoint is empty; write host:port,host:port")
        if not self.listen.rpartition(":")[2].isdecimal():
            raise ConfigError(f"--listen: {self.listen!r} is no host:port")
        for option, value, least in (
            ("--reset-timeout-s", self.reset_timeout_s, 1.0),
            ("--scrub-timeout-s", self.scrub_timeout_s, 1.0),
            ("--start-timeout-s", self.limits.start_timeout_s, 1.0),
            ("--reserved-memory-mib", self.reserved_memory_mib, 0.0),
        ):
            if not least <= value < inf:  # nor nan
                raise ConfigError(f"{option} {value:g}: {least:g} or more is wanted")
        if not self.images.is_dir():
            raise ConfigError(f"--images: {self.images} is no directory; build or fetch guest images into it")
        if self.volumes is not None and not self.volumes.is_dir():
            raise ConfigError(f"--volumes: {self.volumes} is no directory; mount the site's shared storage there")

    @property
    def uri(self) -> str:
        """The libvirt connection: by default the machine's, and a driver of its own for a simulated host."""
        own = f"qemu:///embed?root={self.state_dir.resolve() / 'libvirt'}"
        return self.libvirt_uri or ("qemu:///system" if self.simulate is None else own)

    def address(self, port: int) -> str:
        """Where others reach the agent, given the port that it got."""
        return self.advertise or f"{self.listen.rpartition(':')[0]}:{port}"


def find_watchdog(choice: str, *, simulated: bool) -> tuple[Path | None, str]:
    """The device that `--watchdog` means, and why there is none. Raises ConfigError.

    "auto" takes the machine's first one only if it is hardware and can be stopped: what cannot be stopped would reset
    the machine when gpupool is removed. Who names a device has decided.
    """
    if choice == "off":
        return None, "--watchdog is off"
    if simulated:
        return None, "a simulated host has no watchdog of its own"
    if choice != "auto":
        if not Path(choice).is_char_device():
            raise ConfigError(
                f"--watchdog: {choice} is no device; load the driver of this board's watchdog, or say off"
            )
        return Path(choice), ""
    about = WATCHDOGS / "watchdog0"
    identity, nowayout = (_first_line(about / name) for name in ("identity", "nowayout"))
    if not Path("/dev/watchdog0").is_char_device():
        return None, "this machine has no /dev/watchdog0"
    if identity == "Software Watchdog":
        return None, "its only watchdog is softdog, which needs the kernel that it watches"
    if nowayout == "1":
        return None, f"{identity or 'its watchdog'} cannot be stopped (nowayout); name it with --watchdog to use it"
    return Path("/dev/watchdog0"), ""


def _first_line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def default_cgroup(name: str) -> Path | None:
    """A cgroup v2 directory for the VMs of host `name`, if this process may make one; else None."""
    for root in CGROUP_ROOTS:
        if (root / "cgroup.procs").exists() and os.access(root, os.W_OK):
            return root / "gpupool" / name
    return None


def parse_labels(pairs: Iterable[str]) -> dict[str, str]:
    """Labels from key=value pairs. Raises ConfigError."""
    labels = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"--label: {pair!r} is no key=value")
        labels[key] = value
    return labels


def parse_cpus(text: str) -> tuple[int, ...]:
    """Logical CPUs of "0-3,8". Raises ConfigError."""
    cpus = cpu_list(text)
    if cpus is None:
        raise ConfigError(f"--reserved-cpus: {text!r} is no list like 0-3,8 of CPUs from 0 to {MAX_CPU}")
    return tuple(cpus)


def parse_ids(texts: Iterable[str]) -> frozenset[tuple[int, int]]:
    """PCI vendor and device ids of texts such as "10de:20b5". Raises ConfigError."""
    ids = set()
    for text in texts:
        match = _IDS.fullmatch(text)
        if match is None:
            raise ConfigError(f"--gpu: {text!r} is no pair of PCI ids such as 10de:20b5 (see lspci -nn)")
        ids.add((int(match[1], 16), int(match[2], 16)))
    return frozenset(ids)


def parse_nics(texts: Iterable[str]) -> Choice:
    """Network functions, each by its address or by ids such as "15b3:101e". Raises ConfigError."""
    addresses, ids = set(), set()
    for text in texts:
        if match := _IDS.fullmatch(text):
            ids.add((int(match[1], 16), int(match[2], 16)))
        elif address := canonical_address(text):
            addresses.add(address)
        else:
            raise ConfigError(f"--nic: {text!r} is neither a PCI address such as 0000:41:00.0 nor a pair of PCI ids")
    return Choice(frozenset(addresses), frozenset(ids))


def parse_command(text: str) -> tuple[str, ...]:
    """The words of a command line, as a shell splits them. Raises ConfigError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as exc:
        raise ConfigError(f"--scrub-command: {text!r}: {exc}") from None


def list_images(directory: Path) -> list[str]:
    """Names of the guest images at hand: directories with a manifest.json."""
    return sorted(file.parent.name for file in directory.glob("*/manifest.json"))
