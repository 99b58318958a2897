"""Reboots hosts in turn, each emptied before and judged after. It stops at the first host that is not back as it was.

What was done is read from the scheduler's records, never remembered here: when a host's boot was first seen, and whose
maintenance it is in. So another run goes on where this one ended. It never reboots a host that has a VM.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.client import AsyncClient
from gpupool.client.policy import Deadline
from gpupool.errors import Conflict, DeadlineExceeded, GpupoolError, InvalidSpec
from gpupool.v1 import records_pb2, scheduler_pb2

from . import draining
from .draining import Say, Watched, Wish, begin, drained
from .settings import me
from .views import age, enum_name, unit_state

NO_REASON = "no reason given"
_ON_ITS_WAY = (records_pb2.UNIT_STATE_DIRTY, records_pb2.UNIT_STATE_RESETTING, records_pb2.UNIT_STATE_HELD)


@dataclass(frozen=True, slots=True)
class Roll:
    """`since_s`: a host that was booted later is done. `mark` tells this run's maintenance and drains from others'."""

    since_s: float
    mark: str
    command: str
    wish: Wish
    at_once: int
    drain_s: float | None
    back_s: float
    resume: str

    def line(self, host: str) -> list[str]:
        """The command for one host. Raises InvalidSpec for one that cannot be."""
        try:
            words = [word.replace("{host}", host) for word in shlex.split(self.command)]
        except ValueError as error:
            raise InvalidSpec([f"--command {self.command!r}: {error}"]) from None
        if not words:
            raise InvalidSpec([f"--command {self.command!r} is empty: say what reboots a host"])
        return words


class Rolling:
    """One run."""

    def __init__(self, client: AsyncClient, roll: Roll, say: Say) -> None:
        self._client = client
        self._roll = roll
        self._say = say
        self._watched = Watched(client)
        self._stopped = False

    async def run(self, names: Sequence[str]) -> None:
        """Reboot all hosts; raises what stopped it, after those that were under way have come to an end."""
        for host in await self._watched.all(names):
            self._check(host)
        turns = asyncio.Semaphore(self._roll.at_once)

        async def one(name: str) -> None:
            async with turns:
                if self._stopped:
                    return
                try:
                    await self._host(name)
                except GpupoolError:
                    self._stopped = True
                    raise

        for found in await asyncio.gather(*map(one, dict.fromkeys(names)), return_exceptions=True):
            if isinstance(found, BaseException):
                raise found

    def _check(self, host: scheduler_pb2.Host) -> None:
        """Nobody else's work may be on the host, and it must be well before."""
        intent = host.intent
        if intent.maintenance and intent.maintenance_reason != self._roll.mark:
            why = f"{intent.maintenance_reason or NO_REASON} ({intent.maintenance_by})"
            raise Conflict(
                f"{host.name} is in maintenance: {why}; leave it out, or gpupool maintenance off {host.name}"
            )
        if intent.HasField("drain") and intent.drain.reason != self._roll.mark:
            why = f"{intent.drain.reason or NO_REASON} ({intent.drain.by})"
            raise Conflict(f"{host.name} is being drained: {why}; leave it out, or gpupool undrain {host.name}")
        if host.record.state != records_pb2.HOST_STATE_READY and not intent.maintenance:
            state = enum_name(records_pb2.HostState, host.record.state)
            raise Conflict(f"{host.name} is {state}; mend it first, or leave it out")

    async def _host(self, name: str) -> None:
        host = await self._watched.look(name)
        self._check(host)
        rebooted = host.record.boot_s >= self._roll.since_s
        if rebooted and not host.intent.maintenance:
            self._say(f"{name}: booted since, nothing to do")
            return
        if rebooted:  # by a run before this one, which did not see it back
            await self._back(name, "", frozenset())
        else:
            usable, _ = await self._units(name)
            if not host.intent.maintenance:
                await self._empty(name)
            if host.record.state == records_pb2.HOST_STATE_READY:  # else it is on its way down already
                await self._reboot(name)
            await self._back(name, host.record.boot_id, usable)
        await self._client.maintenance(name, on=False, by=me())
        self._watched.changed()
        self._say(f"{name}: takes jobs again")

    async def _empty(self, name: str) -> None:
        """Move its VMs away, and keep it out over the reboot."""
        await begin(self._client, name, self._roll.wish)
        self._watched.changed()
        try:
            await drained(self._watched, name, deadline=Deadline(self._roll.drain_s), say=self._say)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"{error}; to roll on later, {self._roll.resume}") from None
        await self._client.maintenance(name, on=True, reason=self._roll.mark, by=me())
        await self._client.undrain(name, by=me())
        self._watched.changed()

    async def _reboot(self, name: str) -> None:
        host = await self._watched.look(name)
        if host.vms or not host.intent.maintenance:
            raise Conflict(f"{name} has {host.vms} VMs, or was let in again: not rebooted; {self._roll.resume}")
        line = self._roll.line(name)
        self._say(f"{name}: {shlex.join(line)}")
        try:
            child = await asyncio.create_subprocess_exec(
                *line,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise InvalidSpec([f"--command: cannot run {line[0]!r}: {error.strerror}"]) from None
        try:
            async with asyncio.timeout(self._roll.back_s):
                output, _ = await child.communicate()
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: the command did not end in {self._roll.back_s:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        for text in output.decode(errors="replace").splitlines():
            self._say(f"{name}: {text}")
        if child.returncode:  # as with ssh, whose connection a reboot cuts: whether it comes back tells
            self._say(f"{name}: the command ended with {child.returncode}")

    async def _back(self, name: str, before: str, usable: frozenset[str]) -> None:
        """The health gate: another boot, READY, every unit settled, and none out of use that was in use before."""
        deadline, told = Deadline(self._roll.back_s), ""
        began_s = asyncio.get_running_loop().time()
        while True:
            host = await self._watched.look(name)
            missing = await self._missing(host, before)
            if not missing:
                break
            if missing != told:
                told = missing
                self._say(f"{name}: {missing}")
            if deadline.passed():
                raise DeadlineExceeded(
                    f"{name} is not back within {self._roll.back_s:g} s ({missing}); it stays in maintenance; "
                    f"{self._how_on(name)}"
                )
            await asyncio.sleep(draining.POLL_S)
            self._watched.changed()
        now, out_of_use = await self._units(name)
        lost = {unit: out_of_use.get(unit, "is gone") for unit in usable - now} if before else out_of_use
        if lost:
            units = ", ".join(f"{unit} {why}" for unit, why in sorted(lost.items()))
            raise Conflict(
                f"{name} is back with less than before: {units}; it stays in maintenance; {self._how_on(name)}"
            )
        took = age(1.0, 1.0 + asyncio.get_running_loop().time() - began_s)
        self._say(f"{name}: healthy, {took} after the command")

    async def _missing(self, host: scheduler_pb2.Host, before: str) -> str:
        """What it lacks yet, in words; "": nothing."""
        state = enum_name(records_pb2.HostState, host.record.state)
        if before and host.record.boot_id == before:
            return f"is {state}, not rebooted yet"
        if host.record.state != records_pb2.HOST_STATE_READY:
            return f"has rebooted, is {state}"
        units = await self._client.units(host.name)
        left = [view.unit.id for view in units if view.state in _ON_ITS_WAY]
        return f"is READY, {len(left)} of {len(units)} units are not proven clean yet" if left else ""

    async def _units(self, name: str) -> tuple[frozenset[str], dict[str, str]]:
        """Units that jobs are or can be given, and the others, with why they cannot."""
        usable, out_of_use = set(), {}
        for view in await self._client.units(name):
            if view.state in (records_pb2.UNIT_STATE_FREE, *_ON_ITS_WAY):
                usable.add(view.unit.id)
            else:
                why = view.report.reason or view.unit.unfit or view.report.sick
                out_of_use[view.unit.id] = f"{unit_state(view)} ({why})"
        return frozenset(usable), out_of_use

    def _how_on(self, name: str) -> str:
        return f"mend it and {self._roll.resume}, or let it in as it is: gpupool maintenance off {name}"
