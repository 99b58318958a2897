"""The kernel of a simulated host: what writing to its sysfs tree does, and what does not work.

Follows drivers/base/bus.c, drivers/pci/pci-driver.c and pci-sysfs.c as far as `devices` can tell, in one point not: the
kernel restores the config space that a function had before the reset, and vfio-pci, when the VM lets go, the one from
before the VM. Here the reset does both.

A file `.faults/<address>` breaks a function from its next reset on, until the file is gone and a reset succeeds. Some
faults heal: "needs-bus-reset" by a bus reset, "needs-rescan" and "vanishes" by removal and rediscovery.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from ..inventory.pci import DEVICES, KERNELS_CHOICE
from ..inventory.sysfs import RealSysfs
from . import hotplug
from .pci import BUS_MASTER, MEMORY_DECODE, PRISTINE

RESET_FAILS, RESET_HANGS, CONFIG_FF = "reset-fails", "reset-hangs", "config-ff"
BAR_LOST, LINK_DOWN, AER_FATAL = "bar-lost", "link-down", "aer-fatal"
NEEDS_BUS_RESET, NEEDS_RESCAN = "needs-bus-reset", "needs-rescan"  # until then, the config space reads 0xff
VANISHES, LOST = "vanishes", "lost"  # LOST is not found again either
FAULTS = (
    *(RESET_FAILS, RESET_HANGS, CONFIG_FF, BAR_LOST, LINK_DOWN, AER_FATAL),
    *(NEEDS_BUS_RESET, NEEDS_RESCAN, VANISHES, LOST),
)
LOOK_AGAIN_S = 0.02  # at whether a reset still hangs
CONFIG_BYTES = 4096
COMMAND, BARS, BAR_REGISTERS = 0x04, 0x10, 6
NO_OVERRIDE = "(null)"  # as the kernel prints it
VFIO = "vfio-pci"
ADDRESS_BITS_MOVED = 0x0F00_0000  # what `scribble` flips in each base address


class SimulatedSysfs(RealSysfs):
    """A tree made by `simhost.build_tree`, with the kernel's side effects. Implements `ports.Sysfs`."""

    def write(self, path: str, text: str) -> None:
        """Write to an attribute, with its effect. Raises OSError as the kernel would."""
        value = text.strip()
        match tuple(path.split("/")):
            case ("bus", "pci", "drivers_probe"):
                self._probe(value)
            case ("bus", "pci", "drivers", driver, "bind"):
                self._bind(driver, value)
            case ("bus", "pci", "drivers", driver, "unbind"):
                self._unbind(driver, value)
            case ("bus", "pci", "devices", address, "driver", "unbind"):
                self._unbind(self.link_name(f"{DEVICES}/{address}/driver") or "", value)
            case ("bus", "pci", "rescan"):
                self._rescan(self.root)
            case ("bus", "pci", "devices", address, "rescan"):
                self._rescan(self._device(address))
            case ("bus", "pci", "devices", address, "remove"):
                self._remove(address)
            case ("bus", "pci", "devices", address, attribute):
                self._set(address, attribute, value)
            case _:
                self._refuse(path)

    def hot_reset(self, address: str, groups: Sequence[int], ours: Collection[str]) -> None:
        """As IsolatedSysfs.hot_reset: the bus of `address`, if all on it is ours and has vfio-pci. Raises OSError."""
        del groups
        hit = self._on_bus_of(address)
        if not set(hit) <= set(ours):
            raise _error(errno.EPERM, address)
        if any(self.link_name(f"{DEVICES}/{function}/driver") != VFIO for function in hit):
            raise _error(errno.EINVAL, address)
        for function in hit:
            self._reset_one(function, bus=True)

    def inject(self, address: str, fault: str | None) -> None:
        """Break the function from its next reset on (one of FAULTS), or heal it (None). Raises ValueError."""
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}; there are {', '.join(FAULTS)}")
        if not (self.root / hotplug.REMOVED / address).is_dir():
            self._device(address)
        file = self.root / ".faults" / address
        if fault is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(fault)

    def scribble(self, address: str) -> None:
        """Leave the function as a VM may: bus mastering and memory decoding on, BARs moved. Raises OSError."""
        file = self._device(address) / "config"
        space = bytearray(file.read_bytes())
        (command,) = struct.unpack_from("<H", space, COMMAND)
        struct.pack_into("<H", space, COMMAND, command | MEMORY_DECODE | BUS_MASTER)
        for offset in range(BARS, BARS + 4 * BAR_REGISTERS, 4):
            (bar,) = struct.unpack_from("<I", space, offset)
            struct.pack_into("<I", space, offset, bar ^ ADDRESS_BITS_MOVED if bar else 0)
        file.write_bytes(space)

    def _set(self, address: str, attribute: str, value: str) -> None:
        home = self._home(address)
        if not os.path.exists(f"{home}/{attribute}"):
            self._refuse(f"{DEVICES}/{address}/{attribute}")
        match attribute:
            case "driver_override":
                Path(home, attribute).write_text(f"{value or NO_OVERRIDE}\n")
            case "reset_method":
                self._choose_method(address, value)
            case "reset" | "reset_subordinate" if value != "1":
                raise _error(errno.EINVAL, f"{DEVICES}/{address}/{attribute}")
            case "reset":
                self._reset(address)
            case "reset_subordinate":
                for below in self._behind(address):
                    self._reset_one(below, bus=True)
            case _:
                self._refuse(f"{DEVICES}/{address}/{attribute}")

    def _probe(self, address: str) -> None:
        """Bind a function that has no driver to the one that wants it. Finding none is a success, as in the kernel."""
        home, base = self._home(address), f"{DEVICES}/{address}"
        if self.link_target(f"{base}/driver") is not None:
            return
        driver = self._wanted(address)
        may_bind = driver != VFIO or self.link_target(f"{base}/iommu_group") is not None
        if driver and may_bind and os.path.isdir(f"{self.root}/bus/pci/drivers/{driver}"):
            self._attach(driver, Path(home))

    def _bind(self, driver: str, address: str) -> None:
        home = self._device(address)
        directory = self.root / "bus/pci/drivers" / driver
        if not directory.is_dir():
            raise _error(errno.ENOENT, str(directory))
        if (home / "driver").is_symlink():
            raise _error(errno.EBUSY, address)
        if self._wanted(address) != driver:
            raise _error(errno.ENODEV, address)
        if driver == VFIO and not (home / "iommu_group").is_symlink():
            raise _error(errno.EINVAL, address)
        self._attach(driver, home)

    def _unbind(self, driver: str, address: str) -> None:
        home = self._home(address)
        if not driver or self.link_name(f"{DEVICES}/{address}/driver") != driver:
            raise _error(errno.ENODEV, address)
        os.unlink(f"{home}/driver")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.root}/bus/pci/drivers/{driver}/{address}")

    def _attach(self, driver: str, home: Path) -> None:
        place, name = str(home)[len(self._prefix) :], home.name
        directory = f"bus/pci/drivers/{driver}"
        os.symlink(f"{'../' * (place.count('/') + 1)}{directory}", f"{home}/driver")
        os.symlink(f"../../../../{place}", f"{self.root}/{directory}/{name}")

    def _wanted(self, address: str) -> str:
        """The override, else the driver that knows the device's ids, else none."""
        override = self.read(f"{DEVICES}/{address}/driver_override")
        if override and override != NO_OVERRIDE:
            return override
        return self.read(f".pristine/{address}/driver") or ""

    def _choose_method(self, address: str, value: str) -> None:
        supported = (self.read(f".pristine/{address}/reset_method") or "").split()
        chosen = supported if value == KERNELS_CHOICE else value.split()
        if not chosen or not set(chosen) <= set(supported):
            raise _error(errno.EINVAL, address)
        (self._device(address) / "reset_method").write_text(" ".join(chosen) + "\n")

    def _reset(self, address: str) -> None:
        """Reset by the first method chosen; a bus reset hits the whole bus."""
        methods = (self.read(f"{DEVICES}/{address}/reset_method") or "").split()
        bus = methods[:1] == ["bus"]
        for function in self._on_bus_of(address) if bus else [address]:
            self._reset_one(function, bus=bus)

    def _reset_one(self, address: str, *, bus: bool = False) -> None:
        self._home(address)
        while (fault := self.read(f".faults/{address}")) == RESET_HANGS:
            threading.Event().wait(LOOK_AGAIN_S)
        if fault == RESET_FAILS or (fault is not None and fault not in FAULTS):
            raise _error(errno.ENOTTY, address)  # also for a fault that we do not know: an operator meant to break it
        if fault == NEEDS_BUS_RESET and bus:
            (self.root / ".faults" / address).unlink()
            fault = None
        self._restore(address)
        if fault is not None:
            self._break(address, fault)

    def _break(self, address: str, fault: str) -> None:
        """What the fault makes of the function that was just reset."""
        home = self._device(address)
        match fault:
            case "config-ff" | "needs-bus-reset" | "needs-rescan":
                (home / "config").write_bytes(b"\xff" * (home / "config").stat().st_size)
            case "bar-lost":
                config = bytearray((home / "config").read_bytes())
                config[BARS : BARS + 4 * BAR_REGISTERS] = bytes(4 * BAR_REGISTERS)
                (home / "config").write_bytes(config)
            case "link-down":
                (home / "current_link_speed").write_text("Unknown\n")
                (home / "current_link_width").write_text("0\n")
            case "aer-fatal":
                count = int((self.read(f"{DEVICES}/{address}/aer_dev_fatal") or "0").split()[-1]) + 1
                (home / "aer_dev_fatal").write_text(f"Surprise Down Error {count}\nTOTAL_ERR_FATAL {count}\n")
            case "vanishes" | "lost":
                self._remove(address)

    def _restore(self, address: str) -> None:
        """Make the function what it was when it was built."""
        home, pristine = f"{DEVICES}/{address}", f".pristine/{address}"
        for name in PRISTINE[:-1]:
            first = self.read_bytes(f"{pristine}/{name}", CONFIG_BYTES)
            if first is not None and self.read_bytes(f"{home}/{name}", CONFIG_BYTES) != first:
                (self._device(address) / name).write_bytes(first)

    def _remove(self, address: str) -> None:
        self._device(address)
        if driver := self.link_name(f"{DEVICES}/{address}/driver"):
            self._unbind(driver, address)
        hotplug.remove(self.root, address)

    def _rescan(self, directory: Path) -> None:
        """Find what was removed there, give it back its first state, and offer it to the host's drivers."""
        for address in hotplug.removed_below(self.root, directory):
            fault = self.read(f".faults/{address}")
            if fault in (LOST, CONFIG_FF, NEEDS_BUS_RESET):
                continue  # what reads 0xff throughout is nothing to the kernel
            if fault in (VANISHES, NEEDS_RESCAN):
                (self.root / ".faults" / address).unlink()
            hotplug.find_again(self.root, address)
            self._restore(address)
            self._probe(address)

    def _on_bus_of(self, address: str) -> list[str]:
        bus = address.rsplit(":", 1)[0] + ":"
        return [other for other in self.list(DEVICES) if other.startswith(bus)]

    def _behind(self, bridge: str) -> list[str]:
        """Functions on the bridge's secondary bus; the trees that we build have no deeper ones."""
        header = self.read_bytes(f"{DEVICES}/{bridge}/config", 64) or bytes(64)
        bus = f"{bridge.split(':', maxsplit=1)[0]}:{header[0x19]:02x}:"
        return [other for other in self.list(DEVICES) if other.startswith(bus)]

    def _device(self, address: str) -> Path:
        """The function's directory. Raises ENODEV if there is none."""
        return Path(self._home(address))

    def _home(self, address: str) -> str:
        """As `_device`: a Path costs more than asking the file system."""
        home = f"{self.root}/{DEVICES}/{address}"
        if "/" in address or not os.path.isfile(f"{home}/config"):
            raise _error(errno.ENODEV, address)
        if not os.path.islink(home):
            return home
        return os.path.normpath(f"{os.path.dirname(home)}/{os.readlink(home)}")

    def _refuse(self, path: str) -> None:
        """Raise what the kernel would for an attribute that is missing, or that takes no writes."""
        raise _error(errno.EACCES if (self.root / path).exists() else errno.ENOENT, path)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
