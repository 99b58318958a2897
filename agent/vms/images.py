"""Guest images: directories below one root, each made whole by whoever builds it before it gets its manifest.

An image is what its manifest says. `"boot": "kernel"` (or nothing) is a kernel, an initrd and a root disk that all its
VMs share, as deploy/guest/build.sh makes; `"boot": "uefi"` is a disk that boots by itself, of which each VM gets an
overlay of its own. Digests are not checked here: a start must not read 100 MB to begin.
"""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FILES = ("vmlinuz", "initrd.img", "root.img")
# quiet: each line of kernel log is an exit from the guest; panic=1 with on_reboot=destroy: a panic ends the VM.
DEFAULT_CMDLINE = "console=ttyS0 quiet panic=1 mitigations=off no_timer_check tsc=reliable"
FORMATS = ("raw", "qcow2")
HEAD_BYTES = 64 * 512  # of a disk, in which a partition table says whether UEFI can boot it
_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le  # UEFI 2.10, table 5.7
_ESP_MBR = 0xEF


class ImageError(Exception):
    """There is no such image, or it is not whole or not bootable. The message names the image and what to do."""


@dataclass(frozen=True, slots=True)
class KernelBoot:
    """Absolute paths, and the kernel's command line. `root` is shared, read only."""

    kernel: Path
    initrd: Path
    root: Path
    cmdline: str


@dataclass(frozen=True, slots=True)
class UefiBoot:
    """A disk that UEFI firmware boots; it is never written to."""

    disk: Path
    format: str


@dataclass(frozen=True, slots=True)
class Image:
    """One guest image. `cloud_init`: it wants a seed even if the user gives no user data."""

    name: str
    boot: KernelBoot | UefiBoot
    cloud_init: bool = False


def list_images(root: Path) -> list[str]:
    """Names of the images below `root`, sorted; those without a manifest are none (yet)."""
    return sorted(manifest.parent.name for manifest in root.glob(f"*/{MANIFEST}"))


def load_image(root: Path, name: str) -> Image:
    """The image called `name`. Raises ImageError."""
    folder = root.absolute() / name
    if "/" in name or not (folder / MANIFEST).is_file():
        raise ImageError(f"image {name!r} is not in {root} (there: {', '.join(list_images(root)) or 'none'})")
    manifest = _manifest(name, folder / MANIFEST)
    boot: KernelBoot | UefiBoot
    match manifest.get("boot", "kernel"):
        case "kernel":
            kernel, initrd, disk = _files(root, name, FILES)
            boot = KernelBoot(kernel, initrd, disk, str(manifest.get("cmdline", DEFAULT_CMDLINE)))
        case "uefi":
            boot = _uefi(root, name, manifest)
        case other:
            raise ImageError(
                f"image {name!r} boots by {other!r}; gpupool boots 'kernel' (kernel, initrd, root disk) and 'uefi' (a "
                "disk with an EFI system partition): put a UEFI boot loader on it and say so in the manifest"
            )
    return Image(name, boot, cloud_init=manifest.get("cloud_init") is True)


def check_bootable(name: str, head: bytes) -> None:
    """Raises ImageError if the first HEAD_BYTES of a UEFI image's disk show that UEFI finds nothing to boot on it."""
    if not has_efi_partition(head):
        raise ImageError(
            f"image {name!r} says that it boots by UEFI, but its disk has no EFI system partition: install a UEFI boot "
            "loader in it, or make an image with a kernel and an initrd of it"
        )


def has_efi_partition(head: bytes) -> bool:
    """Whether a disk that begins so has an EFI system partition, or is one whole FAT file system.

    GPT: UEFI 2.10, 5.3; entries are looked for at block 2, where every tool puts them. MBR: table 5.1.
    """
    if head[512:520] == b"EFI PART" and len(head) >= 1024:
        start, count, size = struct.unpack_from("<QII", head, 512 + 72)
        table = head[start * 512 :]
        return any(table[n * size : n * size + 16] == _ESP for n in range(min(count, len(table) // max(size, 1))))
    if head[510:512] != b"\x55\xaa":
        return False
    return head[54:57] == b"FAT" or head[82:87] == b"FAT32" or _ESP_MBR in head[446 + 4 : 510 : 16]


def _manifest(name: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as exc:
        raise ImageError(f"image {name!r}: cannot read {file}: {exc}") from exc
    if not isinstance(content, dict):
        raise ImageError(f"image {name!r}: cannot read {file}: it holds no JSON object")
    return content


def _files(root: Path, name: str, files: tuple[str, ...]) -> list[Path]:
    folder = root.absolute() / name
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise ImageError(f"image {name!r} in {root} lacks {', '.join(missing)}; build it again")
    return [folder / file for file in files]


def _uefi(root: Path, name: str, manifest: dict[str, Any]) -> UefiBoot:
    match manifest.get("disk"):
        case {"file": str(file), "format": str(kind)} if kind in FORMATS and "/" not in file:
            return UefiBoot(_files(root, name, (file,))[0], kind)
        case other:
            example = '{"file": "disk.qcow2", "format": "qcow2"}'
            raise ImageError(
                f"image {name!r}: its manifest's disk is {other!r}; write {example}, of a file beside the manifest and "
                f"a format of {', '.join(FORMATS)}"
            )
