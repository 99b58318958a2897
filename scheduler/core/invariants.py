"""What must hold at every moment. `violations` is empty, or the scheduler must not commit."""

from __future__ import annotations

from collections.abc import Iterator

from .model import Cluster, Host
from .tables import JobState


def violations(cluster: Cluster) -> list[str]:
    """Every broken invariant, in words with values, in a fixed order."""
    return [*_allocations(cluster), *_jobs(cluster), *_hosts(cluster)]


def _allocations(cluster: Cluster) -> Iterator[str]:
    for allocation_id in sorted(cluster.allocations):
        allocation = cluster.allocations[allocation_id]
        host = cluster.hosts.get(allocation.host)
        if host is None or allocation_id not in host.allocations:
            yield f"allocation {allocation_id}: host {allocation.host} does not know it"
            continue
        if allocation.session != host.session:
            yield f"allocation {allocation_id}: session {allocation.session}, but {host.name} is in {host.session}"
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


def _hosts(cluster: Cluster) -> Iterator[str]:
    for name in sorted(cluster.hosts):
        host = cluster.hosts[name]
        for unit, allocation_id in sorted(host.held.items()):
            if allocation_id not in cluster.allocations:
                yield f"unit {name}/{unit}: held by {allocation_id}, which does not exist"
        yield from _capacity(cluster, host)


def _capacity(cluster: Cluster, host: Host) -> Iterator[str]:
    used: dict[tuple[int, ...], str] = {}
    memory = dict.fromkeys(host.nodes, 0)
    for allocation_id in sorted(host.allocations):
        allocation = cluster.allocations[allocation_id]
        for core in allocation.cores:
            if core in used:
                yield f"host {host.name}: core {core} is in {used[core]} and {allocation_id}"
            used[core] = allocation_id
        for node_id, mib in zip(allocation.nodes, allocation.memory_mib, strict=True):
            memory[node_id] = memory.get(node_id, 0) + mib
    fresh = not cluster.dirty.created.isdisjoint(host.allocations)  # an inventory may shrink under what runs already
    for node_id, node in sorted(host.nodes.items()):
        short = fresh and node.free_memory_mib < 0
        if memory[node_id] != node.memory_mib - node.free_memory_mib or short:
            yield f"host {host.name}: node {node_id} lends {memory[node_id]} MiB, counts {node.free_memory_mib} free"
        for core in sorted(node.free_cores & used.keys()):
            yield f"host {host.name}: core {core} of {used[core]} counts as free"
