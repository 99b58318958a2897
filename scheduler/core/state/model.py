"""The cluster as the scheduler knows it: facts (facts.py), records that the leader writes, and what is reserved.

Mutable and indexed for speed; changed only by `step` and `place`. Sorted where order can reach a decision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any

from ..queueing.queue import Lane, PendingQueue
from . import limits
from .books import Books
from .company import Company
from .facts import (
    ClusterIntent,
    Drain,
    GuardKind,
    HostIntent,
    InventoryFact,
    JobIntent,
    SessionFact,
    UnitFact,
    UnitReport,
    UnitState,
)
from .hugepages import Pool
from .losses import Brake, Evidence, Failover, FenceRecord, PowerFencing
from .movers import Movers
from .policy import Policy
from .quick import QuickEnum
from .rules import Label, Labels, Rules, means
from .tables import (
    ALLOCATION,
    FINAL_JOB_STATES,
    HOST,
    JOB,
    AllocationEvent,
    AllocationState,
    HostEvent,
    HostState,
    JobEvent,
    JobState,
    Transition,
    next_state,
)
from .terms import Member, Terms

ATTEMPTS_KEPT = 16  # the newest; the count goes on
_NO_TERMS, _NO_WORD, _NO_WISH = Terms(), JobIntent(), HostIntent()  # of most: one object for all of them
STARTING = frozenset({AllocationState.BOUND, AllocationState.PREPARING})


class NumaPolicy(QuickEnum):
    """How strictly a VM's resources share a NUMA node."""

    REQUIRED = "REQUIRED"
    PREFERRED = "PREFERRED"
    NONE = "NONE"


class Outcome(QuickEnum):
    """How an attempt ended."""

    EXITED = "EXITED"
    STOPPED = "STOPPED"
    START_FAILED = "START_FAILED"
    CRASHED = "CRASHED"
    HOST_LOST = "HOST_LOST"


@dataclass(frozen=True, slots=True)
class Request:
    """What a job needs of a host: its shape. Equal requests are interchangeable to placement."""

    image: str
    gpus: int = 0
    model: str = ""
    gpu_memory_mib: int = 0
    cpus: int = 1
    memory_mib: int = 0
    numa: NumaPolicy = NumaPolicy.PREFERRED
    hugepage_size_kib: int = 0  # 0: ordinary memory
    rules: Rules | None = None  # None: it demands nothing else
    _hash: int = field(default=0, init=False, compare=False, repr=False)

    def __hash__(self) -> int:
        """Of all that it says, reckoned once: each placement looks it up several times."""
        if not self._hash:
            said = (self.image, self.gpus, self.model, self.gpu_memory_mib, self.cpus, self.memory_mib, self.numa)
            object.__setattr__(self, "_hash", hash((said, self.hugepage_size_kib, self.rules)) or 1)
        return self._hash


@dataclass(frozen=True, slots=True)
class Party(Request):
    """The shape of those of a gang that are placed together. `of` names the gang if others of it run already."""

    count: int = 1
    spread: str = ""
    pack: str = ""
    of: str = ""


def party_of(request: Request, member: Member) -> Party:
    """The shape of a whole gang."""
    plain: dict[str, Any] = {one.name: getattr(request, one.name) for one in fields(Request) if one.init}
    return Party(**plain, count=member.count, spread=member.spread, pack=member.pack)


