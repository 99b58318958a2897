"""What would happen if these hosts died now: evidence, brake, and where each lost job would start again.

It decides nothing and foresees nothing of its own: on a copy of the cluster it tells the real `step` and `place` that
the sessions end, lets time pass, and notes what they do. What an operator would have to do first is done on the copy
too, so that the places are known, and is said. It must never be given the leader's own cluster. At 10,000 hosts it
takes seconds, so it may be done with pauses (`core/work.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median

from ..explain import explaining
from ..gangs import together
from ..place import Placer
from ..state.cluster import Cluster
from ..state.events import (
    ClusterIntentChanged,
    HostIntentChanged,
    PowerFenced,
    SessionChanged,
    UnitReported,
    VmReported,
)
from ..state.facts import UnitReport, UnitState
from ..state.hosts import Allocation, Host
from ..state.jobs import Job, Outcome
from ..state.losses import Evidence
from ..state.tables import AllocationState, HostState, JobState
from ..step import step
from ..work import Work, done
from .devices import not_its_own
from .power import withheld

POWER_OFF_S = 5.0  # from the decision until a fence device has seen the power off: a guess, as devices differ
TURNS_MAX = 10_000
_LOOKED, _NOTED = 10, 100  # hosts that are looked at, VMs that are noted, in the time of a try
_STARTING = (AllocationState.BOUND, AllocationState.PREPARING)
_UNPROVEN = (HostState.SUSPECT, HostState.FENCING)


@dataclass(frozen=True, slots=True)
class Expected:
    """What would prove one host's VMs dead, seconds after its death; None: an operator would have to vouch for it."""

    host: str
    evidence: Evidence | None
    after_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class Restart:
    """What would become of one VM. `to` "": it would find no place. `after_s`: until its start; 0: nobody can say."""

    job: str
    name: str
    allocation: str
    host: str
    to: str
    units: tuple[str, ...]
    reason: str
    after_s: float
    restartable: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """`restarts`: in the order of placement, then what finds no place. `brake`: why it would go on, or ""."""

    hosts: tuple[str, ...]
    restarts: tuple[Restart, ...]
    evidence: tuple[Expected, ...]
    brake: str = ""


