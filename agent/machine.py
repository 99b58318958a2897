"""Which machine this is, whatever boots on it and whatever its name is: so that a reboot can be told from a twin.

A name and an address can be given to another machine, a boot id tells only that it is another boot. The id is the
firmware's (DMI product UUID), else the installation's (/etc/machine-id), each hashed, since both are to be kept from
strangers. It must never be the same on two machines, nor change on one; where that cannot be had it is "", unknown. A
simulated host is no machine of its own: it has the machine's id and its state directory's path, so it survives that a
power cut is played.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

DMI, INSTALLED = Path("sys/class/dmi/id/product_uuid"), Path("etc/machine-id")
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")
_PLACEHOLDERS = {  # that firmware is sold with; those of few different digits are caught besides
    "03000200040005000006000700080009",
    "030201000504070608090a0b0c0d0e0f",
    "10000000000080000040000000000000",
    "12345678123456781234567812345678",
}
_FEW = 4


def machine_id(root: Path = Path("/"), simulated_in: Path | None = None) -> str:
    """The id of this machine, or of the host that is simulated in that state directory; "": nobody knows."""
    found = _read(root / DMI) or _read(root / INSTALLED)
    if not found:
        return ""
    return _hashed(found if simulated_in is None else f"{found} {simulated_in.resolve()}")


def _read(file: Path) -> str:
    """The UUID in there as hexadecimal digits; "" if there is none that could tell machines apart."""
    try:
        text = file.read_text(encoding="ascii").strip().lower()
    except (OSError, ValueError):
        return ""
    digits = text.replace("-", "")
    sane = _UUID.fullmatch(text) and len(set(digits)) > _FEW and digits not in _PLACEHOLDERS
    return digits if sane else ""


def _hashed(text: str) -> str:
    return hashlib.sha256(f"gpupool machine {text}".encode()).hexdigest()[:16]