@dataclass(slots=True)
class Attempt:
    """One incarnation of a job."""

    number: int
    host: str
    units: tuple[str, ...]
    created_s: float
    started_s: float = 0.0
    ended_s: float = 0.0
    outcome: Outcome | None = None
    exit_code: int | None = None
    message: str = ""
    evidence: Evidence | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Job:
    """A job and what became of it. `arrival` orders the queue: the revision at which its spec was written."""

    id: str
    request: Request
    arrival: int
    submitted_s: float
    priority: int = 0
    max_restarts: int = 10
    max_start_failures: int = 3
    state: JobState = JobState.PENDING
    attempts: list[Attempt] = field(default_factory=list)
    attempt_count: int = 0
    restarts: int = 0
    start_failures: int = 0
    finished_s: float = 0.0
    not_before_s: float = 0.0
    exit_code: int | None = None
    message: str = ""
    cancel_reason: str | None = None  # not None once cancellation was asked for
    name: str = ""
    restart_priority: int = 0  # among jobs to be restarted, before `priority`
    after: tuple[str, ...] = ()  # names of jobs that must run, or be over, before it restarts
    max_host_deaths: int = 3  # held once so many hosts in a row died with it; 0: never
    host_deaths: int = 0
    hold: str = ""  # why it is kept from starting until an operator releases it
    held_s: float = 0.0
    labels: Labels = ()
    max_failures_per_host: int = 0  # a host where so many attempts failed is not used again; 0: it is used last
    terms: Terms = _NO_TERMS
    intent: JobIntent = _NO_WORD
    ending: str = ""  # why its time is up: it ends for good
    freed: bool = False  # what it depends on has come about; found anew by each leader

    @property
    def lane(self) -> Lane:
        """Whose limits it shares."""
        return self.terms.queue, self.terms.user, self.terms.time_limit_s

    @property
    def depends(self) -> bool:
        """Whether it waits, as far as is known, for jobs that it depends on."""
        return bool(self.terms.dependencies) and not self.attempt_count and not self.freed

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL_JOB_STATES

    @property
    def lost(self) -> bool:
        """Whether its last VM that ran at all was lost with its host; tries that did not start since change nothing."""
        return _lost(self.attempts)

    @property
    def lost_before(self) -> bool:
        """As `lost`, before the last attempt was made."""
        return _lost(self.attempts[:-1])

    @property
    def allocation_id(self) -> str | None:
        """The allocation of the attempt that is under way."""
        if self.state in (JobState.STARTING, JobState.RUNNING):
            return f"{self.id}.{self.attempt_count}"
        return None


def _lost(attempts: list[Attempt]) -> bool:
    for attempt in reversed(attempts):
        if attempt.outcome is not Outcome.START_FAILED:
            return attempt.outcome is Outcome.HOST_LOST
    return False


@dataclass(slots=True)
class Allocation:
    """One VM of one attempt on one host, with everything decided. While it exists its resources are taken."""

    id: str
    job: str
    attempt: int
    host: str
    session: int
    units: tuple[str, ...]
    nodes: tuple[int, ...]
    cores: tuple[tuple[int, ...], ...]  # physical cores, each as its logical CPUs
    memory_mib: tuple[int, ...]  # from each of `nodes`
    created_s: float
    hugepage_size_kib: int = 0  # the memory is of such pages; 0: ordinary
    unit_identities: tuple[str, ...] = ()  # of `units`, as the decision saw them
    stop_reason: str = ""  # not empty: it shall stop
    stop_requested_s: float = 0.0
    state: AllocationState = AllocationState.BOUND
    pages_seen: bool = False  # its hugepages were out of what the host last counted as free
    session_nonce: str = ""
    stop_grace_s: int = 0  # 0: as the job's spec says
    labels: Labels = ()  # of its job
    apart: Labels = ()  # keeps jobs with such labels off its host
    whole_host: bool = False  # keeps everybody off its host
    preempted_for: str = ""  # the job that it stops for


@dataclass(slots=True)
class Node:
    """A NUMA node: physical cores (each as its logical CPUs, sorted) and memory, total and free."""

    id: int
    cores: tuple[tuple[int, ...], ...]
    memory_mib: int
    free_cores: set[tuple[int, ...]]
    free_memory_mib: int
    hugepages: dict[int, Pool] = field(default_factory=dict)  # by size in KiB
    _even: int = field(default=-1, init=False, compare=False, repr=False)  # CPUs of each core; 0: not all have as many

    @property
    def threads(self) -> int:
        """Logical CPUs of one physical core."""
        return len(self.cores[0]) if self.cores else 1

    @property
    def free_cpus(self) -> int:
        """Logical CPUs of the free cores."""
        return self.cpus_of(self.free_cores)

    def cpus_of(self, cores: Collection[tuple[int, ...]]) -> int:
        """Logical CPUs of some of its cores, which mostly have as many each."""
        if self._even < 0:
            kinds = set(map(len, self.cores))
            self._even = kinds.pop() if len(kinds) == 1 else 0
        return self._even * len(cores) if self._even else sum(map(len, cores))

    def free_mib(self, hugepage_size_kib: int) -> int:
        """Free memory of a kind; none where more is lent than an inventory now says there is."""
        if not hugepage_size_kib:
            return max(0, self.free_memory_mib)
        pool = self.hugepages.get(hugepage_size_kib)
        return max(0, pool.free_mib) if pool is not None else 0


