"""The daemons of a world and the machines that they run on: start, crash, pause, power."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.sim.loop import VirtualLoop
from tests.sim.nodes import Incarnation, SimTask

Boot = Callable[[], Coroutine[Any, Any, object]]


@dataclass(frozen=True)
class Process:
    """A daemon of the simulation, see `World.add`."""

    name: str
    boot: Boot
    domain: str
    restart_s: float | None
    expected: tuple[type[Exception], ...]


class Processes(ABC):
    """The part of World that knows of processes."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.loop.on_exit = self._on_system_exit
        self.on_power: list[Callable[[str, bool], None]] = []  # (domain, on): hardware that lives and dies with it
        self._processes: dict[str, Process] = {}
        self._off: set[str] = set()

    @abstractmethod
    def trace(self, line: str, *, node: str | None = None) -> None:
        """Add a line to the trace."""

    def at(self, when: float, action: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `action` as the world at virtual time `when`."""
        return self.loop.call_at(when, action, context=self.loop.world.context())

    def after(self, delay_s: float, action: Callable[[], object]) -> asyncio.TimerHandle:
        """Call `action` as the world in `delay_s` seconds."""
        return self.at(self.loop.time() + delay_s, action)

    def add(
        self,
        node: str,
        boot: Boot,
        *,
        domain: str | None = None,
        restart_s: float | None = None,
        expected: tuple[type[Exception], ...] = (),
    ) -> None:
        """Declare a process; `start` starts it. `boot` is its main: called anew, inside the node, at each start.

        `domain` is the machine that it shares power with. When main ends, by itself, by SystemExit or by an exception
        in `expected`, the process is gone, and starts again after `restart_s` if given. Any other exception of main is
        a bug and fails the run.
        """
        self._processes[node] = Process(node, boot, domain or node, restart_s, expected)

    def start(self, node: str) -> None:
        """Start the process, unless it runs or its machine is off."""
        process = self._processes[node]
        last = self.loop.incarnation(node)
        if not (last and last.alive) and process.domain not in self._off:
            life = self.loop.begin(node)
            self.trace("start", node=str(life))
            self.loop.start(life, self._main(process, life), name=f"{node} main")

    def spawn(self, node: str, factory: Boot, *, name: str | None = None) -> SimTask:
        """A task of `node` besides its main; begins an incarnation if none is alive (toys, clients)."""
        life = self.loop.incarnation(node)
        if not (life and life.alive):
            life = self.loop.begin(node)

        async def run() -> object:  # the factory too is to run inside the node, with the loop running
            return await factory()

        return self.loop.start(life, run(), name=name or f"{node} {getattr(factory, '__name__', 'task')}")

    async def _main(self, process: Process, life: Incarnation) -> None:
        try:
            await process.boot()
        except process.expected as exc:
            self._ended(life, f"exit: {type(exc).__name__}: {exc}")
        except Exception as exc:  # noqa: BLE001  (whatever it is, the run fails with it)
            self.loop.fail(exc)
        else:
            self._ended(life, "exit")

    def _on_system_exit(self, life: Incarnation, exc: SystemExit) -> None:
        self._ended(life, f"exit: SystemExit {exc.code}")

    def _ended(self, life: Incarnation, why: str) -> None:
        self.trace(why, node=str(life))
        self.loop.crash(life.name)
        process = self._processes.get(life.name)
        if process and process.restart_s is not None:
            self.after(process.restart_s, lambda: self.start(process.name))

    def crash(self, node: str) -> None:
        """Kill the process (SIGKILL)."""
        self.trace("crash", node=node)
        self.loop.crash(node)

    def pause(self, node: str) -> None:
        """Stop the process (SIGSTOP) until `resume`."""
        life = self.loop.incarnation(node)
        if life and life.alive:
            self.trace("pause", node=node)
            self.loop.pause(node)

    def resume(self, node: str) -> None:
        """Let the process go on."""
        life = self.loop.incarnation(node)
        if life and life.alive:
            self.trace("resume", node=node)
            self.loop.resume(node)

    def power_cut(self, domain: str) -> None:
        """All processes of the machine end at once; `on_power` hooks see to its VMs and devices."""
        self._power(domain, False)

    def power_on(self, domain: str) -> None:
        """The machine boots: its hooks first, then its processes in the order of their declaration."""
        self._power(domain, True)

    def powered(self, domain: str) -> bool:
        """Whether the machine is on."""
        return domain not in self._off

    def members(self, domain: str) -> list[str]:
        """The processes of a machine."""
        return [process.name for process in self._processes.values() if process.domain == domain]

    def _power(self, domain: str, on: bool) -> None:
        if on == self.powered(domain):
            return
        self.trace("power on" if on else "power cut", node=domain)
        (self._off.discard if on else self._off.add)(domain)
        if not on:
            for node in self.members(domain):
                self.loop.crash(node)
        for hook in list(self.on_power):
            hook(domain, on)
        if on:
            for node in self.members(domain):
                self.start(node)
