"""Which UEFI firmware this host has: the descriptors that distributions install for QEMU (docs/interop/firmware.json).

The same files decide for libvirt's own `<os firmware='efi'>`. That is not used, because it keeps the variables of each
VM below /var/lib/libvirt, where nothing removes those of a transient domain; here each VM's copy lies with its files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORIES = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))  # the first wins, file by file
_UNWANTED = {"enrolled-keys"}  # boots signed systems only


@dataclass(frozen=True, slots=True)
class Firmware:
    """A firmware's code and the template of its variables; `needs_smm` if it refuses to run without SMM."""

    code: Path
    variables: Path
    needs_smm: bool = False


def find_firmware(directories: Iterable[Path] = DIRECTORIES) -> Firmware | None:
    """The host's UEFI firmware whose files are there; None if it has none that will do."""
    texts: dict[str, str] = {}
    for directory in directories:
        for file in sorted(directory.glob("*.json")):
            try:
                texts.setdefault(file.name, file.read_text())
            except (OSError, UnicodeDecodeError):
                continue
    found = choose(texts)
    return next((firmware for firmware in found if firmware.code.is_file() and firmware.variables.is_file()), None)


def choose(descriptors: Mapping[str, str]) -> list[Firmware]:
    """What the descriptors (file name to text) offer for a q35 VM: without SMM first, then by file name."""
    parsed = [_parse(text) for _, text in sorted(descriptors.items())]
    return sorted(filter(None, parsed), key=lambda firmware: firmware.needs_smm)


def _parse(text: str) -> Firmware | None:
    try:
        descriptor: Any = json.loads(text)
        targets = [target for target in descriptor["targets"] if target["architecture"] == "x86_64"]
        machines = {machine for target in targets for machine in target["machines"]}
        mapping, features = descriptor["mapping"], set(descriptor["features"])
        code, variables = mapping["executable"], mapping["nvram-template"]
        fits = (
            "uefi" in descriptor["interface-types"]
            and mapping["device"] == "flash"
            and code["format"] == variables["format"] == "raw"
            and any(machine.startswith("pc-q35") or machine == "q35" for machine in machines)
            and not features & _UNWANTED
        )
        files = Path(code["filename"]), Path(variables["filename"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return Firmware(*files, needs_smm="requires-smm" in features) if fits else None