@dataclass(slots=True)
class _Play:
    """The copy, and the time there."""

    cluster: Cluster
    died_s: float
    now: float
    start_s: float  # how long starts took so far, as a rule
    placer: Placer = field(default_factory=Placer)
    placed: dict[str, tuple[Allocation, float]] = field(default_factory=dict)  # by job
    started: dict[str, float] = field(default_factory=dict)  # when each VM that is starting will run
    off: dict[str, float] = field(default_factory=dict)  # when each host that is being switched off will be off
    leaving: dict[str, float] = field(default_factory=dict)  # when each that was asked to make room will be gone
    held: str = ""  # what keeps everything waiting until an operator or time ends it
    unproven: list[str] = field(default_factory=list)  # hosts that an operator must vouch for

    def begin(self) -> Work[None]:
        """Look at all that is there: from then on, at what changes."""
        for number, _ in enumerate(self.placer.begin(self.cluster)):
            yield int(number % _LOOKED == 0)
        for number, allocation in enumerate(list(self.cluster.allocations.values())):
            self._note(allocation)
            yield int(number % _NOTED == 0)

    def settle(self, jobs: Sequence[str]) -> Work[None]:
        """Let time pass until each of these jobs has its place, or nothing more comes."""
        for _ in range(TURNS_MAX):
            yield from self.placer.placing(self.cluster, self.now)
            yield 1
            for allocation_id in sorted(self.cluster.take_dirty().allocations):  # as if it were committed
                if (changed := self.cluster.allocations.get(allocation_id)) is not None:
                    self._note(changed)
            self._note_placed()
            waits = any(self.cluster.jobs[j].state is JobState.PENDING for j in jobs)
            dues = (
                self.cluster.pending.next_due_s() or inf,
                *(time for times in (self.started, self.off, self.leaving) for time in times.values()),
            )
            if min(dues) == inf or not (waits or self.off):
                return
            self.now = max(self.now, min(dues))
            self._start()
            self._leave()
            self._switch_off()

    def switch_off(self, names: Sequence[str]) -> None:
        """Hosts that can be switched off, and must be, are from now on."""
        if not withheld(self.cluster):
            unproven = [
                n
                for n in names
                if self.cluster.hosts[n].state in _UNPROVEN
                and n in self.cluster.policy.powered
                and not not_its_own(self.cluster, self.cluster.hosts[n])
            ]
            self.off = dict.fromkeys(unproven, self.now + POWER_OFF_S)

    def _switch_off(self) -> None:
        for name in sorted(n for n, at in self.off.items() if at <= self.now):
            del self.off[name]
            session = self.cluster.hosts[name].session
            step(self.cluster, PowerFenced(name, session, "its fence device", self.now, off=True), self.now)

    def _note(self, one: Allocation) -> None:
        """It is to start, or to leave, some time."""
        leaves = one.preempted_for or one.stop_reason.startswith(together.AGAIN)
        if leaves and one.state is not AllocationState.ENDED and one.id not in self.leaving:
            grace_s = one.stop_grace_s or self.cluster.jobs[one.job].terms.stop_grace_s
            self.leaving[one.id] = self.now + grace_s
        if one.state in _STARTING and one.id not in self.started:
            self.started[one.id] = self.now + self.start_s

    def _note_placed(self) -> None:
        for change in self.cluster.take_log():  # in the order of placement
            job = self.cluster.jobs.get(change.subject) if change.kind == "job" else None
            found = self.cluster.allocations.get(job.allocation_id or "") if job is not None else None
            if found is not None and change.after == JobState.STARTING.value:
                self.placed.setdefault(found.job, (found, self.now))

    def _leave(self) -> None:
        """Those whose grace is over are gone, and their units are clean at once, which is a guess."""
        for allocation_id in sorted(a for a, at in self.leaving.items() if at <= self.now):
            del self.leaving[allocation_id]
            gone = self.cluster.allocations.get(allocation_id)
            if gone is None:
                continue
            ended = VmReported(gone.host, gone.id, gone.session, AllocationState.ENDED, Outcome.STOPPED)
            step(self.cluster, ended, self.now)
            for unit in gone.units:
                clean = UnitReport(UnitState.FREE, gone.session, gone.id)
                step(self.cluster, UnitReported(gone.host, unit, clean), self.now)

    def _start(self) -> None:
        for allocation_id in sorted(a for a, at in self.started.items() if at <= self.now):
            del self.started[allocation_id]
            found = self.cluster.allocations.get(allocation_id)
            if found is not None:
                runs = VmReported(found.host, found.id, found.session, AllocationState.RUNNING, started_s=self.now)
                step(self.cluster, runs, self.now)


def plan(cluster: Cluster, hosts: Sequence[str], now: float) -> Plan:
    """See the module docstring. Uses `cluster` up."""
    return done(planning(cluster, hosts, now))


def planning(cluster: Cluster, hosts: Sequence[str], now: float) -> Work[Plan]:
    """The same, with pauses."""
    names = sorted(set(hosts))
    lost = [(a, j, cluster.hosts[n]) for n in names for a, j in _running(cluster, cluster.hosts[n])]
    can_restart = {job.id: job.max_restarts > job.restarts and job.cancel_reason is None for _, job, _ in lost}
    play = _Play(cluster, now, now, (yield from _start_s(cluster)))
    cluster.take_dirty()
    cluster.log.clear()
    _die(play, names)
    brake = cluster.brake.reason if cluster.brake is not None else ""
    yield from play.begin()
    play.held = withheld(cluster)
    waiting = [job.id for _, job, _ in lost]
    play.switch_off(names)
    yield from play.settle(waiting if not play.held else ())
    expected = {name: found for name in names if (found := _proof(play, name)) is not None}
    if play.held:
        _let_go(play)
        play.switch_off(names)
    yield from play.settle(waiting)
    expected |= {name: _late_proof(play, name) for name in names if name not in expected}
    for name in play.unproven:
        _vouch(play, cluster.hosts[name])
    yield from play.settle(waiting)
    restarts = []
    for lost_with, job, _ in lost:
        restarts.append((yield from _restart(play, lost_with, job, restartable=can_restart[job.id])))
    turn = {job: n for n, job in enumerate(play.placed)}
    restarts.sort(key=lambda r: (not r.to, turn.get(r.job, 0), r.job))
    return Plan(tuple(names), tuple(restarts), tuple(expected[name] for name in names), brake)


