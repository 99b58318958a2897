"""What must hold at every moment. `violations` is empty, or the scheduler must not commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .state.cluster import STARTING, Cluster
from .state.hosts import Allocation, Host
from .state.rules import means
from .state.tables import JobState
from .state.terms import OnLoss
from .work import PAUSE, Work, done

_HOSTS = 10  # that are looked at in the time of a try


def violations(cluster: Cluster) -> list[str]:
    """Every broken invariant, in words with values, in a fixed order."""
    return done(checking(cluster))


def checking(cluster: Cluster) -> Work[list[str]]:
    """The same, with pauses in which nothing may change, as there may be 10,000 hosts."""
    found = [
        *_allocations(cluster),
        *_jobs(cluster),
        *_quotas(cluster),
        *_held_up(cluster),
        *_gangs(cluster),
    ]
    yield PAUSE
    for number, name in enumerate(sorted(cluster.hosts)):
        found += _host(cluster, cluster.hosts[name])
        yield int(number % _HOSTS == 0)
    return found


def _allocations(cluster: Cluster) -> Iterator[str]:
    for allocation_id in sorted(cluster.allocations):
        allocation = cluster.allocations[allocation_id]
        host = cluster.hosts.get(allocation.host)
        if host is None or allocation_id not in host.allocations:
            yield f"allocation {allocation_id}: host {allocation.host} does not know it"
            continue
        if allocation.session != host.session:
            yield f"allocation {allocation_id}: session {allocation.session}, but {host.name} is in {host.session}"
        if allocation_id in cluster.dirty.created and (host.drain is not None or host.intent.maintenance):
            yield f"allocation {allocation_id}: placed on {host.name}, which is draining or in maintenance"
        for unit in allocation.units:
            if host.held.get(unit) != allocation_id:
                yield f"unit {host.name}/{unit}: in {allocation_id} and in {host.held.get(unit)}"


def _jobs(cluster: Cluster) -> Iterator[str]:
    for job_id in sorted(cluster.jobs):
        job = cluster.jobs[job_id]
        mine = job.allocation_id
        if mine is not None and mine not in cluster.allocations:
            yield f"job {job_id}: {job.state.value} without allocation {mine}"
        if job.state is JobState.PENDING and cluster.pending.position(job_id) == 0:
            yield f"job {job_id}: PENDING but not in the queue"
        if job.attempts and job.attempts[-1].number != job.attempt_count:
            yield f"job {job_id}: {job.attempt_count} attempts, the last is number {job.attempts[-1].number}"


def _quotas(cluster: Cluster) -> Iterator[str]:
    """What starts now must not bring a queue, or a user, beyond a limit; what ran before a limit was lowered may."""
    started = {
        cluster.jobs[a.job].lane[:2] for i in cluster.dirty.created if (a := cluster.allocations.get(i)) is not None
    }
    names = {queue for queue, _ in started} | {f"{queue}/{user}" for queue, user in started}
    over = cluster.books.queues.over() if started else {}
    yield from (f"queue {name}: uses {why}" for name, why in over.items() if name in names)


def _held_up(cluster: Cluster) -> Iterator[str]:
    """What the brake, an operator or the breaker keeps from starting must not start."""
    withheld = cluster.brake is not None or cluster.intent.disarmed
    for allocation_id in sorted(cluster.dirty.created):
        allocation = cluster.allocations.get(allocation_id)
        job = cluster.jobs.get(allocation.job) if allocation is not None else None
        if withheld and job is not None and job.allocation_id == allocation_id and job.lost_before:
            yield f"allocation {allocation_id}: restarts what was lost, under the brake or while disarmed"
    for array, (runs, may) in cluster.books.arrays.crowded().items():
        yield f"array {array}: {runs} of it run, {may} may"
    for job_id in sorted(cluster.jobs):
        job = cluster.jobs[job_id]
        if job.hold and job.state is not JobState.PENDING:
            yield f"job {job_id}: {job.state.value} though it is held"
        if job.state is JobState.PENDING and cluster.held_up(job) and not cluster.pending.parked(job_id):
            yield f"job {job_id}: offered to hosts though it is held up"


def _gangs(cluster: Cluster) -> Iterator[str]:
    """What starts together starts all or not at all, and not before all of it that ran is dead."""
    made: dict[str, list[str]] = {}
    for allocation_id in sorted(cluster.dirty.created):
        allocation = cluster.allocations.get(allocation_id)
        job = cluster.jobs.get(allocation.job) if allocation is not None else None
        member = job.terms.member if job is not None else None
        if allocation is None or member is None:
            continue
        if allocation.attempt == 1 or member.on_loss is OnLoss.RESTART_ALL:
            made.setdefault(member.gang, []).append(allocation_id)
    for gang, created in sorted(made.items()):
        for job_id in cluster.books.gangs.unfinished(gang):
            mine = cluster.jobs[job_id].allocation_id
            if mine not in created:
                now = f"{cluster.jobs[job_id].state.value} in {mine}" if mine else "not"
                yield f"gang {gang}: {created[0]} is made now, and {job_id} {now}"


def _host(cluster: Cluster, host: Host) -> Iterator[str]:
    starting = {a for a in host.allocations if a in cluster.allocations and cluster.allocations[a].state in STARTING}
    if starting != host.starting:
        yield f"host {host.name}: counts {sorted(host.starting)} as starting, but {sorted(starting)} are"
    for unit, allocation_id in sorted(host.held.items()):
        if allocation_id not in cluster.allocations:
            yield f"unit {host.name}/{unit}: held by {allocation_id}, which does not exist"
    yield from _capacity(cluster, host)
    yield from _neighbours(cluster, host)


def _neighbours(cluster: Cluster, host: Host) -> Iterator[str]:
    """Who was placed in this turn is where it may be with the others, and they with it."""
    there = [cluster.allocations[a] for a in sorted(host.allocations)]
    for one in (a for a in there if a.whole_host or a.apart):
        for other in there:
            fresh = {one.id, other.id} & cluster.dirty.created
            if other is one or not fresh or not _shuns(one, other):
                continue
            yield f"host {host.name}: {one.id} and {other.id} must not be there together"


def _shuns(one: Allocation, other: Allocation) -> bool:
    return one.whole_host or any(means(pattern, label) for pattern in one.apart for label in other.labels)


def _capacity(cluster: Cluster, host: Host) -> Iterator[str]:
    used: dict[tuple[int, ...], str] = {}
    memory: Counter[tuple[int, int]] = Counter()  # MiB by node and size of hugepage
    fresh: set[tuple[int, int]] = set()  # where this turn took some: an inventory may shrink under what runs already
    for allocation_id in sorted(host.allocations):
        allocation = cluster.allocations[allocation_id]
        for core in allocation.cores:
            if core in used:
                yield f"host {host.name}: core {core} is in {used[core]} and {allocation_id}"
            used[core] = allocation_id
        for node_id, mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            memory[node_id, allocation.hugepage_size_kib] += mib
            if mib and allocation_id in cluster.dirty.created:
                fresh.add((node_id, allocation.hugepage_size_kib))
    for node_id, node in sorted(host.nodes.items()):
        lends, free = memory[node_id, 0], node.free_memory_mib
        if lends != node.memory_mib - free or ((node_id, 0) in fresh and free < 0):
            yield f"host {host.name}: node {node_id} lends {lends} MiB, counts {free} free"
        for size_kib, pool in sorted(node.hugepages.items()):
            lends, free = memory[node_id, size_kib], pool.free_mib
            if lends != pool.lent_mib or ((node_id, size_kib) in fresh and free < 0):
                pages = f"hugepages of {size_kib} KiB"
                yield f"host {host.name}: node {node_id} lends {lends} MiB of {pages}, counts {free} free"
        for core in sorted(node.free_cores & used.keys()):
            yield f"host {host.name}: core {core} of {used[core]} counts as free"
