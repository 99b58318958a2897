"""Hosts whose loss nobody could prove, and fence devices of hosts that nobody knows: told before a death, not at it.

It decides nothing: `core/proof.py` says what the end of a lease proves, with the policy of the replica that answers.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpupool.store.keys import Kind
from gpupool.v1 import records_pb2, scheduler_pb2

from .core.policy import Policy
from .core.proof import why_unprovable
from .decode import guard_of
from .mirror import Mirror

_LIVE = (records_pb2.HOST_STATE_JOINING, records_pb2.HOST_STATE_READY)


def unprovable(mirror: Mirror, policy: Policy) -> Iterator[scheduler_pb2.Unprovable]:
    """Hosts that live, and why their loss would prove nothing; by name."""
    for (name,), record in sorted(mirror.all(Kind.HOST, records_pb2.HostRecord).items(), key=lambda found: found[0]):
        session = mirror.get(Kind.SESSION, records_pb2.Session, name)
        if record.state not in _LIVE or session is None:
            continue
        guard = guard_of(0 if session.unguarded else session.guard)
        why = why_unprovable(name, guard, policy, simulated=session.simulated, unguarded=session.unguarded)
        if why:
            yield scheduler_pb2.Unprovable(host=name, why=why)


def powered_unknown(mirror: Mirror, policy: Policy) -> list[str]:
    """Names in the file of fence devices that no host has: a slip, or a host that has never been there."""
    return sorted(policy.powered - {ids[0] for ids in mirror.ids(Kind.HOST)})
