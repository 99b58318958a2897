"""Takes the uncompressed kernel out of a bzImage: QEMU starts it directly, and the guest need not unpack it.

Offsets: https://docs.kernel.org/arch/x86/boot.html (setup_sects, payload_offset, payload_length).
"""

from __future__ import annotations

import subprocess

_SECTOR = 512
# By the payload's first bytes. The last four bytes of a payload are the size of what is in it.
_UNPACKERS = {
    b"\x02!L\x18": ("lz4", "-dc"),
    b"(\xb5/\xfd": ("zstd", "-dcq"),
    b"\xfd7zXZ": ("xz", "-dcq", "--single-stream"),
    b"\x1f\x8b": ("gzip", "-dcq"),
}
UNPACKED = b"\x7fELF"


def vmlinux(image: bytes) -> bytes:
    """The ELF kernel. Raises ValueError if the image is none, or packed in a way that is not known."""
    if image[0x202:0x206] != b"HdrS":
        raise ValueError("it is no bzImage")
    begin = ((image[0x1F1] or 4) + 1) * _SECTOR + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[begin : begin + int.from_bytes(image[0x24C:0x250], "little")]
    for magic, command in _UNPACKERS.items():
        if payload.startswith(magic):
            # gzip has its size there by itself; others complain of bytes behind their end.
            text = payload if magic == b"\x1f\x8b" else payload[:-4]
            found = subprocess.run(command, input=text, capture_output=True, check=False).stdout
            if found.startswith(UNPACKED):
                return found
    raise ValueError(f"its kernel is packed in an unknown way ({payload[:6].hex()})")
