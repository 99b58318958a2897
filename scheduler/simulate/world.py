"""The real core on virtual time: a clock that jumps to whatever happens next, and the leader's turn at each stop.

A turn is that of `scheduler/leader.py`: what happened is told to `step`, then place, drain, preempt, and what changed
counts as committed. It decides nothing itself. It must never look at a real clock, or at anything that the leader
would not know.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from ..core.failover.drain import drain
from ..core.failover.power import PowerOff, next_power_s
from ..core.gangs import together
from ..core.invariants import violations
from ..core.place import Placer
from ..core.queueing.preempt import Preempter
from ..core.state.cluster import Cluster, Dirty
from ..core.state.events import Event
from ..core.state.tables import Transition
from ..core.step import step
from ..core.todo import todo

IDLE_S = 5.0  # how often the leader looks when nothing happens
TURNS_MAX = 1000  # at one moment: more would be a core that never comes to rest

Looker = Callable[[Dirty, list[Transition]], None]


class NeverAtRestError(Exception):
    """The core went on deciding without any time passing, or broke an invariant: a bug of ours."""


@dataclass(order=True, slots=True)
class _Due:
    at_s: float
    number: int
    action: Callable[[], None] = field(compare=False)
    background: bool = field(compare=False)


@dataclass(slots=True)
class World:
    """See the module docstring. `lookers` are shown what each turn changed; `check`: look at every invariant."""

    cluster: Cluster
    now: float
    check: bool = False
    lookers: list[Looker] = field(default_factory=list)
    pulse: Callable[[], None] = lambda: None  # after each stop
    turns: int = 0
    _placer: Placer = field(default_factory=Placer)
    _preempter: Preempter = field(default_factory=Preempter)
    _dues: list[_Due] = field(default_factory=list)
    _count: int = 0
    _wanted: int = 0  # of the dues, those that are not background
    _claims_s: dict[str, float] = field(default_factory=dict)

    def at(self, at_s: float, action: Callable[[], None], *, background: bool = False) -> None:
        """Do this then. What is `background` alone does not keep the world going."""
        self._count += 1
        self._wanted += not background
        heapq.heappush(self._dues, _Due(max(at_s, self.now), self._count, action, background))

    def after(self, delay_s: float, action: Callable[[], None], *, background: bool = False) -> None:
        """Do this so much later."""
        self.at(self.now + delay_s, action, background=background)

    def tell(self, event: Event) -> None:
        """A fact has changed."""
        step(self.cluster, event, self.now)

    def run(self, until_s: float = inf, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until then, until all is done, or until nothing more would happen."""
        self._turn()
        while not done():
            at_s = self._next_s()
            if at_s == inf or at_s > until_s:
                break
            self.now = at_s
            while self._dues and self._dues[0].at_s <= at_s:
                due = heapq.heappop(self._dues)
                self._wanted -= not due.background
                due.action()
            self._turn()
            self.pulse()
        if until_s != inf:
            self.now = max(self.now, until_s)

    def power_owed(self) -> list[PowerOff]:
        """Hosts that the leader would have switched off now."""
        return [effect for effect in todo(self.cluster, self.now) if isinstance(effect, PowerOff)]

    def _turn(self) -> None:
        for _ in range(TURNS_MAX):
            self.turns += 1
            moved = self._placer.place(self.cluster, self.now)
            moved += drain(self.cluster, self._placer, self.now)
            moved += self._preempter.preempt(self.cluster, self.now)
            moved += together.look(self.cluster, self.now)
            if self.check and (broken := violations(self.cluster)):
                raise NeverAtRestError("; ".join(broken))
            log, dirty = self.cluster.take_log(), self.cluster.take_dirty()
            for look in self.lookers:
                look(dirty, log)
            if not (moved or dirty.hosts or dirty.cluster):  # what is not on record may not be placed on
                return
        raise NeverAtRestError(f"{TURNS_MAX} turns at {self.now:.3f} s, and the core still decides")

    def _next_s(self) -> float:
        """When something happens next; infinity: nothing but what is background."""
        core_s = self._core_s()
        if not self._wanted and core_s == inf:
            return inf
        return min(core_s, self._dues[0].at_s if self._dues else inf)

    def _core_s(self) -> float:
        """When the core wants to be asked again, as the leader finds it; a place that is kept is looked at in time."""
        cluster = self.cluster
        brake_s = cluster.brake.until_s if cluster.brake and cluster.brake.until_s else None
        claims = [claim.at_s + IDLE_S for claim in cluster.books.claims.values() if claim.at_s]
        dues = (
            cluster.pending.next_due_s(),
            cluster.books.timers.next_s(),
            self._preempter.due_s,
            self._placer.due_s,
            next_power_s(cluster, self.now),
            brake_s,
            *claims,
        )
        first = min((due for due in dues if due is not None), default=inf)
        return first if first > self.now else self.now + IDLE_S  # it had no time for all of it
