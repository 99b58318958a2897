"""`gpupool simulate whatif`: a saved cluster lives on twice, as it is and changed, and what differs is told.

Both lives begin at the moment of the dump and are played by the real core in virtual time, until nothing more happens
or the time that is looked ahead is over. A VM runs on for as long as its job declares, or for ever. It must never touch
a real cluster, and it foretells nothing that is not in the dump: no new job comes, nothing fails but what is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpupool.dumpfile import Dump
from gpupool.errors import InvalidSpec

from ..core.explain import Explanation, explain
from ..core.failover.plan import POWER_OFF_S
from ..core.fitting.own import case
from ..core.queueing.queue import Lane
from ..core.queueing.wait import wait
from ..core.reservation.reserve import Reserve
from ..core.state.cluster import Cluster, Dirty
from ..core.state.events import PowerFenced
from ..core.state.facts import UnitState
from ..core.state.jobs import Job, Request
from ..core.state.policy import Device, Policy
from ..core.state.tables import AllocationState, HostState, JobState, Transition
from ..load import UnreadableDecisionError, load
from ..policy_file import PolicyFileError, read_policy
from . import changes as changing
from .changes import Changes
from .vms import Agents, Pace, Progress
from .world import World

SIZES = (1, 2, 4, 8)
DIGITS = 3


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one job, as of the end. Times are seconds after the dump; None: it never came to that."""

    state: JobState
    host: str
    started_s: float | None  # of the first start after the dump
    lost: tuple[str, ...]  # hosts that it lost its VM with
    stopped_for: tuple[str, ...]  # jobs
    why: str  # it waits


