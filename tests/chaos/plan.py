"""What goes wrong, and when: from the seed alone, so that a run can be repeated. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

ETCD, SCHEDULERS, HOSTS = ("e1", "e2", "e3"), ("s1", "s2"), ("h1", "h2", "h3")
NODES = (*ETCD, *SCHEDULERS, *HOSTS)


class Kind(StrEnum):
    """A fault. Each begins, lasts, and is undone."""

    CUT_OFF = "cut-off"  # the node from all others, both ways
    DEAF = "deaf"  # nothing that others send reaches it
    MUTE = "mute"  # nothing that it sends reaches others
    SPLIT = "split"  # it from some of the others, both ways
    PAUSE = "pause"  # SIGSTOP of its process
    KILL = "kill"  # SIGKILL of its process; it is started again
    GUARD = "kill-guard"  # SIGKILL of a host's guard
    POWER = "power-cut"  # a host with all that runs on it
    FULL = "disk-full"  # an etcd member's disk


_PLACES: dict[Kind, Sequence[str]] = {
    Kind.CUT_OFF: NODES,
    Kind.DEAF: NODES,
    Kind.MUTE: NODES,
    Kind.SPLIT: NODES,
    Kind.PAUSE: NODES,
    Kind.KILL: NODES,
    Kind.GUARD: HOSTS,
    Kind.POWER: HOSTS,
    Kind.FULL: ETCD,
}
_FOR_S: dict[Kind, tuple[float, float]] = {Kind.GUARD: (0.0, 0.0), Kind.POWER: (2.0, 12.0), Kind.FULL: (5.0, 15.0)}
_USUALLY_S = (1.0, 14.0)  # below and above the times after which leases end


@dataclass(frozen=True, slots=True)
class Fault:
    """`peers`: whom a SPLIT parts the node from."""

    at_s: float
    kind: Kind
    node: str
    for_s: float
    peers: tuple[str, ...] = ()

    def __str__(self) -> str:
        peers = f" from {', '.join(self.peers)}" if self.peers else ""
        return f"{self.at_s:7.1f} s  {self.kind} {self.node}{peers} for {self.for_s:.1f} s"

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Directions of the network that are cut: (sender, receiver)."""
        others = self.peers or [node for node in NODES if node != self.node]
        out = [(self.node, other) for other in others if self.kind in (Kind.CUT_OFF, Kind.MUTE, Kind.SPLIT)]
        into = [(other, self.node) for other in others if self.kind in (Kind.CUT_OFF, Kind.DEAF, Kind.SPLIT)]
        return out + into


def make_plan(seed: int, seconds: float, *, every_s: float = 7.0, at_once: int = 3) -> list[Fault]:
    """Faults in the order of their begin. No node has two at once: what a soft guard cannot do (a killed guard beside a
    frozen agent) is left out. The last fifth of the time brings no new ones.
    """
    rng = Random(seed)
    plan: list[Fault] = []
    now = rng.uniform(0, every_s)
    while now < seconds * 0.8:
        busy = [fault.node for fault in plan if fault.at_s + fault.for_s + 1 > now]
        if len(busy) < at_once:
            plan.extend(_fault(rng, now, busy))
        now += rng.expovariate(1 / every_s)
    return plan


def _fault(rng: Random, now: float, busy: Sequence[str]) -> Iterator[Fault]:
    kind = rng.choice(list(Kind))
    node = rng.choice(_PLACES[kind])
    for_s = rng.uniform(*_FOR_S.get(kind, _USUALLY_S))
    others = [other for other in NODES if other != node]
    peers = tuple(sorted(rng.sample(others, rng.randint(1, 4)))) if kind is Kind.SPLIT else ()
    if node not in busy:
        yield Fault(round(now, 1), kind, node, round(for_s, 1), peers)
