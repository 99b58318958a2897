"""The child process in which operations on devices run, one at a time: it may hang, so that the agent need not.

Runs as a script, apart from the agent's packages, with Python's standard library only. It says an empty line once it
has started. Then each line on stdin is one request and each line on stdout its answer, both JSON. It ends when stdin
does. Decides nothing, and never retries.

The ioctls and structures are those of linux/vfio.h, for architectures on which _IO has no direction bits (x86, Arm).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

VFIO_BASE = ord(";") << 8 | 100
SET_IOMMU, GROUP_GET_STATUS, GROUP_SET_CONTAINER = VFIO_BASE + 2, VFIO_BASE + 3, VFIO_BASE + 4
GROUP_GET_DEVICE_FD, HOT_RESET_INFO, HOT_RESET = VFIO_BASE + 6, VFIO_BASE + 12, VFIO_BASE + 13
TYPE1_IOMMU, TYPE1V2_IOMMU = 1, 3
GROUP_VIABLE = 1  # VFIO_GROUP_FLAGS_VIABLE
MAX_AFFECTED = 256  # functions on one bus

Ioctl = Callable[[int, int, Any], Any]


def main() -> None:
    """Say that it is there, then answer requests until there are no more."""
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        answer = json.dumps(perform(json.loads(line)))
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked. The kernel's refusal is an answer: `errno` and, where it helps, `message`."""
    try:
        match request["op"]:
            case "read":
                return {"data": _read(request["path"], request["limit"], request["offset"])}
            case "write":
                _write(request["path"], request["text"])
            case "hot-reset":
                hot_reset(request["vfio"], request["address"], request["groups"], request["ours"])
            case other:
                return {"errno": errno.ENOSYS, "message": f"no operation {other!r}"}
    except OSError as error:
        return {"errno": error.errno or errno.EIO, "message": error.strerror or str(error)}
    return {}


def _read(path: str, limit: int, offset: int) -> str:
    """Up to `limit` bytes of the file from `offset` on, as hexadecimal digits."""
    pieces = []
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.lseek(file, offset, os.SEEK_SET)
        while limit > 0 and (piece := os.read(file, limit)):
            pieces.append(piece)
            limit -= len(piece)
    finally:
        os.close(file)
    return b"".join(pieces).hex()


def _write(path: str, text: str) -> None:
    """One write, as sysfs expects; it has neither O_CREAT nor O_TRUNC."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def hot_reset(vfio: str, address: str, groups: list[int], ours: list[str], ioctl: Ioctl = fcntl.ioctl) -> None:
    """Reset the slot or bus of `address` through vfio-pci, as QEMU does, if that hits no function beside `ours`.

    `vfio` is the directory of the group devices, `groups` are the IOMMU groups of `ours`. The kernel makes sure that
    nobody else has any of these devices open. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        container = _open(f"{vfio}/vfio", stack)
        held = [_open(f"{vfio}/{group}", stack) for group in groups]
        for number, group in zip(groups, held, strict=True):
            status = bytearray(struct.pack("=II", 8, 0))
            ioctl(group, GROUP_GET_STATUS, status)
            if not struct.unpack("=II", status)[1] & GROUP_VIABLE:
                raise OSError(errno.EPERM, f"IOMMU group {number} has a device that is not bound to vfio-pci")
            ioctl(group, GROUP_SET_CONTAINER, struct.pack("=i", container))
        try:
            ioctl(container, SET_IOMMU, TYPE1V2_IOMMU)
        except OSError:
            ioctl(container, SET_IOMMU, TYPE1_IOMMU)
        device = _device(held, address, ioctl)
        stack.callback(os.close, device)
        if foreign := sorted(set(_affected(device, ioctl)) - set(ours)):
            raise OSError(errno.EPERM, f"the reset would hit {' '.join(foreign)} too")
        ioctl(device, HOT_RESET, struct.pack(f"=III{len(held)}i", 12 + 4 * len(held), 0, len(held), *held))


def _open(path: str, stack: contextlib.ExitStack) -> int:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, file)
    return file


def _device(groups: list[int], address: str, ioctl: Ioctl) -> int:
    """The device's descriptor, from whichever of the groups has it."""
    for group in groups:
        try:
            descriptor: int = ioctl(group, GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0"))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        else:
            return descriptor
    raise OSError(errno.ENODEV, f"{address} is in none of its IOMMU groups")


def _affected(device: int, ioctl: Ioctl) -> list[str]:
    """Addresses of all functions that a hot reset of the device hits (struct vfio_pci_hot_reset_info)."""
    size = 12 + 8 * MAX_AFFECTED
    info = bytearray(struct.pack("=III", size, 0, 0) + bytes(8 * MAX_AFFECTED))
    ioctl(device, HOT_RESET_INFO, info)
    (count,) = struct.unpack_from("=I", info, 8)
    entries = (struct.unpack_from("=IHBB", info, 12 + 8 * index) for index in range(count))
    return [f"{segment:04x}:{bus:02x}:{devfn >> 3:02x}.{devfn & 7}" for _, segment, bus, devfn in entries]


if __name__ == "__main__":
    main()
