"""One simulated world: loop, store, network, processes, the trace and the invariants, all made from one seed."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Self

from gpupool.store.memory import MemoryStore
from gpupool.store.port import Change, Compacted
from tests.sim.faulty_store import FaultyStore, SimBackend
from tests.sim.grave import collect
from tests.sim.link import Impairment, Link
from tests.sim.loop import VirtualLoop
from tests.sim.processes import Boot, Processes
from tests.sim.sealed import sealed

Check = Callable[[], Iterable[str]]

LOGGERS = ("scheduler", "agent", "gpupool")
"""What these log goes into the trace."""

_TAIL = 40


class SeedFailedError(AssertionError):
    """The run broke an invariant, or itself. The message names the seed and ends with the last lines of the trace."""


class InvariantError(AssertionError):
    """A check found something that must never be."""


class World(Processes):
    """Everything of one run. Use as a context manager, or `close` it: coroutines must be buried before the next run."""

    def __init__(
        self,
        seed: int,
        *,
        jitter: bool = True,
        keep_revisions: int | None = None,
        executor_delay_s: tuple[float, float] | None = None,
        echo: Callable[[str], object] | None = None,
    ) -> None:
        self.seed = seed
        self.replay = f"python -m tests.sim --seed {seed} --trace"  # how a person sees this run again
        self.lines: list[str] = []
        self.checks: list[Check] = []
        self.change_checks: list[Callable[[Sequence[Change]], Iterable[str]]] = []  # asked about each change only
        self.afflictions: dict[str, Callable[[str, float], Callable[[], None]]] = {}  # by kind; the result ends it
        self._echo = echo
        self._links: dict[str, Link] = {}
        self._entropy = self.rng("entropy")  # one stream for all calls of `run`, or ids would repeat
        delays = self.rng("executor")
        loop = VirtualLoop(
            jitter=self.rng("jitter") if jitter else None,
            executor_delay_s=(lambda: delays.uniform(*executor_delay_s)) if executor_delay_s else None,
        )
        super().__init__(loop)
        self.loop.set_exception_handler(self._on_loop_error)
        self.backend = SimBackend(clock=self.loop.time, keep_revisions=keep_revisions)
        self.backend.on_change = self._on_change

    def rng(self, purpose: str) -> Random:
        """A stream of randomness of its own, so that more draws for one purpose do not change another's."""
        return Random(f"{self.seed}/{purpose}")

    # The network and the store

    def link(self, node: str) -> Link:
        """The connection of `node`."""
        if node not in self._links:
            self._links[node] = Link(self.loop, self.rng(f"link {node}"))
        return self._links[node]

    def store(self, node: str, *, timeout_s: float = 5.0) -> FaultyStore:
        """A store client of `node`; make one per incarnation."""
        return FaultyStore(
            MemoryStore(self.backend),
            self.link(node),
            self.loop,
            timeout_s=timeout_s,
            leaderless=lambda: self.backend.frozen,
            commit_s=lambda: self.backend.commit_s,
        )

    async def call(self, caller: str, server: str, request: Boot, *, timeout_s: float = 5.0) -> Any:
        """Run `request` as `server`, over the links of both ends; raises ConnectionError when it gets lost."""

        async def second_leg() -> object:
            target = self.loop.incarnation(server)
            if target is None:
                raise ConnectionError(f"{server} was never started")
            return await self.link(server).call(target, request, timeout_s=timeout_s, inbound=True)

        return await self.link(caller).call(self.loop.world, second_leg, timeout_s=timeout_s)

    def store_outage(self, on: bool, *, cut_off: bool = False, down: bool = False) -> None:
        """No leader: the store refuses or hangs and no lease ends; when it is over, all leases start afresh.

        With `cut_off` the leader is only out of reach, and when that is over, leases end when they would have; with
        `down` one member's process is not there.
        """
        if on != self.backend.frozen:
            how = " (it is cut off)" if cut_off else " (one member is down)" if down else ""
            self.trace(f"the store has no leader{how}" if on else "the store has a leader")
            freeze = partial(self.backend.freeze, cut_off=cut_off, down=down)
            self.loop.call_in(self.loop.world, freeze if on else self.backend.thaw)

    def store_leader_changes(self, share: float) -> Callable[[], None]:
        """Another member leads: every lease starts afresh. A share of the clients stays with the deposed one a while.

        Nothing that those ask gets an answer (the real client would not believe one), until the result is called.
        """
        self.trace("the store has another leader")
        self.loop.call_in(self.loop.world, self.backend.renew_all)
        rng = self.rng(f"deposed {self.loop.time()}")
        left = [link for _, link in sorted(self._links.items()) if rng.random() < share]
        deposed = Impairment(cut_out=True, cut_in=True, deposed=True)
        for link in left:
            link.impair(deposed)

        def mend() -> None:
            for link in left:
                link.mend(deposed)

        return mend

    def compact(self) -> None:
        """Forget all history up to now: who is behind must list anew."""
        if self.backend.revision > 1:
            with suppress(Compacted):
                self.backend.compact(self.backend.revision)

    def crash_at_commit(self, node: str, applied: bool, *, after: bool) -> bool:
        """Crash the node at this very commit, `after` it was `applied` or before that; whether it did."""
        if after != applied:
            return False
        self.link(node).at_commit = lambda _: False
        self.crash(node)
        return True

    def crashed_at_commit(self, node: str) -> None:
        """No more of that; the node runs again."""
        self.link(node).at_commit = lambda _: False
        self.start(node)

    def run(self, until: float) -> None:
        """Run to virtual time `until`. Raises SeedFailedError, with the seed and the end of the trace."""
        handler = _TraceHandler(self)
        loggers = [logging.getLogger(name) for name in LOGGERS]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        try:
            with sealed(self.loop, self._entropy):
                self.loop.run_to(until)
        except Exception as exc:
            raise SeedFailedError(self.report(exc)) from exc
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)

    # Observation

    def trace(self, line: str, *, node: str | None = None) -> None:
        """Add a line to the trace. It must be the same in every run: no addresses, no real times."""
        if not self.loop.is_closed():
            text = f"{self.loop.time():12.6f} {node or self.loop.current()}: {line}"
            self.lines.append(text)
            if self._echo:
                self._echo(text)

    def digest(self) -> str:
        """A hash of the trace so far."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def check(self) -> None:
        """Ask every check, now; a complaint ends the run. Called after each store change; call it on each VM event."""
        if self.loop.is_closed():
            return
        for check in self.checks:
            self._complain(check())

    def _complain(self, complaints: Iterable[str]) -> None:
        for complaint in complaints:
            self.trace(f"VIOLATION {complaint}")
            self.loop.fail(InvariantError(complaint))

    def vm_event(self, line: str) -> None:
        """A VM started, ran on, or ended: trace it and check."""
        self.trace(f"vm {line}")
        self.check()

    def report(self, exc: BaseException) -> str:
        """What a person needs to go on from a failure."""
        tail = "\n".join(self.lines[-_TAIL:])
        return (
            f"seed {self.seed} failed at {self.loop.time():.6f}: {type(exc).__name__}: {exc}\n"
            f"replay: {self.replay}\nlast {_TAIL} lines of the trace:\n{tail}"
        )

    def _on_change(self, changes: Iterable[Change]) -> None:
        items = list(changes)
        what = ", ".join(f"{'put' if change.kv else 'del'} {change.key}" for change in items)
        self.trace(f"store r{items[0].revision} {what}")
        for check in self.change_checks:
            self._complain(check(items))
        self.check()

    def _on_loop_error(self, _: object, context: dict[str, Any]) -> None:
        """An exception that nobody awaited, a pending task collected: bugs that production would only log."""
        error = context.get("exception")
        self.loop.fail(error if error is not None else RuntimeError(str(context.get("message"))))

    def close(self) -> None:
        """End the world."""
        self.loop.close()
        collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _TraceHandler(logging.Handler):
    """Puts log records into the trace: those of the simulation's own thread. What another test left behind in a thread
    of its own (a call to libvirt that ends late, a client) says something at a time that no seed sets.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._here = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler.emit."""
        if threading.get_ident() != self._here:
            return
        cause = f" [{type(record.exc_info[1]).__name__}: {record.exc_info[1]}]" if record.exc_info else ""
        self._world.trace(f"{record.levelname.lower()} {record.name}: {record.getMessage()}{cause}")
