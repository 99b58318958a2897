"""The seed from which cloud-init in a guest takes its identity and the user's wishes (data source NoCloud). Pure."""

from __future__ import annotations

import re

from .fat import MAX_BYTES, fat_image

LABEL = "CIDATA"  # cloud-init looks for a vfat or iso9660 file system of this label
_NOTHING = "#cloud-config\n{}\n"
_MAX_NAME = 63


def seed_image(allocation: str, user_data: str) -> bytes:
    """The seed disk, a FAT file system. Raises ValueError if the user data is too large for it."""
    name = re.sub(r"[^a-z0-9]+", "-", allocation.lower()).strip("-")[:_MAX_NAME].rstrip("-") or "guest"
    meta = f"instance-id: {allocation}\nlocal-hostname: {name}\n"
    user = (user_data or _NOTHING).encode()
    if len(user) > MAX_BYTES // 2:
        raise ValueError(f"user data of {len(user)} bytes; at most {MAX_BYTES // 2} fit on the seed")
    return fat_image(LABEL, {"meta-data": meta.encode(), "user-data": user})
