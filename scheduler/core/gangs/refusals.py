"""Gangs that found no room for all: not judged again before something has changed that could lift that.

To judge a gang is to find seats for all of it and, where room for restarts is kept, to bind its members one by one and
to take them back: the dearest question that placement asks. Its answer follows from what the gang asks, what sets its
members apart (hosts where they failed, who shuns them, whether they ran before), where places are kept from it, and
what is free and promised. All but the last is in the key here; the last has a count: `Cluster.capacity_epoch`, which
grows whenever something is set free, and restarts that were placed, which may open gaps, and a gap blocks nobody.

It must never keep out a gang that might have room: what is not certain to be the same is judged anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from ..fitting.own import case
from ..reservation.domains import ran_before, restartable
from ..state.cluster import Cluster
from ..state.jobs import Job
from .arrange import Ask


@dataclass(slots=True)
class Refusals:
    """See the module docstring. Belongs to one cluster."""

    known: set[Hashable] = field(default_factory=set)
    seen: tuple[int, int] = (-1, -1)

    def out(self, cluster: Cluster, moved: int, key: Hashable) -> bool:
        """Whether this was refused, and nothing has changed since; `moved` counts the restarts that were placed."""
        if self.seen != (now_seen := (cluster.capacity_epoch, moved)):
            self.seen = now_seen
            self.known.clear()
        return key in self.known


def key_of(cluster: Cluster, members: Sequence[Job], ask: Ask, barred: Iterable[str]) -> Hashable:
    """All that a judgement of them hangs on, beside what hosts have free and what is promised."""
    first = members[0]
    promised = restartable(first), first.terms.preemptible, any(map(ran_before, members))
    apart = tuple(case(cluster, member) for member in members)
    tries = tuple((m.id, m.attempt_count) for m in members) if any(m.attempts for m in members) else ()
    kept = frozenset(barred)
    return ask, len(members), promised, apart if any(apart) else (), tries, kept
