"""Sets of victims on one host: which to look at, the smallest and youngest first, and what to do where they are many.

VMs that leave the same behind are of one *kind*. Of each kind the youngest leave first, so for so many of each kind
there is one set to look at, and no other can be better. Where even these are too many, a set is found greedily, and
then all are let off, the oldest first, who could stay after all.

It must never end with a set of which one could stay. It computes, on copies of hosts, and says now and then what it has
cost (`core/work.py`), so that others may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from ..state.facts import UnitState
from ..state.hosts import Allocation, Host
from ..work import Work
from .victims import Victims, ages

Works = Callable[[Victims], bool]  # whether it is enough that these leave; it is asked for each try


def kinds(host: Host, victims: Iterable[Allocation], own: Collection[str] = ()) -> list[list[Allocation]]:
    """The victims by what they leave behind, in their order. Those of `own` are each of a kind of their own."""
    node_of = {core: node.id for node in host.nodes.values() for core in node.cores}
    found: dict[tuple[object, ...], list[Allocation]] = {}
    for victim in victims:
        key = (victim.id if victim.id in own else "", *_left_behind(host, victim, node_of))
        found.setdefault(key, []).append(victim)
    return list(found.values())


def _left_behind(
    host: Host, victim: Allocation, node_of: dict[tuple[int, ...], int]
) -> Iterator[object]:  # all that `fit` can see of it, and `gangs/arrange.py`
    units = []
    for name in victim.units:
        if (unit := host.units.get(name)) is not None and host.held.get(name) == victim.id:
            report = host.reports.get(name)
            lame = report is not None and report.state is UnitState.QUARANTINED
            out = (unit.unfit, name in host.sick, lame)
            units.append((unit.model, unit.memory_mib, unit.node, unit.root, unit.vendor, unit.nic, *out))
    yield tuple(sorted(units))
    yield victim.nodes, victim.memory_mib, victim.hugepage_size_kib
    yield tuple(sorted((node_of.get(core, -1), len(core)) for core in victim.cores))
    yield victim.labels, victim.apart, victim.whole_host


def sets_of(size: int, kinds_: Sequence[Sequence[Allocation]]) -> Iterator[Victims]:
    """For so many of each kind, `size` in all, the youngest of each; first those with many of the first kinds."""
    if not size:
        yield ()
        return
    if not kinds_ or sum(map(len, kinds_)) < size:
        return
    first, others = kinds_[0], kinds_[1:]
    for count in range(min(size, len(first)), -1, -1):
        for rest in sets_of(size - count, others):
            yield (*first[:count], *rest)


def youngest_first(victims: Iterable[Allocation]) -> Victims:
    """In the order in which victims are told."""
    return tuple(sorted(victims, key=lambda a: (-a.created_s, a.id)))


def largest_first(victims: Iterable[Allocation]) -> list[Allocation]:
    """By GPUs, then the youngest: the fewest that have so many GPUs come first."""
    return sorted(victims, key=lambda a: (-len(a.units), -a.created_s, a.id))


def greedy(orders: Iterable[Sequence[Allocation]], works: Works) -> Work[Victims | None]:
    """Of each order as many from its begin as it takes, without those who could stay; the smallest, youngest of these.

    None: all of them together are not enough.
    """
    best: Victims | None = None
    for order in orders:
        if not works(tuple(order)):
            yield 1
            continue
        low, high = 0, len(order)  # the first so many are not enough, as far as is known; these are
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if works(tuple(order[:middle])) else (middle, high)
            yield 1
        found = yield from needed(order[:high], works)
        if best is None or _worth(found) < _worth(best):
            best = found
    return best


def needed(victims: Iterable[Allocation], works: Works, cost: int = 1) -> Work[Victims]:
    """Of those who are enough together the ones that are needed: none of them could stay. The oldest is let off first.
    `cost`: of a try.

    Who is needed stays so when fewer leave, if the more leave the more room there is. That is not so where the job is
    to be near somebody; so it looks again once anybody was let off.
    """
    left = youngest_first(victims)
    again = True
    while again:
        again = False
        for victim in reversed(left):
            fewer = tuple(other for other in left if other is not victim)
            if works(fewer):
                left, again = fewer, True
            yield cost
    return left


def _worth(victims: Victims) -> tuple[int, tuple[float, ...], tuple[str, ...]]:
    """The less, the better."""
    return len(victims), ages(victims), tuple(sorted(a.id for a in victims))
