"""The operator's own command between two tenants of a unit, for what no reset clears.

It runs after the reset and before the proof, with the unit bound to vfio-pci, so what it leaves behind is found. Its
exit code decides: anything but 0 keeps the unit from the next tenant.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from gpupool.v1 import inventory_pb2

from .baseline import Final

LAST_BYTES, LAST_LINES = 4096, 5
REAPED_WITHIN_S = 5.0  # of SIGKILL; a process in the kernel's hands may take for ever
OUTPUT_ENDS_S = 0.5  # after the command's end
FIELD, EXPECTED = "scrub command", "exit code 0"


async def scrub(command: Sequence[str], unit: inventory_pb2.Unit, allocation: str, timeout_s: float) -> None:
    """Run `command` with the unit's addresses as further arguments, at most `timeout_s` seconds.

    In its environment are GPUPOOL_UNIT (the unit's name), GPUPOOL_FUNCTIONS (addresses, by spaces) and
    GPUPOOL_ALLOCATION (what the unit was used for; empty: unknown). Raises Final with its last lines if it cannot be
    started, does not end in time or fails. When this returns, or is cancelled, nothing of its process group runs on,
    unless the kernel holds it.
    """
    addresses = [function.address for function in unit.functions]
    ours = {"GPUPOOL_UNIT": unit.id, "GPUPOOL_FUNCTIONS": " ".join(addresses), "GPUPOOL_ALLOCATION": allocation}
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            *addresses,
            env=os.environ | ours,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise Final(unit.id, FIELD, f"not to be started ({command[0]}: {error.strerror})", EXPECTED) from error
    said = bytearray()
    reading = asyncio.create_task(_keep_last(process, said))
    try:
        async with asyncio.timeout(timeout_s):
            code = await process.wait()
    except TimeoutError as error:
        raise Final(unit.id, FIELD, f"still running after {timeout_s:g} s{_last(said)}", EXPECTED) from error
    finally:
        await _end(process, reading)
    if code:
        how = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        raise Final(unit.id, FIELD, f"{how}{_last(said)}", EXPECTED)


async def _keep_last(process: asyncio.subprocess.Process, said: bytearray) -> None:
    assert process.stdout
    while piece := await process.stdout.read(LAST_BYTES):
        said += piece
        del said[:-LAST_BYTES]


async def _end(process: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
    """Kill what is left of the process group, which is somebody as long as its output is open."""
    if process.returncode is not None:
        await asyncio.wait([reading], timeout=OUTPUT_ENDS_S)
    if process.returncode is None or not reading.done():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait([reading], timeout=REAPED_WITHIN_S)
    reading.cancel()


def _last(said: bytearray) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f": {' / '.join(lines[-LAST_LINES:])}" if lines else ""