@dataclass(slots=True)
class Host:
    """A host: the record that the leader keeps (`state` .. `last_fence`), the facts, and what is reserved on it."""

    name: str
    state: HostState = HostState.JOINING
    session: int = 0
    boot_id: str = ""
    guard: GuardKind = GuardKind.NONE
    simulated: bool = False
    since_s: float = 0.0
    last_fence: FenceRecord | None = None
    lost_s: tuple[float, ...] = ()  # times of its last losses, oldest first
    held_out: str = ""  # why the leader itself keeps it out
    held_out_s: float = 0.0
    power: PowerFencing | None = None
    boot_s: float = 0.0  # when `boot_id` was first seen
    machine: str = ""  # that `session` is of; "": unknown
    fact: SessionFact | None = None
    inventory: InventoryFact | None = None
    intent: HostIntent = _NO_WISH
    ordered: Drain | None = None  # a drain that the site's policy wants, see failover/quarantine.py
    units: dict[str, UnitFact] = field(default_factory=dict)
    reports: dict[str, UnitReport] = field(default_factory=dict)
    sick: set[str] = field(default_factory=set)  # units that a report calls so, and that are not quarantined for it yet
    held: dict[str, str] = field(default_factory=dict)  # unit -> allocation
    nodes: dict[int, Node] = field(default_factory=dict)
    allocations: set[str] = field(default_factory=set)
    starting: set[str] = field(default_factory=set)  # those of them whose VM does not run yet
    company: Company = field(default_factory=Company)  # who is there, as far as it matters to others
    version: int = 0  # grows with every change that placement can see

    @property
    def drain(self) -> Drain | None:
        """The drain that goes on, an operator's or the policy's."""
        return self.intent.drain or self.ordered

    def unfit(self, unit: UnitFact) -> str:
        """Why the unit must not be handed out, whatever its state; "": it may."""
        if unit.unfit or unit.id not in self.sick:
            return unit.unfit
        return f"sick: {self.reports[unit.id].sick}"

    def taken_by(self) -> SessionFact | None:
        """The later session under its name, if nothing says that it is of the same machine; None: there is none such.

        Two unknown machines pass for one, as before machines were known; one that is known and one that is not do not.
        The same boot is the same machine.
        """
        fact = self.fact
        if fact is None or fact.session == self.session or fact.boot_id == self.boot_id:
            return None
        return fact if fact.machine != self.machine else None

    def unit_state(self, unit: str) -> UnitState:
        """As the scheduler must see it: held from the decision on, and dirty unless this session says otherwise."""
        report = self.reports.get(unit)
        current = report is not None and report.session == self.session
        if report is not None and current and report.state is UnitState.QUARANTINED:
            return UnitState.QUARANTINED
        if unit in self.held:
            return UnitState.HELD
        return report.state if report is not None and current else UnitState.DIRTY


@dataclass(slots=True)
class Dirty:
    """What changed since the last commit: records to write again, by id."""

    jobs: set[str] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    allocations: set[str] = field(default_factory=set)
    created: set[str] = field(default_factory=set)  # allocations that the store does not have yet
    deleted: dict[str, Allocation] = field(default_factory=dict)
    failovers: set[tuple[str, int]] = field(default_factory=set)  # host and session
    retired: set[str] = field(default_factory=set)  # jobs that are kept no longer
    cluster: bool = False  # the record of all hosts together
    shares: bool = False

    def __bool__(self) -> bool:
        known = self.jobs or self.hosts or self.allocations or self.deleted or self.failovers or self.retired
        return bool(known or self.cluster or self.shares)


