"""Fair share: what each tenant has of the cluster now, and has had lately, by its weight. Who has the least goes first.

A tenant's dominant share is the largest of its shares of GPUs, CPUs and memory (Ghodsi et al., "Dominant Resource
Fairness: Fair Allocation of Multiple Resource Types", NSDI 2011), here divided by the tenant's weight. The past is an
exponentially decayed mean of it, with a half-life, as Slurm's multifactor priority decays usage
(PriorityDecayHalfLife): E(t + d) = E(t) * 2^(-d/h) + s * (1 - 2^(-d/h)). The order minds (s + E) / weight: what runs
counts at once, so that a turn which starts a hundred jobs is fair by itself.

It orders only; it keeps nobody from starting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..state.amounts import NOTHING, Amounts

if TYPE_CHECKING:
    from ..state.cluster import Cluster
    from ..state.facts import InventoryFact
    from .queues import Queues

NOTE_EVERY_S = 60.0  # how often what was used is put on record
_DIGITS = 9  # so that rounding of the machine orders nobody


@dataclass(slots=True)
class Shares:
    """`decayed` is as of `at_s`; the rest is found anew by each leader."""

    at_s: float = 0.0
    decayed: dict[str, float] = field(default_factory=dict)  # by tenant
    capacity: Amounts = NOTHING  # of all hosts that are known
    noted_s: float = 0.0  # when it was last put on record
    _hosts: dict[str, Amounts] = field(default_factory=dict)
    queues: Queues | None = None

    def host_has(self, host: str, amounts: Amounts) -> None:
        """A host's inventory has changed."""
        self.capacity = self.capacity.plus(amounts.minus(self._hosts.get(host, NOTHING)))
        self._hosts[host] = amounts

    def of(self, tenant: str) -> float:
        """By what the queue is ordered: past and present, by weight. With one queue there is nobody to be fair to."""
        if self.queues is None or len(self.queues.known) == 1:
            return 0.0
        weight = sum(self.queues.known[q].weight for q in self.queues.of_tenant(tenant) if q in self.queues.known)
        return round((self.dominant(tenant) + self.decayed.get(tenant, 0.0)) / (weight or 1), _DIGITS)

    def dominant(self, tenant: str) -> float:
        """The largest of its present shares."""
        used, queues = NOTHING, self.queues
        if queues is None:
            return 0.0
        for queue in queues.of_tenant(tenant):
            used = used.plus(queues.used.get(queue, NOTHING))
        return max(have / all_ if all_ else 0.0 for have, all_ in zip(used, self.capacity, strict=True))


def look(cluster: Cluster, now: float) -> None:
    """Bring what was used up to `now`."""
    shares, queues = cluster.books.shares, cluster.books.queues
    if len(queues.known) == 1:
        return
    half_life_s, past_s = cluster.policy.fair_share.half_life_s, max(0.0, now - (shares.at_s or now))
    keeps = 2.0 ** (-past_s / half_life_s) if half_life_s else 0.0
    tenants = {q.tenant for q in queues.known.values()} | {queues.tenant(queue) for queue in queues.used}
    for tenant in sorted(tenants | shares.decayed.keys()):
        found = shares.decayed.get(tenant, 0.0) * keeps + shares.dominant(tenant) * (1.0 - keeps)
        shares.decayed[tenant] = found if half_life_s else 0.0
        if found < 1e-9:
            del shares.decayed[tenant]
    shares.at_s = now
    if not 0 <= now - shares.noted_s < NOTE_EVERY_S and half_life_s:
        shares.noted_s, cluster.dirty.shares = now, True


def capacity_of(fact: InventoryFact | None) -> Amounts:
    """What a host has."""
    if fact is None:
        return NOTHING
    cpus = sum(sum(map(len, cores)) for _, cores, _ in fact.nodes)
    return Amounts(len(fact.units), cpus, sum(memory_mib for _, _, memory_mib in fact.nodes))
