"""What is simulated: hosts as an agent would describe them, and jobs with the time that each runs.

Only data. Where it comes from is the business of `replay.py` (a trace) and `synthetic.py` (a generator).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..core.state.facts import InventoryFact, QueueIntent, UnitFact
from ..core.state.jobs import Job, Request
from ..core.state.terms import DEFAULT_QUEUE, Terms

IMAGE = "any"  # all jobs have it, and so have all hosts
Nodes = tuple[tuple[int, tuple[tuple[int, ...], ...], int], ...]


class Machine(Protocol):
    """What an agent tells of a host when a session begins."""

    @property
    def name(self) -> str:
        """The host's."""
        ...

    @property
    def units(self) -> tuple[UnitFact, ...]:
        """All of them."""
        ...

    def inventory(self, session: int) -> InventoryFact:
        """As of a session."""
        ...


@dataclass(frozen=True, slots=True)
class SimHost:
    """A host: its units, and its NUMA nodes with cores and memory."""

    name: str
    units: tuple[UnitFact, ...]
    nodes: Nodes
    labels: tuple[tuple[str, str], ...] = ()

    def inventory(self, session: int) -> InventoryFact:
        """What its agent tells in a session."""
        return InventoryFact(session, self.units, self.nodes, frozenset({IMAGE}), labels=self.labels)


@dataclass(frozen=True, slots=True)
class Task:
    """A job that arrives at `at_s` and needs to run for `run_s`, both in seconds."""

    id: str
    at_s: float
    run_s: float
    request: Request
    queue: str = DEFAULT_QUEUE
    user: str = ""
    priority: int = 0
    preemptible: bool = False
    time_limit_s: int = 0

    def job(self, arrival: int, now: float) -> Job:
        """As it is when it is submitted."""
        terms = Terms(
            time_limit_s=self.time_limit_s, queue=self.queue, user=self.user, preemptible=self.preemptible
        )  # fmt: skip
        return Job(self.id, self.request, arrival, now, self.priority, max_restarts=1_000_000, terms=terms)


@dataclass(frozen=True, slots=True)
class Load:
    """All that is replayed. `said`: what a reader of the result must know of where it comes from, by name."""

    hosts: Sequence[SimHost]
    tasks: Sequence[Task]  # by arrival
    queues: Mapping[str, QueueIntent] = field(default_factory=dict)
    said: Mapping[str, object] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """Of all hosts."""
        return sum(len(host.units) for host in self.hosts)


def host_of(
    name: str, gpus: int, model: str, *, cpus: int, memory_mib: int, nodes: int = 1, threads: int = 1,
    labels: tuple[tuple[str, str], ...] = (),
) -> SimHost:  # fmt: skip
    """A host whose parts are spread evenly over its NUMA nodes, the first ones having what is left over."""
    units = tuple(
        UnitFact(address, model, 0, n * nodes // max(gpus, 1), (address,), root=f"pci{n * nodes // max(gpus, 1)}")
        for n in range(gpus)
        for address in (f"0000:{n:02x}:00.0",)
    )
    cores = [tuple(range(first, min(first + threads, cpus))) for first in range(0, cpus, threads)]
    parts = []
    for node in range(nodes):
        mine = tuple(cores[node * len(cores) // nodes : (node + 1) * len(cores) // nodes])
        parts.append((node, mine, memory_mib // nodes + (node < memory_mib % nodes)))
    return SimHost(name, units, tuple(parts), labels)
