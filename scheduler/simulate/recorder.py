"""What happened in a simulated load, noted as it happens: starts and ends, how much was in use, who stopped for whom.

It only looks. Times are in seconds of the world's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core.state.cluster import Cluster, Dirty
from ..core.state.tables import AllocationState, HostState, JobState, Transition
from .fragments import Fragments
from .vms import Agents
from .work import Task


class Point(NamedTuple):
    """How it stood from `at_s` to the next point. GPUs are counted, and jobs that wait."""

    at_s: float
    running: int
    allocated: int
    ready: int
    waiting_jobs: int
    waiting_gpus: int
    by_queue: tuple[tuple[str, int], ...]  # allocated GPUs


@dataclass(slots=True)
class Recorder:
    """See the module docstring."""

    agents: Agents
    tasks: Mapping[str, Task]
    fragments: Fragments
    points: list[Point] = field(default_factory=list)
    samples: list[tuple[float, float, int]] = field(default_factory=list)  # when, part of free GPUs, free GPUs
    starts: dict[str, float] = field(default_factory=dict)  # of each job's first command
    ends: dict[str, tuple[float, JobState]] = field(default_factory=dict)
    preempted: set[str] = field(default_factory=set)  # allocations
    lost: Counter[str] = field(default_factory=Counter)  # attempts that were lost with a host, by job
    _waiting: Counter[str] = field(default_factory=Counter)
    _ready: int = 0

    def __post_init__(self) -> None:
        self.agents.world.lookers.append(self.look)

    def submitted(self, task: Task) -> None:
        """A job begins to wait."""
        self._wait(task.id, 1)

    def look(self, dirty: Dirty, log: list[Transition]) -> None:
        """What a turn has changed."""
        cluster, now = self.agents.world.cluster, self.agents.world.now
        for change in log:
            self._changed(cluster, change, now)
        for allocation_id in dirty.allocations:
            allocation = cluster.allocations.get(allocation_id)
            if allocation is not None and allocation.preempted_for:
                self.preempted.add(allocation_id)
        self._note(cluster, now)

    def sample(self) -> None:
        """Look at the fragmentation."""
        world = self.agents.world
        self.samples.append((world.now, *self.fragments.of(world.cluster)))

    def _changed(self, cluster: Cluster, change: Transition, now: float) -> None:
        pending = JobState.PENDING.value
        if change.kind == "host":
            ready = (len(host.units) for host in cluster.hosts.values() if host.state is HostState.READY)
            self._ready = sum(ready)
        elif change.kind == "allocation" and change.after == AllocationState.LOST.value:
            self.lost[change.subject.rpartition(".")[0]] += 1
        elif change.kind == "job":
            self._wait(change.subject, (change.after == pending) - (change.before == pending))
            if change.after == JobState.RUNNING.value:
                self.starts.setdefault(change.subject, now)
            elif cluster.jobs[change.subject].final:
                self.ends[change.subject] = now, cluster.jobs[change.subject].state

    def _wait(self, job: str, more: int) -> None:
        self._waiting["jobs"] += more
        self._waiting["gpus"] += more * self.tasks[job].request.gpus

    def _note(self, cluster: Cluster, now: float) -> None:
        used = cluster.books.queues.used
        by_queue = tuple((queue, int(used[queue].gpus)) for queue in sorted(used))
        point = Point(
            now, self.agents.running_gpus, sum(gpus for _, gpus in by_queue), self._ready,
            self._waiting["jobs"], self._waiting["gpus"], by_queue,
        )  # fmt: skip
        if self.points and self.points[-1].at_s == now:
            self.points[-1] = point
        elif not self.points or self.points[-1][1:] != point[1:]:
            self.points.append(point)
