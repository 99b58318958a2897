"""Asks every device for its host's power state, and switches nothing: so that a wrong password is found before a death.

It cannot see whether a BMC is that of the host that it is named for. Only a person at the machine can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from .port import FenceDevice, FenceError

AT_ONCE = 16
FAILED = 10  # exit code: some device did not answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device said. `error` "": it answered."""

    host: str
    device: str
    power: str = ""
    error: str = ""


async def ask(devices: Mapping[str, FenceDevice]) -> list[Answer]:
    """Every device's answer, by host."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(host: str) -> Answer:
        device = devices[host]
        async with slots:
            try:
                return Answer(host, device.kind, (await device.status()).value)
            except FenceError as exc:
                return Answer(host, device.kind, error=str(exc))

    return list(await asyncio.gather(*(one(host) for host in sorted(devices))))


def exit_code(answers: Iterable[Answer]) -> int:
    """For automation."""
    return FAILED if any(answer.error for answer in answers) else 0


def as_json(answers: Iterable[Answer]) -> str:
    """One document."""
    return json.dumps({"hosts": [asdict(answer) for answer in answers]}, indent=2)


def as_table(answers: Iterable[Answer]) -> str:
    """One line a host."""
    rows = [
        ("HOST", "DEVICE", "POWER", "ERROR"),
        *((a.host, a.device, a.power or "-", a.error or "-") for a in answers),
    ]
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    return "\n".join("  ".join([*(row[n].ljust(widths[n]) for n in range(3)), row[3]]) for row in rows)