def _running(cluster: Cluster, host: Host) -> list[tuple[Allocation, Job]]:
    mine = [cluster.allocations[a] for a in sorted(host.allocations)]
    return [
        (a, cluster.jobs[a.job]) for a in mine if a.job in cluster.jobs and cluster.jobs[a.job].allocation_id == a.id
    ]


def _start_s(cluster: Cluster) -> Work[float]:
    took: list[float] = []
    for number, job in enumerate(cluster.jobs.values()):
        took += [a.started_s - a.created_s for a in job.attempts if a.started_s > 0]
        yield int(number % _NOTED == 0)
    return max(0.0, median(took)) if took else 0.0


def _die(play: _Play, names: Sequence[str]) -> None:
    """Their leases run out, one after the other."""
    dying = [play.cluster.hosts[name] for name in names]
    for after_s, name in sorted((host.fact.ttl_s if host.fact is not None else 0, host.name) for host in dying):
        play.now = play.died_s + after_s
        step(play.cluster, SessionChanged(name, None), play.now)
        play.cluster.take_dirty()


def _proof(play: _Play, name: str) -> Expected | None:
    """What has proven its VMs dead by itself: the lease's end, or else its power seen off."""
    host = play.cluster.hosts[name]
    fence = host.last_fence
    if host.state in _UNPROVEN or fence is None:
        return None
    guess = f" (if switching it off takes {POWER_OFF_S:.0f} s)" if fence.evidence is Evidence.POWER_OFF else ""
    return Expected(name, fence.evidence, max(0.0, fence.fenced_s - play.died_s), fence.detail + guess)


def _late_proof(play: _Play, name: str) -> Expected:
    """What will do so once the brake or a disarmament is over; or nothing without a person."""
    found = _proof(play, name)
    if found is None:
        play.unproven.append(name)
        guard = {"NONE": "no guard", "SOFT": "a soft guard"}.get(play.cluster.hosts[name].guard.value, "a guard")
        why = not_its_own(play.cluster, play.cluster.hosts[name])
        useless = f"{why}; else" if why else "nothing that switches it off:"
        detail = f"{guard}, and {useless} an operator must confirm it"
        found = Expected(name, None, 0.0, detail)
    held = f"not while {play.held}; " if play.held else ""
    return replace(found, after_s=0.0, detail=held + found.detail)


def _let_go(play: _Play) -> None:
    """The brake and a disarmament end, on the copy, so that the places are known."""
    cluster = play.cluster
    if cluster.intent.disarmed:
        step(cluster, ClusterIntentChanged(replace(cluster.intent, disarmed=False)), play.now)
    if cluster.brake is not None:
        cluster.brake = None
        cluster.requeue_lost()


def _vouch(play: _Play, host: Host) -> None:
    intent = replace(host.intent, confirmed_dead_session=host.session, confirmed_by="plan", confirmed_reason="plan")
    step(play.cluster, HostIntentChanged(host.name, intent), play.now)
    _let_go(play)


def _restart(play: _Play, lost: Allocation, job: Job, *, restartable: bool) -> Work[Restart]:
    found, placed_s = play.placed.get(job.id, (None, 0.0))
    first = [f"only once an operator confirms that {lost.host} is dead"] if lost.host in play.unproven else []
    first += [f"not while {play.held}"] if play.held else []
    if found is None:
        last = (yield from explaining(play.cluster, job, play.now, ahead=False)).summary
        return Restart(job.id, job.name, lost.id, lost.host, "", (), "; ".join([*first, last]), 0.0, restartable)
    after_s = 0.0 if first else placed_s + play.start_s - play.died_s
    reason = "; ".join(first)
    return Restart(job.id, job.name, lost.id, lost.host, found.host, found.units, reason, after_s, restartable)
