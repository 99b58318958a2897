"""Agents without machines: what they report of VMs, units and sessions, each a fixed time after its cause.

They do as ARCHITECTURE.md says of agents: a VM starts, runs for its job's time, stops when it is asked to, and its
units are proven clean before they are free. A host that fails takes its VMs along; the scheduler hears of it when the
lease runs out. They know nothing that an agent would not, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from ..core.state.cluster import Cluster, Dirty
from ..core.state.events import InventoryChanged, SessionChanged, UnitReported, VmReported
from ..core.state.facts import GuardKind, SessionFact, UnitReport, UnitState
from ..core.state.hosts import Allocation
from ..core.state.jobs import Outcome
from ..core.state.tables import AllocationState, Transition
from .work import Machine
from .world import World

_OVER = (AllocationState.ENDED, AllocationState.LOST)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds. `checkpoint_s`: how often a job saves its state by itself; 0: never."""

    start_s: float = 30.0  # from the decision to the guest's command
    stop_s: float = 5.0  # from a stop request to the VM's end, within its grace
    reclaim_s: float = 10.0  # from the VM's end to the proof that its units are clean
    ttl_s: int = 10  # of a session's lease
    repair_s: float = 3600.0  # from a host's failure to its next session
    checkpoint_s: float = 0.0
    keeps_work: bool = True  # a job that is asked to stop saves its state within its grace


@dataclass(slots=True)
class Progress:
    """How far a job has come; `needs_s` infinite: it runs until it is stopped."""

    needs_s: float
    done_s: float = 0.0
    lost_s: float = 0.0  # of work that was done and had to be done again


@dataclass(slots=True)
class _Vm:
    allocation: Allocation
    started_s: float = 0.0
    stopping: bool = False


