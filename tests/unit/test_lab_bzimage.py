"""The kernel in a bzImage."""

from __future__ import annotations

import gzip

import pytest

from lab.bzimage import vmlinux


def bzimage(payload: bytes) -> bytes:
    """A boot sector, one sector of set-up code, and the payload 16 bytes behind it."""
    header = bytearray(1024 + 16)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    header[0x248:0x24C] = (16).to_bytes(4, "little")
    header[0x24C:0x250] = len(payload).to_bytes(4, "little")
    return bytes(header) + payload


def test_the_kernel_comes_out_whole() -> None:
    assert vmlinux(bzimage(gzip.compress(b"\x7fELF and more"))) == b"\x7fELF and more"


@pytest.mark.parametrize("image", [b"", b"MZ" * 600, bzimage(b"what?"), bzimage(gzip.compress(b"no kernel"))])
def test_anything_else_is_refused(image: bytes) -> None:
    with pytest.raises(ValueError, match=r"bzImage|packed"):
        vmlinux(image)
