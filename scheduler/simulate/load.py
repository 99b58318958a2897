"""`gpupool simulate load`: jobs arrive, wait, run and end through the real queue, policies and restarts.

The loop is `world.py`'s, the agents are `vms.py`'s; here they are given a load, and what became of it is counted. It
must never use a clock or randomness that is not of the load's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any

from ..core.fitting.known import Known
from ..core.queueing.queues import asked_for
from ..core.state.cluster import Cluster
from ..core.state.events import JobSubmitted, QueueChanged
from ..core.state.facts import QueueIntent
from ..core.state.policy import Policy
from ..core.state.tables import JobState
from . import metrics
from .failures import Failing, Failures
from .fragments import Fragments
from .metrics import DIGITS, Record
from .recorder import Point, Recorder
from .vms import Agents, Pace, Progress
from .work import Load, Task
from .world import World

BEGIN_S = 1_000_000.0  # of the world's clock: 0 means "never" in records
SERIES = 200  # parts of the arrivals' time
SAMPLES = 100  # of fragmentation, evenly over the same


@dataclass(frozen=True, slots=True)
class Settings:
    """What a load is replayed under. `queues` go before those of the load."""

    policy: Policy = field(default_factory=Policy)
    queues: Mapping[str, QueueIntent] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    failing: Failing = field(default_factory=Failing)
    seed: int = 42  # of failures
    until_s: float = inf  # after the first arrival
    check: bool = False  # look at every invariant at each turn


@dataclass(slots=True)
class Replay:
    """One run. `told` is called now and then with the virtual seconds that have passed, and the jobs that are over."""

    load: Load
    settings: Settings
    told: Callable[[float, int], None] = lambda _seconds, _over: None
    world: World = field(init=False)
    agents: Agents = field(init=False)
    recorder: Recorder = field(init=False)
    failures: Failures = field(init=False)
    refused: list[str] = field(default_factory=list)
    _arrived: int = 0

    def __post_init__(self) -> None:
        policy = replace(self.settings.policy, keep_finished_s=0.0)  # finished jobs are counted at the end
        self.world = World(Cluster(policy=policy), BEGIN_S, self.settings.check, pulse=self._pulse)
        self.agents = Agents(self.world, self.settings.pace)
        tasks = self.load.tasks
        mix = Fragments.of_tasks(task.request for task in tasks)
        self.recorder = Recorder(self.agents, {task.id: task for task in tasks}, mix)
        hosts = {host.name: host for host in self.load.hosts}
        self.failures = Failures(self.agents, hosts, self.settings.failing, self.settings.seed)

    def run(self) -> dict[str, Any]:
        """Play it, and return the figures."""
        for name, queue in sorted({**self.load.queues, **self.settings.queues}.items()):
            self.world.tell(QueueChanged(name, queue))
        known = Known()
        for host in self.load.hosts:
            self.agents.join(host)
            known.update(host.name, host.inventory(0))
        tasks = [task for task in self.load.tasks if self._accepted(known, task)]
        for number, task in enumerate(tasks):
            self.world.at(BEGIN_S + task.at_s, lambda number=number, task=task: self._arrive(number, task))  # type: ignore[misc]
        last_s = tasks[-1].at_s if tasks else 0.0
        self.failures.plan(BEGIN_S, BEGIN_S + last_s)
        for number in range(1, SAMPLES + 1):
            self.world.at(BEGIN_S + number * last_s / SAMPLES, self.recorder.sample, background=True)
        self.world.run(
            BEGIN_S + self.settings.until_s, lambda: self._arrived == len(tasks) == len(self.recorder.ends)
        )  # fmt: skip
        return self._figures(tasks)

    def _accepted(self, known: Known, task: Task) -> bool:
        """As at submission: what no host could ever take, or its queue never lets start, is refused."""
        queue = self.world.cluster.books.queues.known.get(task.queue)
        asked = asked_for(task.job(0, 0.0))
        over = queue is None or asked.beyond(queue.limit) or asked.beyond(queue.user_limit) or not queue.user_jobs
        if over or known.impossible(task.request) is not None:
            self.refused.append(task.id)
            return False
        return True

    def _arrive(self, number: int, task: Task) -> None:
        self._arrived += 1
        self.agents.progress[task.id] = Progress(task.run_s)
        self.recorder.submitted(task)
        self.world.tell(JobSubmitted(task.job(number + 1, self.world.now)))

    def _pulse(self) -> None:
        self.told(self.world.now - BEGIN_S, len(self.recorder.ends))

    # Figures

    def _figures(self, tasks: list[Task]) -> dict[str, Any]:
        end_s = self.world.now - BEGIN_S
        records = [self._record(task) for task in tasks if task.at_s <= end_s]
        window_s = min(max((record.task.at_s for record in records), default=0.0) or end_s, end_s)
        points = [point._replace(at_s=point.at_s - BEGIN_S) for point in self.recorder.points]
        return {
            "load": self._said(records, end_s, window_s),
            "jobs": self._counts(records),
            "waiting_s": metrics.spread(record.wait_s for record in records),
            "bounded_slowdown": metrics.spread(record.slowdown for record in records),
            "utilisation": self._utilisation(points, window_s),
            "fragmentation": self._fragmentation(),
            "preemptions": len(self.recorder.preempted),
            "host_failures": self.failures.happened,
            "restarts_after_host_loss": self.recorder.lost.total(),
            "gpu_hours": self._work(records),
            "fairness": self._fairness(records, points, window_s),
            "by_queue": metrics.by(records, lambda record: record.task.queue),
            "by_priority": metrics.by(records, lambda record: record.task.priority),
            "by_gpus": metrics.by(records, lambda record: record.task.request.gpus),
            "series": self._series(points, window_s),
        }

    def _record(self, task: Task) -> Record:
        started_s = self.recorder.starts.get(task.id)
        ended_s, state = self.recorder.ends.get(task.id, (None, self.world.cluster.jobs[task.id].state))
        tenant = self.world.cluster.books.queues.tenant(task.queue)
        return Record(
            task, tenant, None if started_s is None else started_s - BEGIN_S,
            None if ended_s is None else ended_s - BEGIN_S, state,
        )  # fmt: skip

    def _said(self, records: list[Record], end_s: float, window_s: float) -> dict[str, Any]:
        asked = sum(record.task.request.gpus * record.task.run_s for record in records)
        offered = asked / (self.load.gpus * window_s) if window_s else 0.0
        return {
            **self.load.said, "hosts": len(self.load.hosts), "gpus": self.load.gpus,
            "window_s": round(window_s, DIGITS), "end_s": round(end_s, DIGITS),
            "offered_load": round(offered, DIGITS), "pace": asdict(self.settings.pace),
            "mtbf_h": self.settings.failing.mtbf_h, "planned_failures": self.settings.failing.count,
            "failure_seed": self.settings.seed,
        }  # fmt: skip

    def _counts(self, records: list[Record]) -> dict[str, int]:
        states = [record.state for record in records]
        return {
            "submitted": len(records) + len(self.refused),
            "refused": len(self.refused),
            "succeeded": states.count(JobState.SUCCEEDED),
            "failed": states.count(JobState.FAILED),
            "unfinished": sum(record.ended_s is None for record in records),
            "held": sum(bool(self.world.cluster.jobs[record.task.id].hold) for record in records),
            "never_started": sum(record.started_s is None for record in records),
        }

    def _utilisation(self, points: list[Point], window_s: float) -> dict[str, float]:
        gpus = self.load.gpus

        def part(value: Callable[[Point], float]) -> float:
            return round(100 * metrics.mean_over(points, value, 0.0, window_s) / gpus, DIGITS)

        return {
            "running_pct": part(lambda point: point.running),
            "allocated_pct": part(lambda point: point.allocated),
            "in_service_pct": part(lambda point: point.ready),
            "waiting_jobs": round(metrics.mean_over(points, lambda p: p.waiting_jobs, 0.0, window_s), DIGITS),
            "waiting_gpus": round(metrics.mean_over(points, lambda p: p.waiting_gpus, 0.0, window_s), DIGITS),
        }

    def _fragmentation(self) -> dict[str, Any]:
        samples = self.recorder.samples
        parts = [100 * part for _, part, _ in samples]
        free = [float(free) for _, _, free in samples]
        return {"fragmented_pct_of_free": metrics.spread(parts), "free_gpus": metrics.spread(free)}

    def _work(self, records: list[Record]) -> dict[str, float]:
        done = lost = 0.0
        for record in records:
            did_s, lost_s = self.agents.work([record.task.id])
            done, lost = done + did_s * record.task.request.gpus, lost + lost_s * record.task.request.gpus
        return {"done": round(done / 3600, DIGITS), "done_in_vain": round(lost / 3600, DIGITS)}

    def _fairness(self, records: list[Record], points: list[Point], window_s: float) -> dict[str, Any]:
        tenants = sorted({record.tenant for record in records})
        slow = {
            name: metrics.spread(r.slowdown for r in records if r.tenant == name)["mean"] for name in tenants
        }  # fmt: skip
        queues = self.world.cluster.books.queues
        tenant_of = {name: queues.tenant(name) for name in queues.known}
        had = metrics.service(records, points, tenant_of, 0.0, window_s)
        return {
            "jain_slowdown": metrics.jain([value for value in slow.values() if value is not None]),
            "jain_service": metrics.jain(list(had.values())),
            "tenants": {
                name: {"mean_bounded_slowdown": slow[name], "service": round(had.get(name, 0.0), DIGITS)}
                for name in tenants
            },
        }

    def _series(self, points: list[Point], window_s: float) -> dict[str, list[float]]:
        def of(value: Callable[[Point], float], factor: float = 1.0) -> list[float]:
            return [round(factor * mean, 3) for mean in metrics.buckets(points, value, 0.0, window_s, SERIES)]

        pct = 100 / self.load.gpus if self.load.gpus else 0.0
        return {
            "at_s": [round((n + 0.5) * window_s / SERIES, 3) for n in range(SERIES)],
            "running_pct": of(lambda point: point.running, pct),
            "allocated_pct": of(lambda point: point.allocated, pct),
            "waiting_jobs": of(lambda point: point.waiting_jobs),
            "waiting_gpus": of(lambda point: point.waiting_gpus),
            "fragmentation_at_s": [round(at_s - BEGIN_S, 3) for at_s, _, _ in self.recorder.samples],
            "fragmented_pct_of_free": [round(100 * part, 3) for _, part, _ in self.recorder.samples],
        }
