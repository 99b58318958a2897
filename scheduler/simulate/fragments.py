"""How much of what is free is of no use: the fragmentation of FGD, for whole units.

Weng et al., "Beware of Fragmentation" (USENIX ATC 2023), section 4: a host's free GPUs count as fragments for a kind of
task to the extent that such a task could not use them; the mean over the mix of tasks, here of those that ask for GPUs,
by how many they are. With whole units a task can use all of a host's free GPUs, or, if it does not fit there, none.
Whether it fits is the word of `fit`, so cores, memory, models and NUMA nodes count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..core.fitting.fit import Fit, fit
from ..core.state.cluster import Cluster
from ..core.state.facts import UnitState
from ..core.state.hosts import Host
from ..core.state.jobs import Request
from ..core.state.tables import HostState

KINDS = 48  # of tasks, those that are most; the others would change little, and cost as much


@dataclass(slots=True)
class Fragments:
    """Remembers what hosts answered until they change. Belongs to one cluster."""

    mix: tuple[tuple[Request, float], ...]
    _seen: dict[str, tuple[int, float, int]] = field(default_factory=dict)  # version, fragments, free

    @classmethod
    def of_tasks(cls, requests: Iterable[Request]) -> Fragments:
        """The mix of these."""
        counts = Counter(request for request in requests if request.gpus)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], repr(item[0])))[:KINDS]
        total = sum(count for _, count in ranked)
        return cls(tuple((request, count / total) for request, count in ranked))

    def of(self, cluster: Cluster) -> tuple[float, int]:
        """The part of the free GPUs of hosts in service that is fragments, from 0 to 1, and how many are free."""
        fragments, free = 0.0, 0
        for name in sorted(cluster.hosts):
            host = cluster.hosts[name]
            if host.state is HostState.READY:
                mine = self._host(host)
                fragments, free = fragments + mine[0], free + mine[1]
        return (fragments / free if free else 0.0), free

    def _host(self, host: Host) -> tuple[float, int]:
        seen = self._seen.get(host.name)
        if seen is None or seen[0] != host.version:
            free = sum(host.unit_state(unit) is UnitState.FREE for unit in host.units)
            useless = sum(part for request, part in self.mix if not isinstance(fit(host, request), Fit)) if free else 0
            seen = self._seen[host.name] = host.version, useless * free, free
        return seen[1], seen[2]
