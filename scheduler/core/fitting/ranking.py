"""The hosts that can take one shape, best first, kept up by what has changed since the last look.

It holds what `fit` says of each host as it is, and no more: `Ranking.fits` is always what asking all hosts anew would
give. The order ends in the host's name, so it is total. Taking the best of n costs log n, whatever n is. Each class of
GPUs has a heap: what a class costs (`valuation.py`) is added when they are compared, and may change without its hosts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.jobs import Request
from ..state.tables import HostState
from .alike import Alike
from .fit import Fit, closed, fit
from .valuation import Cost, Valuation

Rank = tuple[int, int, int, int, int, str]  # spread, lost, GPU memory, nodes, leftover, host
SPARE = 64  # entries of the heap that may be stale, beside as many as are not, before it is made anew


@dataclass(slots=True)
class FreeUnits:
    """Hosts by how many of their units nobody holds: who has too few need not be asked."""

    _count: dict[str, int] = field(default_factory=dict)
    _hosts: list[set[str]] = field(default_factory=list)  # by that number
    _position: int = -1

    def refresh(self, cluster: Cluster) -> None:
        """Take in what has changed."""
        if self._position == cluster.movers.end:
            return
        moved = cluster.movers.since(self._position) if self._position >= 0 else None
        for name in moved if moved is not None else list(cluster.hosts):
            self._note(cluster.hosts[name])
        self._position = cluster.movers.end

    def begin(self, cluster: Cluster) -> Iterator[None]:
        """Look at all hosts, one at a time, before the first refresh; nothing may change meanwhile."""
        for name in list(cluster.hosts):
            self._note(cluster.hosts[name])
            yield
        self._position = cluster.movers.end

    def _note(self, host: Host) -> None:
        count, before = free_units(host), self._count.get(host.name)
        if count == before:
            return
        if before is not None:
            self._hosts[before].discard(host.name)
        while len(self._hosts) <= count:
            self._hosts.append(set())
        self._count[host.name] = count
        self._hosts[count].add(host.name)

    def at_least(self, count: int) -> Iterator[str]:
        """The hosts with so many or more, in no order that matters."""
        for names in self._hosts[count:]:
            yield from names


@dataclass(slots=True)
class Ranking:
    """See the module docstring. For one shape, and one cluster."""

    values: Valuation
    alike: Alike = field(default_factory=Alike)
    fits: dict[str, tuple[Rank, Fit]] = field(default_factory=dict)
    _gpus: int = 0  # of the shape
    _heaps: dict[int, list[Rank]] = field(default_factory=dict)  # by class: every rank of `fits`, and some that were
    _entries: int = 0  # of all heaps
    _position: int = -1  # of the cluster's movers, up to which this is fresh
    _epoch: int = -1  # of the values

    def refresh(self, cluster: Cluster, request: Request, free: FreeUnits) -> None:
        """Ask those hosts that have changed since the last time."""
        for _ in self.refreshing(cluster, request, free):
            pass

    def refreshing(self, cluster: Cluster, request: Request, free: FreeUnits) -> Iterator[None]:
        """The same; at first, and if the values are others, all hosts one at a time. Nothing may change then."""
        moved = cluster.movers.since(self._position) if self._position >= 0 else None
        if moved is None:
            free.refresh(cluster)
            yield from self._from_scratch(cluster, request, list(free.at_least(request.gpus)))
        else:
            for name in moved:
                self._ask(cluster, request, name)
            if self._epoch != self.values.epoch:
                yield from self._revalue(cluster, request)
        self._position, self._epoch, self._gpus = cluster.movers.end, self.values.epoch, request.gpus

    def stale(self) -> bool:
        """Whether all hosts are to be looked at."""
        return self._position < 0 or self._epoch != self.values.epoch

    def _revalue(self, cluster: Cluster, request: Request) -> Iterator[None]:
        """What fits is as it was, but costs something else."""
        for name, (rank, found) in self.fits.items():
            cost = self._cost(cluster.hosts[name], found, request)
            self.fits[name] = (*cost, rank[2], rank[3], rank[4], name), found
            yield
        self._order(cluster)

    def _cost(self, host: Host, found: Fit, request: Request) -> Cost:
        if request.rules is not None:
            return self.values.cost(host, found, request)
        return self.alike.answer(host, request, self.values).cost

    def _from_scratch(self, cluster: Cluster, request: Request, names: Iterable[str]) -> Iterator[None]:
        self.fits.clear()
        for name in names:
            if (found := self._answer(cluster, cluster.hosts[name], request)) is not None:
                self.fits[name] = found
            yield
        self._order(cluster)

    def _ask(self, cluster: Cluster, request: Request, name: str) -> None:
        host = cluster.hosts[name]
        found = self._answer(cluster, host, request)
        if found is None:
            self.fits.pop(name, None)
            return
        before = self.fits.get(name)
        self.fits[name] = found
        if before is None or before[0] != found[0]:
            heapq.heappush(self._heaps.setdefault(self.values.kind(host), []), found[0])
            self._entries += 1
            if self._entries > 2 * len(self.fits) + SPARE:
                self._order(cluster)

    def _answer(self, cluster: Cluster, host: Host, request: Request) -> tuple[Rank, Fit] | None:
        """As `answer`, from what a host that is like it has said."""
        if request.rules is not None:
            return answer(cluster, host, request, self.values)
        if not placeable(cluster, host) or request.gpus > free_units(host) or closed(host) is not None:
            return None
        if 0 < cluster.policy.starts_at_once <= len(host.starting):
            return None
        given = self.alike.answer(host, request, self.values)
        if (found := given.fit) is None:
            return None
        return (*given.cost, found.gpu_memory_mib, len(found.nodes), found.leftover, host.name), found

    def _order(self, cluster: Cluster) -> None:
        self._heaps, self._entries = {}, len(self.fits)
        for name, (rank, _) in self.fits.items():
            self._heaps.setdefault(self.values.kind(cluster.hosts[name]), []).append(rank)
        for heap in self._heaps.values():
            heapq.heapify(heap)

    def _current(self, rank: Rank) -> bool:
        found = self.fits.get(rank[-1])
        return found is not None and found[0] == rank

    def best(self) -> tuple[Rank, Fit] | None:
        """The first in the order."""
        found: tuple[Rank, Rank] | None = None  # with its price, and without
        for kind, heap in sorted(self._heaps.items()):
            self._clear_top(heap)
            if heap and len(self._heaps) == 1:
                return self.fits[heap[0][-1]]
            if heap:
                rank, price = heap[0], self.values.price(kind, self._gpus)
                priced = (rank[0], rank[1] + price, *rank[2:])
                found = min(found, (priced, rank)) if found is not None else (priced, rank)
        return self.fits[found[1][-1]] if found is not None else None

    def _clear_top(self, heap: list[Rank]) -> None:
        while heap and not self._current(heap[0]):
            heapq.heappop(heap)
            self._entries -= 1

    def in_order(self) -> Iterator[tuple[Rank, Fit]]:
        """All of them, the best first, ranks without prices. What is not drawn costs nothing. Nothing may change."""
        walks = [self._walk(heap, self.values.price(kind, self._gpus)) for kind, heap in sorted(self._heaps.items())]
        for priced in walks[0] if len(walks) == 1 else heapq.merge(*walks):
            yield self.fits[priced[-1]]

    def _walk(self, heap: list[Rank], price: int) -> Iterator[Rank]:
        """The ranks of one class in order, with its price."""
        self._clear_top(heap)
        last: Rank | None = None
        edge = [(heap[0], 0)] if heap else []  # entries whose parents in the heap were drawn
        while edge:
            rank, index = heapq.heappop(edge)
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(heap):
                    heapq.heappush(edge, (heap[child], child))
            if rank != last and self._current(rank):
                yield (rank[0], rank[1] + price, *rank[2:])
            last = rank


def answer(cluster: Cluster, host: Host, request: Request, values: Valuation) -> tuple[Rank, Fit] | None:
    """What the host can give to the shape now, with its rank."""
    if not placeable(cluster, host) or request.gpus > free_units(host):
        return None  # a full host: told at a glance
    found = fit(host, request, cluster.policy.starts_at_once)
    if not isinstance(found, Fit):
        return None
    return _rank(host, found, request, values), found


def _rank(host: Host, found: Fit, request: Request, values: Valuation) -> Rank:
    cost = values.cost(host, found, request)
    return (*cost, found.gpu_memory_mib, len(found.nodes), found.leftover, host.name)


def placeable(cluster: Cluster, host: Host) -> bool:
    """Whether it is ready and its record committed. An allocation on record before the session that it is of would look
    to the next leader like one of the session before, and be given up as lost with it while its VM runs.
    """
    return host.state is HostState.READY and host.name not in cluster.dirty.hosts


def free_units(host: Host) -> int:
    """How many of its units nobody holds, whatever else keeps them from being handed out."""
    return len(host.units.keys() - host.held.keys())
