"""What is still owed to the world outside, derived from committed state, so that a new leader owes the same.

The alarm for a host whose VMs nobody can prove dead, and the command to switch such a host off.
"""

from __future__ import annotations

from dataclasses import dataclass

from .failover.power import PowerOff, power_owed, told, under_way
from .state.cluster import Cluster


@dataclass(frozen=True, slots=True)
class EvidenceWanted:
    """A host is in FENCING and its jobs cannot be restarted: an operator must look. `power`: how that stands."""

    host: str
    session: int
    since_s: float
    jobs: tuple[str, ...]
    power: str = ""


Effect = EvidenceWanted | PowerOff


def todo(cluster: Cluster, now: float) -> list[Effect]:
    """Effects owed now: alarms by host name, then hosts to be switched off, by name."""
    owed: list[Effect] = []
    for name in sorted(cluster.unproven):
        host = cluster.hosts[name]
        if not under_way(cluster, host):
            jobs = tuple(sorted({cluster.allocations[a].job for a in host.allocations}))
            owed.append(EvidenceWanted(name, host.session, host.since_s, jobs, told(cluster, host, now)))
    return [*owed, *power_owed(cluster, now)]