@dataclass(slots=True)
class Cluster:
    """Everything. `capacity_epoch` grows whenever what fits may have changed, save by a placement."""

    policy: Policy = field(default_factory=Policy)
    hosts: dict[str, Host] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    allocations: dict[str, Allocation] = field(default_factory=dict)
    pending: PendingQueue[Request] = field(default_factory=PendingQueue)
    failovers: dict[tuple[str, int], Failover] = field(default_factory=dict)  # by host and session
    intent: ClusterIntent = field(default_factory=ClusterIntent)
    brake: Brake | None = None
    settled_s: float = 0.0  # when the last brake ended
    alive: set[str] = field(default_factory=set)  # hosts that have a session and are not lost
    unproven: set[str] = field(default_factory=set)  # hosts that are lost, and whose VMs nobody has proven dead
    lately: set[str] = field(default_factory=set)  # hosts whose loss the brake may mind
    noted_s: float = 0.0  # `intent.at_s` as of which leaders have watched what sessions declare
    draining: set[str] = field(default_factory=set)  # hosts whose intent has a drain
    named: dict[str, set[str]] = field(default_factory=dict)  # unfinished jobs by name
    ordered: set[str] = field(default_factory=set)  # jobs that wait to restart, and name others that go before them
    books: Books = field(default_factory=Books)
    company: Company = field(default_factory=Company)  # whoever has a VM, as far as it matters to others
    sought: set[Label] = field(default_factory=set)  # patterns of labels that jobs wanted to be near, ever
    capacity_epoch: int = 0
    movers: Movers = field(default_factory=Movers)
    stale_hosts: set[str] = field(default_factory=set)  # changed since the reservation last looked (reserve.py)
    stale_jobs: set[str] = field(default_factory=set)
    dirty: Dirty = field(default_factory=Dirty)
    log: list[Transition] = field(default_factory=list)

    def host(self, name: str) -> Host:
        """The host of that name, made if it is new."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name)
        return host

    def take_dirty(self) -> Dirty:
        """What is to be committed; the set starts anew."""
        dirty, self.dirty = self.dirty, Dirty()
        self.capacity_epoch += bool(dirty.hosts)  # once their records are written, they may be placed on
        for name in sorted(dirty.hosts):
            self.movers.add(name)
        return dirty

    def take_log(self) -> list[Transition]:
        """The transitions since the last call, oldest first."""
        log, self.log = self.log, []
        return log

    def touch(self, host: Host) -> None:
        """Something that placement looks at has changed on `host`."""
        host.version += 1
        self.movers.add(host.name)
        self.capacity_epoch += 1
        self.stale_hosts.add(host.name)

    # The funnel: no state changes anywhere else.

    def change_host(self, host: Host, event: HostEvent, now: float, reason: str) -> None:
        """Move `host` along its table."""
        before, host.state = host.state, next_state(HOST, host.state, event, f"host {host.name}")
        host.since_s = now
        self.dirty.hosts.add(host.name)
        self.touch(host)
        self.note_alive(host)
        self.log.append(Transition("host", host.name, before.value, host.state.value, reason))

    def note_alive(self, host: Host) -> None:
        """Keep count of the hosts that live, and of those that are lost."""
        lives = host.session and host.state in (HostState.JOINING, HostState.READY)
        (self.alive.add if lives else self.alive.discard)(host.name)
        unproven = host.state in (HostState.SUSPECT, HostState.FENCING)
        (self.unproven.add if unproven else self.unproven.discard)(host.name)

    def change_allocation(self, allocation: Allocation, event: AllocationEvent, reason: str) -> None:
        """Move `allocation` along its table. Its state is the agent's report, so nothing is to be written."""
        before = allocation.state
        allocation.state = next_state(ALLOCATION, before, event, f"allocation {allocation.id}")
        self.log.append(Transition("allocation", allocation.id, before.value, allocation.state.value, reason))
        self._note_starting(self.host(allocation.host), allocation)

    def change_job(self, job: Job, event: JobEvent, now: float, reason: str) -> None:
        """Move `job` along its table, and into or out of the queue."""
        before, job.state = job.state, next_state(JOB, job.state, event, f"job {job.id}")
        job.message = reason
        if job.final:
            job.finished_s, job.hold = now, ""
            self.capacity_epoch += before is JobState.PENDING and bool(job.attempts)  # room was promised to it
        self.dirty.jobs.add(job.id)
        self.log.append(Transition("job", job.id, before.value, job.state.value, reason))
        self.enqueue(job)

    def enqueue(self, job: Job) -> None:
        """Put a pending job into the queue, take any other out. What must not start now is in it, but not offered."""
        self._index(job)
        self.books.note(job, limits.due_s(job, self.policy))
        self.stale_jobs.add(job.id)
        if job.request.rules is not None:
            self.sought.update(job.request.rules.near)
        if job.terms.member is not None:
            free = job.state is JobState.PENDING and not self._kept(job)
            for other in self.books.gangs.note(job, free=free):
                self._enqueue(self.jobs[other])
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if job.state is not JobState.PENDING:
            self.pending.discard(job.id)
            self.ordered.discard(job.id)
            return
        ordered = bool(job.after and job.attempts)
        if ordered:
            self.ordered.add(job.id)
        self.queue(job, parked=ordered or self.held_up(job))

    def queue(self, job: Job, *, parked: bool) -> None:
        """What lost its host goes first, by its restart priority; then priority; then fair share; then arrival."""
        lost, shape, not_before_s = job.lost, job.request, job.not_before_s
        if job.terms.member is not None:
            gangs = self.books.gangs
            lost, not_before_s = gangs.first(job), gangs.not_before_s(job)
            shape = self._party(job, job.terms.member)
        first = (0, -job.restart_priority) if lost else (1, 0)
        key = (*first, -job.priority, job.arrival, job.id)
        self.pending.add(job.id, shape, key, inf if parked else not_before_s, job.lane)

    def _party(self, job: Job, member: Member) -> Party:
        """What is asked of hosts when the job is offered."""
        count = len(self.books.gangs.party(job))
        others = len(self.books.gangs.unfinished(member.gang)) > count
        return replace(party_of(job.request, member), count=count, of=member.gang if others else "")

    def share(self, lane: Lane) -> float:
        """What the tenant of a lane has used, as the queue's order minds it."""
        return self.books.shares.of(self.books.queues.tenant(lane[0]))

    def held_up(self, job: Job) -> bool:
        """Whether an operator, a job that it depends on, its array, its gang, or the brake keeps it from starting."""
        return self._kept(job) or self.books.arrays.gated(job) or self.books.gangs.gated(job)

    def _kept(self, job: Job) -> bool:
        """The same, of what is its own affair."""
        withheld = job.lost and (self.brake is not None or self.intent.disarmed)
        return bool(job.hold) or job.depends or withheld

    def requeue_lost(self) -> None:
        """What keeps jobs that lost their host from starting has changed."""
        for job_id in sorted(self.pending):
            if self.jobs[job_id].lost:
                self.enqueue(self.jobs[job_id])

    def _index(self, job: Job) -> None:
        if not job.name:
            return
        if not job.final:
            self.named.setdefault(job.name, set()).add(job.id)
        elif job.name in self.named:
            self.named[job.name].discard(job.id)
            if not self.named[job.name]:
                del self.named[job.name]

    def _note_starting(self, host: Host, allocation: Allocation) -> None:
        """Keep count of what starts on the host; a start that is over may let the next one in."""
        if allocation.id in host.allocations and allocation.state in STARTING:
            host.starting.add(allocation.id)
        elif allocation.id in host.starting:
            enough = 0 < self.policy.starts_at_once <= len(host.starting)
            host.starting.discard(allocation.id)
            if enough:
                self.touch(host)

    def reserve(self, allocation: Allocation) -> None:
        """Take an allocation's resources."""
        host = self.host(allocation.host)
        self.allocations[allocation.id] = allocation
        self.books.queues.take(allocation, self.jobs.get(allocation.job))
        host.allocations.add(allocation.id)
        host.held.update(dict.fromkeys(allocation.units, allocation.id))
        host.version += 1
        self.movers.add(host.name)
        self.stale_hosts.add(host.name)
        self._note_starting(host, allocation)
        host.company.join(allocation)
        if self.company.join(allocation) and any(means(p, label) for p in self.sought for label in allocation.labels):
            self.capacity_epoch += 1  # somebody may have waited to be near it
        self.account(host, allocation, taken=True)

    def release(self, allocation: Allocation) -> None:
        """Give an allocation's resources back and forget it."""
        host = self.host(allocation.host)
        del self.allocations[allocation.id]
        self.books.queues.give_back(allocation.id)
        host.allocations.discard(allocation.id)
        self._note_starting(host, allocation)
        for unit in allocation.units:
            if host.held.get(unit) == allocation.id:
                del host.held[unit]
        host.company.leave(allocation)
        self.company.leave(allocation)
        self.account(host, allocation, taken=False)
        self.touch(host)

    def pages_returned(self, allocation: Allocation) -> None:
        """Its VM is gone, and with it what it had of the host's hugepages; they stay reserved until the release."""
        if not allocation.pages_seen:
            return
        host = self.host(allocation.host)
        for node_id, memory_mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            node = host.nodes.get(node_id)
            pool = node.hugepages.get(allocation.hugepage_size_kib) if node is not None else None
            if pool is not None:
                pool.seen_ours_mib -= memory_mib
        allocation.pages_seen = False
        self.touch(host)

    @staticmethod
    def account(host: Host, allocation: Allocation, *, taken: bool) -> None:
        """Count cores and memory of an allocation as taken, or as free again."""
        cores = set(allocation.cores)
        sign = 1 if taken else -1
        for node_id, memory_mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            node = host.nodes.get(node_id)
            if node is None:  # the node left the inventory while in use
                continue
            mine = cores.intersection(node.cores)
            if taken:
                node.free_cores -= mine
            else:
                node.free_cores |= mine
            if not allocation.hugepage_size_kib:
                node.free_memory_mib -= sign * memory_mib
            elif (pool := node.hugepages.get(allocation.hugepage_size_kib)) is not None:
                pool.lend(sign * memory_mib, seen=allocation.pages_seen)