@dataclass(slots=True)
class Agents:
    """See the module docstring. `progress` of each job must be known before it starts."""

    world: World
    pace: Pace
    progress: dict[str, Progress] = field(default_factory=dict)
    running_gpus: int = 0
    session: int = 0  # the last that was begun
    dead: set[str] = field(default_factory=set)  # hosts
    _vms: dict[str, _Vm] = field(default_factory=dict)  # that start or run

    def __post_init__(self) -> None:
        self.world.lookers.append(self.look)

    # Hosts

    def join(self, host: Machine, *, guard: GuardKind = GuardKind.HARDWARE, simulated: bool = False) -> None:
        """A host begins a session on a new boot: nothing runs there, and its units are clean."""
        self.session += 1
        self.dead.discard(host.name)
        fact = SessionFact(
            self.session, f"{host.name}-{self.session}", guard, simulated, vms_found_dead=True,
            nonce=str(self.session), ttl_s=self.pace.ttl_s,
        )  # fmt: skip
        self.world.tell(SessionChanged(host.name, fact))
        self.world.tell(InventoryChanged(host.name, host.inventory(self.session)))
        for unit in host.units:
            self.world.tell(UnitReported(host.name, unit.id, UnitReport(UnitState.FREE, self.session, "")))

    def fail(self, name: str) -> bool:
        """The host dies now, and with it its VMs; False if it is dead already."""
        if name in self.dead:
            return False
        self.dead.add(name)
        for vm in [vm for vm in self._vms.values() if vm.allocation.host == name]:
            if vm.started_s:
                self._worked(vm, saved=False)
            self._forget(vm)
        self.world.after(self.lease_s(name), lambda: self._lease_over(name))
        return True

    def lease_s(self, name: str) -> int:
        """How long the loss of a host stays unnoticed."""
        fact = self.world.cluster.host(name).fact
        return fact.ttl_s if fact is not None and fact.ttl_s else self.pace.ttl_s

    def _lease_over(self, name: str) -> None:
        if name in self.dead:
            self.world.tell(SessionChanged(name, None))

    # VMs

    def adopt(self, cluster: Cluster) -> None:
        """Go on with the VMs that are there."""
        for allocation_id in sorted(cluster.allocations):
            allocation = cluster.allocations[allocation_id]
            host = cluster.hosts[allocation.host]
            if host.fact is None or host.fact.session != allocation.session or allocation.state is AllocationState.LOST:
                continue
            if allocation.state is AllocationState.ENDED:
                self._later(self.pace.reclaim_s, allocation, self._clean)
                continue
            vm = self._vms[allocation.id] = _Vm(allocation)
            if allocation.state in (AllocationState.RUNNING, AllocationState.STOPPING):
                job = cluster.jobs.get(allocation.job)
                since_s = job.attempts[-1].started_s if job is not None and job.attempts else 0.0
                self._runs(vm, since_s or self.world.now)
            else:
                self._later(
                    max(0.0, allocation.created_s + self.pace.start_s - self.world.now), allocation, self._start
                )
            self._may_stop(vm)

    def look(self, dirty: Dirty, _: list[Transition]) -> None:
        """What the leader has just committed."""
        for allocation_id in sorted(dirty.allocations):
            allocation = self.world.cluster.allocations.get(allocation_id)
            if allocation is None or allocation.host in self.dead:
                continue
            if allocation_id in dirty.created:
                self._vms[allocation_id] = _Vm(allocation)
                self._later(self.pace.start_s, allocation, self._start)
            vm = self._vms.get(allocation_id)
            if vm is not None:
                self._may_stop(vm)

    def _later(self, delay_s: float, allocation: Allocation, act: Callable[[Allocation], None]) -> None:
        """Act on the allocation then, unless its session is over by then."""
        host = self.world.cluster.hosts[allocation.host]

        def then() -> None:
            alive = allocation.host not in self.dead and host.fact is not None
            if alive and host.fact is not None and host.fact.session == allocation.session:
                act(allocation)

        self.world.after(delay_s, then)

    def _start(self, allocation: Allocation) -> None:
        vm = self._vms.get(allocation.id)
        if vm is None or vm.stopping:
            return
        now = self.world.now
        self.world.tell(
            VmReported(allocation.host, allocation.id, allocation.session, AllocationState.RUNNING, started_s=now)
        )
        self._runs(vm, now)

    def _runs(self, vm: _Vm, since_s: float) -> None:
        vm.started_s = since_s
        self.running_gpus += len(vm.allocation.units)
        progress = self.progress.setdefault(vm.allocation.job, Progress(inf))
        if progress.needs_s < inf:
            left_s = progress.needs_s - progress.done_s - (self.world.now - since_s)
            self._later(max(0.0, left_s), vm.allocation, self._exit)

    def _exit(self, allocation: Allocation) -> None:
        vm = self._vms.get(allocation.id)
        if vm is not None:
            self._worked(vm, saved=True)
            self._ended(vm, Outcome.EXITED, 0)

    def _may_stop(self, vm: _Vm) -> None:
        """It is asked to stop once, and stops within its grace."""
        allocation = vm.allocation
        if vm.stopping or not allocation.stop_reason:
            return
        vm.stopping = True
        job = self.world.cluster.jobs.get(allocation.job)
        grace_s = allocation.stop_grace_s or (job.terms.stop_grace_s if job is not None else self.pace.stop_s)
        self._later(min(self.pace.stop_s, grace_s), allocation, self._stopped)

    def _stopped(self, allocation: Allocation) -> None:
        vm = self._vms.get(allocation.id)
        if vm is not None:
            if vm.started_s:
                self._worked(vm, saved=self.pace.keeps_work)
            self._ended(vm, Outcome.STOPPED, None)

    def _worked(self, vm: _Vm, *, saved: bool) -> None:
        """Note what the attempt has done: all of it, or as far as the last checkpoint."""
        progress = self.progress[vm.allocation.job]
        spent_s, every_s = self.world.now - vm.started_s, self.pace.checkpoint_s
        kept_s = spent_s if saved else spent_s // every_s * every_s if every_s else 0.0
        progress.done_s = min(progress.needs_s, progress.done_s + kept_s)
        progress.lost_s += spent_s - kept_s

    def _ended(self, vm: _Vm, outcome: Outcome, code: int | None) -> None:
        allocation = vm.allocation
        self._forget(vm)
        self.world.tell(
            VmReported(
                allocation.host, allocation.id, allocation.session, AllocationState.ENDED, outcome, code,
                ended_s=self.world.now,
            )
        )  # fmt: skip
        if allocation.units:
            self._later(self.pace.reclaim_s, allocation, self._clean)

    def _forget(self, vm: _Vm) -> None:
        del self._vms[vm.allocation.id]
        if vm.started_s:
            self.running_gpus -= len(vm.allocation.units)

    def _clean(self, allocation: Allocation) -> None:
        host = self.world.cluster.hosts[allocation.host]
        for unit in allocation.units:
            before = host.reports.get(unit)
            if before is None or before.state is not UnitState.QUARANTINED:
                report = UnitReport(UnitState.FREE, allocation.session, allocation.id)
                self.world.tell(UnitReported(allocation.host, unit, report))

    def work(self, jobs: Iterable[str]) -> tuple[float, float]:
        """Seconds that these jobs have done for good, and that they did in vain."""
        mine = [self.progress[job] for job in jobs if job in self.progress]
        return sum(p.done_s for p in mine), sum(p.lost_s for p in mine)
