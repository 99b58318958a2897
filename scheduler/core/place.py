"""Which pending job goes where: the only place that makes allocations.

Jobs are taken by priority, then arrival; a job that does not fit lets later ones pass. Among hosts: the least valuable
GPU that will do, then one NUMA node before several, then the host where the fewest free units would stay (so that whole
hosts stay free for large jobs), then one where this job has not failed to start, then the name.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from .fit import Fit, fit
from .model import Allocation, Attempt, Cluster, Host, Job, Outcome, Request
from .tables import HostState, JobEvent

Rank = tuple[int, int, int, str]


@dataclass(slots=True)
class _Ranking:
    """The hosts that can take one shape. An entry of the heap, best first, counts while it is its host's `current`."""

    heap: list[tuple[Rank, str]] = field(default_factory=list)
    current: dict[str, tuple[Rank, Fit]] = field(default_factory=dict)
    seen: int = 0  # placements that it takes into account

    def put(self, host: Host, request: Request) -> None:
        """Rank `host` as it is now."""
        found = fit(host, request)
        self.current.pop(host.name, None)
        if isinstance(found, Fit):
            rank = _rank(host, found)
            self.current[host.name] = rank, found
            heapq.heappush(self.heap, (rank, host.name))

    def best(self) -> tuple[str, Fit] | None:
        """The best host and what the request takes there."""
        while self.heap:
            rank, name = self.heap[0]
            now = self.current.get(name)
            if now is not None and now[0] == rank:
                return name, now[1]
            heapq.heappop(self.heap)
        return None


@dataclass(slots=True)
class Placer:
    """Remembers, until something else than its own placements changes what fits, which hosts suit a shape, or none.

    Belongs to one cluster.
    """

    epoch: int = -1
    hopeless: set[Request] = field(default_factory=set)
    rankings: dict[Request, _Ranking] = field(default_factory=dict)
    placed: list[Host] = field(default_factory=list)  # the host of each placement of this epoch

    def place(self, cluster: Cluster, now: float, limit: int = 1000) -> int:
        """Place up to `limit` pending jobs; returns how many. The cluster then has their allocations, marked dirty."""
        cluster.pending.due(now)
        if self.epoch != cluster.capacity_epoch:
            self.epoch = cluster.capacity_epoch
            self.hopeless.clear()
            self.rankings.clear()
            self.placed.clear()
        placed = 0
        for job_id, request in cluster.pending.offers(self.hopeless):
            job = cluster.jobs[job_id]
            best = self._best_host(cluster, job)
            if best is None:
                self.hopeless.add(request)
                continue
            _bind(cluster, job, *best, now)
            self.placed.append(best[0])
            placed += 1
            if placed >= limit:
                break
        return placed

    def _best_host(self, cluster: Cluster, job: Job) -> tuple[Host, Fit] | None:
        """The best host for the job, with what it would take there."""
        ranking = self._ranking(cluster, job.request)
        failed_on = {a.host for a in job.attempts if a.outcome is Outcome.START_FAILED}
        if failed_on & ranking.current.keys():
            rank, found = min(ranking.current.values(), key=lambda r: (*r[0][:3], r[0][3] in failed_on, r[0][3]))
            return cluster.hosts[rank[3]], found
        best = ranking.best()
        return None if best is None else (cluster.hosts[best[0]], best[1])

    def _ranking(self, cluster: Cluster, request: Request) -> _Ranking:
        """All hosts ranked for a shape; made once, then only the hosts that were placed on since are ranked again."""
        ranking = self.rankings.get(request)
        if ranking is None:
            ranking = self.rankings[request] = _Ranking()
            changed = _placeable(cluster)
        else:
            changed = {host.name: host for host in self.placed[ranking.seen :]}
        for host in changed.values():
            ranking.put(host, request)
        ranking.seen = len(self.placed)
        return ranking


def _placeable(cluster: Cluster) -> dict[str, Host]:
    """The ready hosts whose records are committed. An allocation on record before the session that it is of would look
    to the next leader like one of the session before, and be given up as lost with it while its VM runs.
    """
    ready = {name: host for name, host in cluster.hosts.items() if host.state is HostState.READY}
    return {name: host for name, host in ready.items() if name not in cluster.dirty.hosts}


def _rank(host: Host, found: Fit) -> Rank:
    return found.gpu_memory_mib, len(found.nodes), found.leftover, host.name


def _bind(cluster: Cluster, job: Job, host: Host, found: Fit, now: float) -> None:
    job.attempt_count += 1
    job.not_before_s = 0.0
    allocation = Allocation(
        id=f"{job.id}.{job.attempt_count}",
        job=job.id,
        attempt=job.attempt_count,
        host=host.name,
        session=host.session,
        units=found.units,
        nodes=found.nodes,
        cores=found.cores,
        memory_mib=found.memory_mib,
        created_s=now,
    )
    job.attempts.append(Attempt(job.attempt_count, host.name, found.units, now))
    cluster.reserve(allocation)
    cluster.dirty.allocations.add(allocation.id)
    cluster.dirty.created.add(allocation.id)
    cluster.change_job(job, JobEvent.PLACED, now, f"placed on {host.name}")


def retract(cluster: Cluster, allocation: Allocation, now: float, reason: str) -> None:
    """Undo a placement that the store certainly does not have: the attempt never was."""
    job = cluster.jobs[allocation.job]
    cluster.release(allocation)
    cluster.dirty.allocations.discard(allocation.id)
    cluster.dirty.created.discard(allocation.id)
    job.attempts.pop()
    job.attempt_count -= 1
    cluster.change_job(job, JobEvent.RETRACTED, now, reason)
