"""The cluster as the scheduler knows it: facts (facts.py), records that the leader writes, and what is reserved.

Mutable and indexed for speed; changed only by `step` and `place`. Sorted where order can reach a decision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from math import inf

from ..queueing.queue import Lane, PendingQueue
from . import limits
from .books import Books
from .company import Company
from .facts import (
    ClusterIntent,
)
from .hosts import Allocation, Host
from .jobs import Job, Party, Request, party_of
from .losses import Brake, Failover
from .movers import Movers
from .policy import Policy
from .rules import Label, means
from .tables import (
    ALLOCATION,
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
from .terms import Member

STARTING = frozenset({AllocationState.BOUND, AllocationState.PREPARING})


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
    ordered: set[str] = field(default_factory=set)  # jobs that wait to restart, and name others that go before them
    books: Books = field(default_factory=Books)
    company: Company = field(default_factory=Company)  # whoever has a VM, as far as it matters to others
    sought: set[Label] = field(default_factory=set)  # patterns of labels that jobs wanted to be near, ever
    capacity_epoch: int = 0
    movers: Movers = field(default_factory=Movers)
    leaving: Movers = field(default_factory=Movers)  # hosts that somebody may leave at another time than was known
    stale_hosts: set[str] = field(default_factory=set)  # changed since the reservation last looked (reserve.py)
    stale_jobs: set[str] = field(default_factory=set)
    dirty: Dirty = field(default_factory=Dirty)
    log: list[Transition] = field(default_factory=list)
    _named: dict[str, set[str]] | None = None  # unfinished jobs by name; None: nobody has asked yet, as mostly

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
        before, host.state = host.state, next_state(HOST, host.state, event, "host", host.name)
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
        allocation.state = next_state(ALLOCATION, before, event, "allocation", allocation.id)
        self.log.append(Transition("allocation", allocation.id, before.value, allocation.state.value, reason))
        self._note_starting(self.host(allocation.host), allocation)

    def change_job(self, job: Job, event: JobEvent, now: float, reason: str) -> None:
        """Move `job` along its table, and into or out of the queue."""
        before, job.state = job.state, next_state(JOB, job.state, event, "job", job.id)
        job.message = reason
        if job.final:
            job.finished_s, job.hold = now, ""
            self.capacity_epoch += before is JobState.PENDING and bool(job.attempts)  # room was promised to it
        self.dirty.jobs.add(job.id)
        self.log.append(Transition("job", job.id, before.value, job.state.value, reason))
        self.enqueue(job)

    def enqueue(self, job: Job) -> None:
        """Put a pending job into the queue, take any other out. What must not start now is in it, but not offered."""
        if self._named is not None:
            self._index(job, self._named)
        if job.terms.plain and not job.final:
            self.books.count(job)
        else:
            self.books.note(job, limits.due_s(job, self.policy))
        self.stale_jobs.add(job.id)
        if job.attempts and (job.terms.time_limit_s or job.terms.end_within_s):
            self.leaving.add(job.attempts[-1].host)
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

    def named(self, name: str) -> Collection[str]:
        """The unfinished jobs of that name."""
        if self._named is None:
            self._named = {}
            for job in self.jobs.values():
                self._index(job, self._named)
        return self._named.get(name, ())

    @staticmethod
    def _index(job: Job, named: dict[str, set[str]]) -> None:
        if job.name and not job.final:
            named.setdefault(job.name, set()).add(job.id)
        elif job.name in named:
            named[job.name].discard(job.id)
            if not named[job.name]:
                del named[job.name]

    def _note_starting(self, host: Host, allocation: Allocation) -> None:
        """Keep count of what starts on the host; a start that is over may let the next one in."""
        if allocation.id in host.allocations and allocation.state in STARTING:
            host.starting.add(allocation.id)
        elif allocation.id in host.starting:
            enough = 0 < self.policy.starts_at_once <= len(host.starting)
            host.starting.discard(allocation.id)
            if enough:
                self.touch(host)

    def note_stop(self, allocation: Allocation) -> None:
        """It was asked to stop: that is to be put on record, it may leave sooner, and its gang may have to follow."""
        self.dirty.allocations.add(allocation.id)
        self.leaving.add(allocation.host)
        job = self.jobs.get(allocation.job)
        if job is not None and job.terms.member is not None:
            self.books.gangs.touched.add(job.terms.member.gang)

    def reserve(self, allocation: Allocation) -> None:
        """Take an allocation's resources."""
        host = self.host(allocation.host)
        self.allocations[allocation.id] = allocation
        self.books.queues.take(allocation, self.jobs.get(allocation.job))
        host.allocations.add(allocation.id)
        for unit in allocation.units:
            host.held[unit] = allocation.id
        host.version += 1
        self.movers.add(host.name)
        self.stale_hosts.add(host.name)
        self._note_starting(host, allocation)
        host.company.join(allocation)
        joins = self.company.join(allocation) and self.sought
        if joins and any(means(p, label) for p in self.sought for label in allocation.labels):
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
        if not host.nodes:
            return  # as while all is loaded
        sign = 1 if taken else -1
        for node_id, memory_mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            node = host.nodes.get(node_id)
            if node is None:  # the node left the inventory while in use
                continue
            if taken:
                node.free_cores.difference_update(allocation.cores)
            else:
                node.free_cores.update(set(allocation.cores).intersection(node.cores))
            if not allocation.hugepage_size_kib:
                node.free_memory_mib -= sign * memory_mib
            elif (pool := node.hugepages.get(allocation.hugepage_size_kib)) is not None:
                pool.lend(sign * memory_mib, seen=allocation.pages_seen)
