"""Whether the room that the site keeps for restarts is kept: asked of the leader's own cluster after each placement.

A first start must leave every failure domain covered that was covered without it. That is asked of a copy, from
scratch, so neither witnesses nor indexes of the one that decided are believed. Restarts may use the room: a placement
with one among it is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy

from gpupool.store import keys
from gpupool.store.port import Change
from scheduler.core.reservation.domains import ran_before
from scheduler.core.reservation.reserve import Reserve
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.tables import JobState


class KeptRoom:
    """`leaders` gives the clusters of all who believe to lead."""

    def __init__(self, leaders: Callable[[], Iterable[Cluster]]) -> None:
        self._leaders = leaders
        self._known: set[str] = set()
        self.asked = 0

    def changed(self, changes: Sequence[Change]) -> Iterator[str]:
        """What one revision may not bring."""
        made = [change.key.rpartition("/")[2] for change in changes if _made(change)]
        for cluster in self._leaders():
            if made and all(name in cluster.allocations for name in made):
                yield from self._placed(cluster)

    def _placed(self, cluster: Cluster) -> Iterator[str]:
        """The cluster has all that was placed in this turn, though some may not be written yet."""
        new = sorted(cluster.allocations.keys() - self._known)
        self._known.update(new)
        jobs = [cluster.jobs[cluster.allocations[name].job] for name in new]
        if not new or any(ran_before(job) for job in jobs):
            return
        self.asked += 1
        copy = deepcopy(cluster)  # dear; once is enough, as looking leaves no trace
        after = Reserve(copy, once=True).covered()
        before = Reserve(_without(copy, new), once=True).covered()
        for domain in sorted(domain for domain, covered in before.items() if covered and not after.get(domain, True)):
            yield f"the first start of {', '.join(new)} takes the room that {domain} needs"


def _made(change: Change) -> bool:
    kv, parsed = change.kv, keys.parse(change.key)
    made = kv is not None and kv.create_revision == kv.mod_revision
    return made and parsed is not None and parsed[0] is keys.Kind.ALLOCATION


def _without(cluster: Cluster, names: Iterable[str]) -> Cluster:
    for name in names:
        job = cluster.jobs[cluster.allocations[name].job]
        cluster.release(cluster.allocations[name])
        job.state, job.attempts = JobState.PENDING, job.attempts[:-1]
    return cluster
