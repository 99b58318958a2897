"""A small FAT12 file system as bytes. Pure: same files in, same bytes out.

Written here because a tool for it (mtools, genisoimage, xorriso) is on no host by default, and a few files of a few KiB
need none of what makes FAT hard. Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR = 512
_ROOT_ENTRIES = 64
_ROOT_SECTORS = _ROOT_ENTRIES * 32 // SECTOR
_MAX_CLUSTERS = 4084  # more would make it FAT16
_MIN_CLUSTERS = 256
_END = 0xFFF
_MEDIA = 0xF8
_DATE = 0x21  # 1 January 1980
_LABEL, _ARCHIVE, _LONG_NAME = 0x08, 0x20, 0x0F
MAX_BYTES = (_MAX_CLUSTERS - 16) * SECTOR


def fat_image(label: str, files: Mapping[str, bytes]) -> bytes:
    """A file system of that label (at most 11 characters), the files in its root. Raises ValueError if too large."""
    clusters = {name: max(1, -(-len(data) // SECTOR)) for name, data in files.items()}
    total = max(_MIN_CLUSTERS, sum(clusters.values()))
    if total > _MAX_CLUSTERS - 16:
        raise ValueError(f"{sum(map(len, files.values()))} bytes of files; at most {MAX_BYTES} fit")
    fat = [_MEDIA | 0xF00, _END]
    root = _entry(label.encode("ascii").ljust(11), _LABEL, 0, 0)
    data = b""
    for number, (name, content) in enumerate(sorted(files.items()), start=1):
        first, count = len(fat), clusters[name]
        fat += [*range(first + 1, first + count), _END]
        short = f"FILE{number:<4}".encode() + b"   "
        root += _long_entries(name, short) + _entry(short, _ARCHIVE, first, len(content))
        data += content.ljust(count * SECTOR, b"\0")
    if len(root) > _ROOT_ENTRIES * 32:
        raise ValueError(f"{len(files)} files; the root directory has room for {_ROOT_ENTRIES} entries")
    table = _pack12(fat, total + 2)
    sectors = 1 + 2 * (len(table) // SECTOR) + _ROOT_SECTORS + total
    boot = _boot_sector(label, sectors, len(table) // SECTOR)
    return (boot + table * 2 + root.ljust(_ROOT_SECTORS * SECTOR, b"\0") + data).ljust(sectors * SECTOR, b"\0")


def _boot_sector(label: str, sectors: int, fat_sectors: int) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHII", b"\xeb\x3c\x90", b"gpupool ", SECTOR, 1, 1, 2, _ROOT_ENTRIES, sectors, _MEDIA, fat_sectors,
        32, 2, 0, 0,
    )  # fmt: skip
    tail = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0, label.encode("ascii").ljust(11), b"FAT12   ")
    return (head + tail).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _entry(name: bytes, attributes: int, cluster: int, size: int) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name, attributes, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, cluster, size)


def _long_entries(name: str, short: bytes) -> bytes:
    """The entries that precede a file's own and carry its real name, last part first."""
    check = 0
    for byte in short:
        check = ((check & 1) << 7) + (check >> 1) + byte & 0xFF
    text = name.encode("utf-16-le") + b"\0\0"
    parts = [text[i : i + 26] for i in range(0, len(text), 26)]
    if len(parts) > 1 and parts[-1] == b"\0\0":
        parts.pop()  # a name that fills its last entry has no end mark
    entries = b""
    for number in range(len(parts), 0, -1):
        part = parts[number - 1].ljust(26, b"\xff")[:26]
        order = number | (0x40 if number == len(parts) else 0)
        entries += struct.pack("<B10sBBB12sH4s", order, part[:10], _LONG_NAME, 0, check, part[10:22], 0, part[22:26])
    return entries


def _pack12(entries: list[int], count: int) -> bytes:
    padded = entries + [0] * (count + count % 2 - len(entries))
    packed = bytearray()
    for low, high in zip(padded[::2], padded[1::2], strict=True):
        packed += bytes((low & 0xFF, low >> 8 | (high & 0xF) << 4, high >> 4))
    return bytes(packed).ljust(-(-len(packed) // SECTOR) * SECTOR, b"\0")
