"""Which hosts may have so many GPUs the soonest, by who leaves them when: kept up by what has changed.

A place by limits of time is looked for first where GPUs are free the soonest, whatever else a host lacks. To look up
who leaves 10,000 hosts when takes a large part of a second; so only those are looked at of which something has changed
since the last time: what is taken there and whether it is open (`Cluster.movers`), and when somebody leaves
(`Cluster.leaving`).

What it says must always be what looking all up anew would give. It may be looked up with pauses, as a search for
victims is (`core/work.py`): nothing may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import nsmallest
from math import inf

from ..fitting.fit import closed
from ..state.cluster import Cluster
from ..state.hosts import Allocation, Host
from ..state.jobs import Job
from ..work import Work
from .claims import ends

KINDS = 32  # that are known; all are forgotten when there is one more
_LOOKED, _RECKONED, _SORTED = 3, 10, 300  # hosts in the time of a try: looked up, reckoned with, put in order

Kind = tuple[int, tuple[str, ...]]  # GPUs, and of which models; (): any


@dataclass(slots=True)
class Leavers:
    """See the module docstring. Belongs to one cluster."""

    _leave: dict[str, list[tuple[float, Allocation]]] = field(default_factory=dict)  # of hosts that are open
    _soonest: dict[Kind, dict[str, float]] = field(default_factory=dict)  # by host; minus infinity: it has them now
    _seen: tuple[int, int] = (-1, -1)  # of the cluster's logs, up to which this is fresh

    def soonest(
        self, cluster: Cluster, job: Job, now: float, count: int, but: Collection[str]
    ) -> Work[list[tuple[float, str]]]:
        """Up to `count` hosts where the job may have its GPUs the soonest, and when; none of `but`."""
        yield from self._refresh(cluster)
        table = yield from self._table(cluster, _kind(job))
        yield 1 + len(table) // _SORTED
        return nsmallest(count, ((max(at_s, now), name) for name, at_s in table.items() if name not in but))

    def _refresh(self, cluster: Cluster) -> Work[None]:
        logs = cluster.movers, cluster.leaving
        told = [log.since(seen) if seen >= 0 else None for log, seen in zip(logs, self._seen, strict=True)]
        moved = list(cluster.hosts) if None in told else dict.fromkeys(name for names in told for name in names or ())
        for number, name in enumerate(moved):
            self._look(cluster, cluster.hosts[name])
            yield int(number % _LOOKED == 0)
        self._seen = cluster.movers.end, cluster.leaving.end

    def _look(self, cluster: Cluster, host: Host) -> None:
        self._leave.pop(host.name, None)
        if closed(host) is None:
            self._leave[host.name] = ends(cluster, host, -inf)
        for kind, table in self._soonest.items():
            self._reckon(host, kind, table)

    def _table(self, cluster: Cluster, kind: Kind) -> Work[dict[str, float]]:
        table = self._soonest.get(kind)
        if table is None:
            if len(self._soonest) >= KINDS:
                self._soonest.clear()
            table = {}
            for number, name in enumerate(self._leave):
                self._reckon(cluster.hosts[name], kind, table)
                yield int(number % _RECKONED == 0)
            self._soonest[kind] = table
        return table

    def _reckon(self, host: Host, kind: Kind, table: dict[str, float]) -> None:
        leave = self._leave.get(host.name)
        at_s = inf if leave is None else _enough_s(host, leave, *kind)
        if at_s < inf:
            table[host.name] = at_s
        else:
            table.pop(host.name, None)


def _kind(job: Job) -> Kind:
    request = job.request
    models = request.rules.models if request.rules is not None else ()
    return request.gpus, models or ((request.model,) if request.model else ())


def _enough_s(host: Host, leave: list[tuple[float, Allocation]], gpus: int, models: tuple[str, ...]) -> float:
    """When it may have so many at the earliest; infinity: not by what is known."""
    free = _count(host, host.units.keys() - host.held.keys(), models)
    if free >= gpus:
        return -inf
    for at_s, allocation in leave:
        free += _count(host, allocation.units, models)
        if free >= gpus:
            return at_s
    return inf


def _count(host: Host, units: Collection[str], models: tuple[str, ...]) -> int:
    if not models:
        return len(units)
    return sum(name in host.units and host.units[name].model in models for name in units)
