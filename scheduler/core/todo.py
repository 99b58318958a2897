"""What is still owed to the world outside, derived from committed state, so that a new leader owes the same.

Today that is the alarm for a host whose VMs nobody can prove dead. Power fencing will be found here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .model import Cluster
from .tables import HostState


@dataclass(frozen=True, slots=True)
class EvidenceWanted:
    """A host is in FENCING and its jobs cannot be restarted: an operator must look."""

    host: str
    session: int
    since_s: float
    jobs: tuple[str, ...]


def todo(cluster: Cluster) -> list[EvidenceWanted]:
    """Effects owed now, by host name."""
    owed = []
    for name in sorted(cluster.hosts):
        host = cluster.hosts[name]
        if host.state is HostState.FENCING:
            jobs = tuple(sorted({cluster.allocations[a].job for a in host.allocations}))
            owed.append(EvidenceWanted(name, host.session, host.since_s, jobs))
    return owed
