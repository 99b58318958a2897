"""Hosts whose loss nobody could prove, and fence devices of hosts that nobody knows: told before a death, not at it.

It decides nothing: `core/failover/proof.py` says what the end of a lease proves, with the policy of the replica that
answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from gpupool.store.keys import Kind
from gpupool.store.port import Store, StoreError
from gpupool.v1 import records_pb2, scheduler_pb2

from ..codec.decode import device_of, guard_of
from ..core.failover.devices import mismatch, owner
from ..core.failover.proof import why_unprovable
from ..core.state.policy import Policy
from ..mirror.mirror import Mirror

_LIVE = (records_pb2.HOST_STATE_JOINING, records_pb2.HOST_STATE_READY)


def unprovable(mirror: Mirror, policy: Policy) -> Iterator[scheduler_pb2.Unprovable]:
    """Hosts that live, and why their loss would prove nothing; by name."""
    for (name,), record in sorted(mirror.all(Kind.HOST, records_pb2.HostRecord).items(), key=lambda found: found[0]):
        session = mirror.get(Kind.SESSION, records_pb2.Session, name)
        if record.state not in _LIVE or session is None:
            continue
        guard = guard_of(0 if session.unguarded else session.guard)
        why = why_unprovable(
            name, guard, policy, simulated=session.simulated, unguarded=session.unguarded,
            not_its_own=not_its_own(name, record, policy),
        )  # fmt: skip
        if why:
            yield scheduler_pb2.Unprovable(host=name, why=why)


def not_its_own(name: str, record: records_pb2.HostRecord, policy: Policy) -> str:
    """Why the host's fence device proves nothing of its session, as things are on record; "": it does, or has none.

    Of a host that lives, a leader with this file learns at once whose a device is that nobody knows yet.
    """
    device, known = policy.powered.get(name), [device_of(wire) for wire in record.fence_devices]
    if device is None or not record.session or (record.state in _LIVE and owner(device, known) is None):
        return ""
    return mismatch(name, device, known, record.session, record.machine)


def powered_unknown(mirror: Mirror, policy: Policy) -> list[str]:
    """Names in the file of fence devices that no host has: a slip, or a host that has never been there."""
    return sorted(policy.powered.keys() - {ids[0] for ids in mirror.ids(Kind.HOST)})


def in_words(mirror: Mirror, policy: Policy) -> Iterator[str]:
    """The same, one line each."""
    for name in powered_unknown(mirror, policy):
        yield f"{name}: no host is known by this name; a slip in the power file?"
    for each in unprovable(mirror, policy):
        yield f"{each.host}: nobody could prove its loss: {each.why}"


async def compare(store: Store, policy: Policy, patience_s: float = 3.0) -> list[str]:
    """What is to be said of the hosts that are known, for who has a store and no replica; also that it is away."""
    mirror = Mirror(store, time.time)
    task = asyncio.create_task(mirror.run())
    try:
        async with asyncio.timeout(patience_s):
            await mirror.synced.wait()
        return list(in_words(mirror, policy))
    except (StoreError, TimeoutError):
        return ["etcd does not answer, so the names in the file were compared with no hosts"]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