@dataclass(slots=True)
class Life:
    """One life of the cluster. `path` names the dump in errors."""

    dump: Dump
    path: Path
    policy: Policy | None
    pace: Pace
    cluster: Cluster = field(init=False)
    aside: dict[str, str] = field(init=False)  # jobs that are left alone, and why
    world: World = field(init=False)
    agents: Agents = field(init=False)
    brakes: list[str] = field(default_factory=list)  # why the brake went on
    starts: dict[str, float] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)  # hosts, by job
    stopped: dict[str, list[str]] = field(default_factory=dict)  # jobs that it stopped for, by job
    _told: set[str] = field(default_factory=set)  # allocations whose stop is noted
    _off: set[tuple[str, int]] = field(default_factory=set)
    _reserve: Reserve | None = None
    _explained: dict[tuple[Request, Lane], Explanation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cluster, self.aside = _loaded(self.dump, self.path, self.policy)
        self.world = World(self.cluster, self.dump.at_s)
        self.agents = Agents(self.world, self.pace)
        self.agents.session = max((item.create_revision for item in self.dump.items), default=0)
        for job in self.cluster.jobs.values():
            if job.terms.time_limit_s:
                self.agents.progress[job.id] = Progress(float(job.terms.time_limit_s))
        self._told = {a.id for a in self.cluster.allocations.values() if a.preempted_for}
        self.agents.adopt(self.cluster)
        self.world.lookers.append(self._look)
        if self.cluster.policy.powered:
            self.world.lookers.append(self._switch_off)

    def play(self, ahead_s: float) -> None:
        """Let time pass."""
        self.world.run(self.dump.at_s + ahead_s)

    def _look(self, dirty: Dirty, log: list[Transition]) -> None:
        for change in log:
            if change.kind == "cluster" and change.after == "on":
                self.brakes.append(change.reason)
            elif change.kind == "job" and change.after == JobState.STARTING.value:
                self.starts.setdefault(change.subject, self.world.now - self.dump.at_s)
            elif change.kind == "allocation" and change.after == AllocationState.LOST.value:
                job = self.cluster.jobs.get(change.subject.rpartition(".")[0])
                if job is not None:
                    number = int(change.subject.rpartition(".")[2])
                    hosts = [attempt.host for attempt in job.attempts if attempt.number == number]
                    self.lost.setdefault(job.id, []).extend(hosts)
        for allocation_id in sorted(dirty.allocations - self._told):
            allocation = self.cluster.allocations.get(allocation_id)
            if allocation is not None and allocation.preempted_for:
                self._told.add(allocation_id)
                self.stopped.setdefault(allocation.job, []).append(allocation.preempted_for)

    def _switch_off(self, _: Dirty, __: list[Transition]) -> None:
        """Fence devices work, and take as long as failover plans take them to."""
        for effect in self.world.power_owed():
            key = (effect.host, effect.session)
            if key not in self._off:
                self._off.add(key)
                self.world.after(POWER_OFF_S, lambda key=key: self._seen_off(*key))  # type: ignore[misc]

    def _seen_off(self, host: str, session: int) -> None:
        self.world.tell(PowerFenced(host, session, "its fence device", self.world.now, off=True))

    # What came of it

    def fate(self, job: Job) -> Fate:
        """Of one job."""
        host = job.attempts[-1].host if job.attempts and job.state is not JobState.PENDING else ""
        return Fate(
            job.state, host, self.starts.get(job.id), tuple(self.lost.get(job.id, ())),
            tuple(self.stopped.get(job.id, ())), self._why(job),
        )  # fmt: skip

    def _why(self, job: Job) -> str:
        """Why it waits; jobs of one shape and lane wait for the same unless something of their own keeps them."""
        if job.state is not JobState.PENDING:
            return job.message if job.final else ""
        if (own := wait(self.cluster, job, self.world.now)) is not None:
            return f"{own[0].name}: {own[1]}"
        key = (job.request, job.lane)
        found = self._explained.get(key) if case(self.cluster, job) is None else None
        if found is None:
            found = explain(self.cluster, job, self.world.now, self._room, ahead=False)
            if case(self.cluster, job) is None:
                self._explained[key] = found
        counted = ", ".join(f"{count} {reason.name}" for reason, count in found.counts)
        near = f"; nearest: {found.nearest}" if found.nearest is not None else ""
        return f"{counted or 'it would fit, and waits for its turn'}{near}"

    def _room(self) -> Reserve:
        if self._reserve is None:
            self._reserve = Reserve(self.cluster, once=True)
        return self._reserve

    def unproven(self) -> list[str]:
        """Lost hosts of which nothing proves that their VMs are dead."""
        waiting = (HostState.SUSPECT, HostState.FENCING)
        return sorted(name for name, host in self.cluster.hosts.items() if host.state in waiting)

    def totals(self) -> dict[str, Any]:
        """How it stands at the end."""
        ready = [host for host in self.cluster.hosts.values() if host.state is HostState.READY]
        gpus = sum(len(host.units) for host in ready)
        used = sum(len(host.held) for host in ready)
        states = Counter(job.state for job in self.cluster.jobs.values())
        waiting = [job for job in self.cluster.jobs.values() if job.state is JobState.PENDING]
        return {
            "hosts_ready": len(ready),
            "gpus": gpus,
            "gpus_used": used,
            "utilisation_pct": round(100 * used / gpus, DIGITS) if gpus else 0.0,
            "jobs_running": states[JobState.RUNNING] + states[JobState.STARTING],
            "jobs_waiting": len(waiting),
            "gpus_waited_for": sum(job.request.gpus for job in waiting),
            "free_by_model_and_size": self._free(),
        }

    def _free(self) -> dict[str, dict[str, int]]:
        """How many VMs of so many GPUs the free ones of each model could take, by GPUs alone."""
        found: dict[str, Counter[int]] = {}
        for name in sorted(self.cluster.hosts):
            host = self.cluster.hosts[name]
            if host.state is not HostState.READY:
                continue
            for model in sorted({unit.model for unit in host.units.values()}):
                free = sum(
                    unit.model == model and not host.unfit(unit) and host.unit_state(unit.id) is UnitState.FREE
                    for unit in host.units.values()
                )
                found.setdefault(model, Counter()).update({size: free // size for size in SIZES})
        return {model: {str(size): counts[size] for size in SIZES} for model, counts in sorted(found.items())}

    def queues(self) -> dict[str, dict[str, Any]]:
        """What each queue uses, and how many of its jobs wait."""
        queues = self.cluster.books.queues
        names = {*queues.known, *(job.terms.queue for job in self.cluster.jobs.values())}
        waiting = Counter(j.terms.queue for j in self.cluster.jobs.values() if j.state is JobState.PENDING)
        return {
            name: {
                "gpus_used": int(queues.used[name].gpus) if name in queues.used else 0,
                "jobs_waiting": waiting[name],
            }
            for name in sorted(names)
        }


def _loaded(dump: Dump, path: Path, policy: Policy | None) -> tuple[Cluster, dict[str, str]]:
    if policy is None:
        try:
            policy = read_policy(dump.policy, path, whole=True)[0]
        except PolicyFileError as error:
            raise InvalidSpec([f"{path}: policy: {fault.partition(': ')[2]}" for fault in error.violations]) from None
    powered = {name: Device(machine=dump.machines.get(name, "")) for name in sorted(dump.powered)}
    cluster = Cluster(policy=replace(policy, powered=powered, keep_finished_s=0.0))
    try:
        aside = load(cluster, dump.items, dump.at_s)
    except UnreadableDecisionError as error:
        raise InvalidSpec([f"{path}: {error}"]) from None
    cluster.take_dirty()
    cluster.take_log()
    return cluster, aside


@dataclass(frozen=True, slots=True)
class Question:
    """A dump, the changes, and how far to look ahead."""

    dump: Dump
    path: Path
    changes: Changes
    ahead_s: float
    pace: Pace


def answer(question: Question, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """What would change. `told` hears what is being done. Raises InvalidSpec."""
    told("the cluster as it is")
    before = Life(question.dump, question.path, None, question.pace)
    before.play(question.ahead_s)
    told("the cluster with the changes")
    after = Life(question.dump, question.path, question.changes.policy, question.pace)
    done = changing.make(question.changes, after.agents)
    after.play(question.ahead_s)
    told("what differs")
    queues = before.queues(), after.queues()
    names = sorted(queues[0].keys() | queues[1].keys())
    return {
        "dump": {"at_s": question.dump.at_s, "revision": question.dump.revision},
        "ahead_s": question.ahead_s,
        "changes": done,
        "notes": _notes(after),
        "before": before.totals(),
        "after": after.totals(),
        "queues": {name: {"before": queues[0].get(name), "after": queues[1].get(name)} for name in names},
        "jobs": _jobs(before, after),
    }


def _notes(after: Life) -> list[str]:
    notes = [f"the mass failure brake goes on: {why}" for why in after.brakes]
    if after.cluster.brake is not None:
        notes.append("the brake is still on at the end: what was lost is not restarted; look further ahead")
    unproven = [name for name in after.unproven() if after.cluster.hosts[name].allocations]
    must = "an operator must confirm it (--confirm-dead)"
    notes += [f"job {job} has no part in this: {why}" for job, why in sorted(after.aside.items())]
    return notes + [f"nothing proves that the VMs of {name} are dead: {must}" for name in unproven]


def _jobs(before: Life, after: Life) -> list[dict[str, Any]]:
    """Jobs whose fate differs, by the kind of change, then as they stand in the queue."""
    found = []
    for job_id in sorted(before.cluster.jobs.keys() & after.cluster.jobs.keys()):
        job, changed = before.cluster.jobs[job_id], after.cluster.jobs[job_id]
        was, is_ = before.fate(job), after.fate(changed)
        kind = _kind(was, is_)
        if kind:
            found.append((KINDS.index(kind), -job.priority, job.arrival, job_id, job, kind, was, is_))
    return [_shown(job, kind, was, is_) for *_, job, kind, was, is_ in sorted(found, key=lambda each: each[:4])]


KINDS = ("lost", "restarts", "preempted", "waits", "starts", "ends", "later", "earlier", "moves")


def _kind(was: Fate, is_: Fate) -> str:
    """What is most to be said of the difference; "": nothing."""
    waits = is_.state is JobState.PENDING
    if len(is_.lost) > len(was.lost):
        return "restarts" if is_.started_s is not None and not waits else "lost"
    if len(is_.stopped_for) > len(was.stopped_for):
        return "preempted"
    if waits != (was.state is JobState.PENDING):
        return "waits" if waits else "starts"
    if is_.state is not was.state and JobState.STARTING not in (is_.state, was.state):
        return "ends"
    if is_.started_s is not None and was.started_s is not None and abs(is_.started_s - was.started_s) >= 1.0:
        return "later" if is_.started_s > was.started_s else "earlier"
    return "moves" if is_.host != was.host else ""


def _shown(job: Job, kind: str, was: Fate, is_: Fate) -> dict[str, Any]:
    return {
        "id": job.id, "name": job.name, "queue": job.terms.queue, "priority": job.priority, "gpus": job.request.gpus,
        "change": kind, "before": _fate(was), "after": _fate(is_),
    }  # fmt: skip


def _fate(fate: Fate) -> dict[str, Any]:
    return {
        "state": fate.state.value,
        "host": fate.host,
        "placed_after_s": None if fate.started_s is None else round(fate.started_s, DIGITS),
        "lost_with": list(fate.lost),
        "stopped_for": list(fate.stopped_for),
        "why": fate.why,
    }
