"""Power fencing by a program of the fence-agents, called as Pacemaker calls it: parameters on its standard input.

Off counts only if the program said so and, asked again for the status, says that it sees it. A program that is late is
killed with all that it started. What it prints reaches no log before the secret is cut out of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from gpupool.embedded.etcd import die_with_us

from .marks import mark_of_parameters
from .port import FenceError, Power, SeenOff
from .secret import Secret, cleaned

STATUS_OFF = 2  # exit code of action=status; 0 is on, anything else is an error
KILLED_S = 2.0
OUTPUT_BYTES = 16384  # that are looked at; what comes after is thrown away
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment() -> dict[str, str]:
    """For fence programs: nothing of ours, since our environment may hold the passwords of others."""
    return {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/nonexistent", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True, slots=True)
class FenceProgram:
    """One host's device. `program` is a path; `parameters` hold no secret; each call may take `limit_s`.

    `machine`: that it is of; "": not said.
    """

    kind: str
    program: str
    parameters: Mapping[str, str]
    secret: Secret = field(default_factory=Secret)
    password_name: str = "password"  # noqa: S105 - the parameter's name
    limit_s: float = 60.0
    power_on: bool = False
    machine: str = ""

    @property
    def mark(self) -> str:
        """See `marks.py`."""
        return mark_of_parameters(self.parameters)

    async def off(self) -> SeenOff:
        """See the port."""
        code, said = await self._run("off")
        if code != 0:
            raise FenceError(f"action off failed with {code}: {said or 'it said nothing'}")
        if (seen := await self.status()) is not Power.OFF:
            raise FenceError(f"action off reported success, but the power is {seen.value}; is it the right device?")
        return SeenOff(already="already off" in said.lower())

    async def on(self) -> None:
        """See the port."""
        code, said = await self._run("on")
        if code != 0:
            raise FenceError(f"action on failed with {code}: {said or 'it said nothing'}")

    async def status(self) -> Power:
        """See the port."""
        code, said = await self._run("status")
        if code in (0, STATUS_OFF):
            return Power.OFF if code == STATUS_OFF else Power.ON
        raise FenceError(f"action status failed with {code}: {said or 'it said nothing'}")

    async def _run(self, action: str) -> tuple[int, str]:
        """Its exit code, and what it said, without the secret."""
        secret = await asyncio.to_thread(self.secret.read)
        given = {**self.parameters, **({self.password_name: secret} if secret else {}), "action": action}
        text = "".join(f"{name}={value}\n" for name, value in given.items())
        try:
            process = await asyncio.create_subprocess_exec(
                *die_with_us(), self.program, env=environment(), cwd="/", start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as exc:
            raise FenceError(f"cannot run {self.program}: {exc.strerror}") from None
        try:
            async with asyncio.timeout(self.limit_s):
                said = await _talk(process, text.encode())
                code = await process.wait()
        except TimeoutError:
            await _kill(process)
            raise FenceError(f"action {action} did not end within {self.limit_s:g} s, and was killed") from None
        except asyncio.CancelledError:
            await _kill(process)
            raise
        return code, cleaned(said.decode(errors="replace"), secret, self.parameters.get("username", ""))


async def _talk(process: asyncio.subprocess.Process, text: bytes) -> bytes:
    """Tell it `text`, and listen until it is silent for good."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(text)
        await process.stdin.drain()
    process.stdin.close()
    said = b""
    while chunk := await process.stdout.read(4096):
        said += chunk[: OUTPUT_BYTES - len(said)]
    return said


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the program and what it started: it leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):  # one that hangs in the kernel must not hold us up
        async with asyncio.timeout(KILLED_S):
            await process.wait()
