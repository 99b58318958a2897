"""Guest images: directories below one root, each made whole by deploy/guest/build.sh before it gets its name.

An image is what its manifest says. Digests are not checked here: a start must not read 100 MB to begin.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
FILES = ("vmlinuz", "initrd.img", "root.img")
# quiet: each line of kernel log is an exit from the guest; panic=1 with on_reboot=destroy: a panic ends the VM.
DEFAULT_CMDLINE = "console=ttyS0 quiet panic=1 mitigations=off no_timer_check tsc=reliable"


class ImageError(Exception):
    """There is no such image, or it is not whole. The message names the image and what there is."""


@dataclass(frozen=True, slots=True)
class Image:
    """One guest image: absolute paths, and the kernel's command line."""

    name: str
    kernel: Path
    initrd: Path
    root: Path
    cmdline: str


def list_images(root: Path) -> list[str]:
    """Names of the images below `root`, sorted; those without a manifest are none (yet)."""
    return sorted(manifest.parent.name for manifest in root.glob(f"*/{MANIFEST}"))


def load_image(root: Path, name: str) -> Image:
    """The image called `name`. Raises ImageError."""
    folder = root.absolute() / name
    if "/" in name or name not in list_images(root):
        raise ImageError(f"image {name!r} is not in {root} (there: {', '.join(list_images(root)) or 'none'})")
    cmdline = _cmdline(name, folder / MANIFEST)
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ImageError(f"image {name!r} in {root} lacks {', '.join(missing)}; build it again")
    kernel, initrd, disk = (folder / file for file in FILES)
    return Image(name, kernel, initrd, disk, cmdline)


def _cmdline(name: str, manifest: Path) -> str:
    try:
        content = json.loads(manifest.read_text())
        return str(content.get("cmdline", DEFAULT_CMDLINE))
    except (OSError, ValueError, AttributeError) as exc:
        raise ImageError(f"image {name!r}: cannot read {manifest}: {exc}") from exc
