"""Whether what etcd's members say lets VMs live past their deadline. Pure. The proof is in docs/failover.md.

A lease ends only by the word of a member that leads and whose lessor found it expired; and whoever begins to lead gives
every lease its full TTL afresh. So if every member, each at some time of a poll that began at s, was no leader and is
one later, it has begun to lead after s, and our lease lives until s + TTL. That needs no clock but ours and no election
timeout. It must never count a member that said nothing, never look at a majority only, and never move a deadline that
has passed.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.store.port import Poll, Sight

MAX_TTL_S = 300
"""etcd checkpoints leases with a longer TTL, where that is switched on: a new leader then starts them with less."""

MAX_LIST_AGE_S = 60.0
"""How old the list of members may be, at the last renewal. Who is added to the cluster later is not asked."""

_NO_LEADER = (Sight.NO_LEADER, Sight.NOT_RUNNING)


@dataclass(frozen=True, slots=True)
class Ride:
    """Until when VMs may live, on the boot clock, and the reason why it is no later than before; empty: it is later."""

    kill_at_s: float
    refusal: str = ""


def ride(
    poll: Poll, kill_at_s: float, began_s: float, ended_s: float, *, ttl_s: float, margin_s: float, list_age_s: float
) -> Ride:
    """Until when VMs may live after a poll that ran from `began_s` to `ended_s`."""
    refusal = _refusal(poll, ttl_s, list_age_s)
    if not refusal and ended_s >= kill_at_s:
        refusal = "the deadline has passed"
    if refusal:
        return Ride(kill_at_s, refusal)
    return Ride(max(kill_at_s, began_s + ttl_s - margin_s))


def _refusal(poll: Poll, ttl_s: float, list_age_s: float) -> str:
    if ttl_s > MAX_TTL_S:
        return f"a TTL of {ttl_s:g} s is beyond {MAX_TTL_S} s, where etcd may keep checkpoints of leases"
    if poll.doubt:
        return poll.doubt
    if list_age_s > MAX_LIST_AGE_S:
        return f"the list of members was {list_age_s:.0f} s old at the last renewal"
    unproven = [f"{name} {sight.value}" for name, sight in poll.members if sight not in _NO_LEADER]
    if unproven:
        return "; ".join(unproven)
    # A firewall that refuses connections looks like a cluster that is not running: one member must answer in person.
    if not any(sight is Sight.NO_LEADER for _, sight in poll.members):
        return "no member answers"
    return ""
