"""Hosts that are lost again and again: held out until an operator has looked, so that they take no more jobs down.

It keeps a host from getting new VMs, never from running those that it has.
"""

from __future__ import annotations

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.skew import no_earlier
from ..state.tables import Transition


def host_lost(cluster: Cluster, host: Host, now: float) -> None:
    """A host has lost its session, and `lost_s` says so: and perhaps once too often."""
    policy = cluster.policy.flap
    since_s = max(now - policy.window_s, host.intent.uncordoned_s)
    losses = sum(at_s >= since_s for at_s in host.lost_s)
    if host.held_out or not 0 < policy.losses <= losses:
        return
    host.held_out = f"it was lost {losses} times within {policy.window_s:.0f} s; uncordon it once it is mended"
    host.held_out_s = no_earlier(now, host.intent.uncordoned_s)
    _changed(cluster, host, "in", "held out", host.held_out)


def intent_changed(cluster: Cluster, host: Host) -> None:
    """An operator's uncordon lets in what was held out before it."""
    if not host.held_out or host.intent.uncordoned_s <= host.held_out_s:
        return
    host.held_out, host.held_out_s = "", 0.0
    _changed(cluster, host, "held out", "in", "an operator uncordoned it")


def _changed(cluster: Cluster, host: Host, before: str, after: str, reason: str) -> None:
    cluster.dirty.hosts.add(host.name)
    cluster.touch(host)
    cluster.log.append(Transition("host", host.name, before, after, reason))
