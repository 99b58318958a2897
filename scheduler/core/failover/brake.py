"""The mass failure brake: too much lost at once is hardly the hosts' own fault, and haste makes it worse.

While it is on, nothing that was lost is restarted and nothing is switched off. Knowledge goes on: evidence is taken,
hosts come back. New jobs are placed on healthy hosts; what the lost ones will need is kept free for them only by the
site's reservation. It is a state of its own, kept on record: it ends by time or by an operator, never because a leader
died.

What a new leader finds lost counts as lost together, at that moment. Nobody saw when it happened, and a power cut that
also hit the scheduler looks just like that. Losses on record are not counted anew.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from math import inf

from ..state.cluster import Cluster
from ..state.hosts import Host
from ..state.losses import Brake
from ..state.skew import lost_at_s, no_earlier
from ..state.tables import HostState, Transition

_UNPROVEN = frozenset({HostState.SUSPECT, HostState.FENCING})
LOSSES_KEPT = 16  # times, of one host


def planned(host: Host) -> bool:
    """Whether an operator works on it, so that its loss surprises nobody."""
    return host.intent.maintenance or host.intent.drain is not None


def host_lost(cluster: Cluster, host: Host, now: float) -> None:
    """A host has lost its session, and perhaps it is one too many."""
    host.lost_s = (*host.lost_s, lost_at_s(cluster, host, now))[-LOSSES_KEPT:]
    cluster.lately.add(host.name)
    if cluster.brake is None:
        consider(cluster, now)
    elif not cluster.intent.disarmed:
        hosts = cluster.brake.hosts
        at = bisect_left(hosts, host.name)
        if hosts[at : at + 1] != (host.name,):
            hosts = (*hosts[:at], host.name, *hosts[at:])
        cluster.brake = replace(cluster.brake, until_s=_until_s(cluster, now), hosts=hosts)
        cluster.dirty.cluster = True


def consider(cluster: Cluster, now: float) -> None:
    """Put the brake on if too much is lost. Call it when something was lost, or fencing was armed."""
    if cluster.brake is not None or cluster.intent.disarmed or _surely_few(cluster):
        return  # disarmed, losses are to be expected; they are weighed when it is armed again
    window_s = cluster.policy.brake.window_s
    times = {name: _lost_s(cluster, cluster.hosts[name]) for name in cluster.lately}
    cluster.lately = {name for name, at_s in times.items() if at_s >= now - window_s}
    lost = sorted(cluster.lately)
    if why := _too_much(cluster, lost):
        since_s = no_earlier(now, cluster.intent.brake_released_s)
        cluster.brake = Brake(since_s, _until_s(cluster, now), why, tuple(lost))
        cluster.log.append(Transition("cluster", "brake", "off", "on", why))
        cluster.dirty.cluster = True
        cluster.requeue_lost()


def _until_s(cluster: Cluster, now: float) -> float:
    cooldown_s = cluster.policy.brake.cooldown_s
    return now + cooldown_s if cooldown_s else 0.0


def _surely_few(cluster: Cluster) -> bool:
    """Whether even with all that may count it is not too much: known at once, however many hosts there are."""
    policy, most = cluster.policy.brake, len(cluster.lately)
    by_number = 0 < policy.hosts <= most
    known = len(cluster.alive) + most - len(cluster.alive & cluster.lately)
    by_share = policy.share > 0 and most >= max(policy.at_least, policy.share * known)
    return bool(cluster.alive) and not by_number and not by_share


def armed(cluster: Cluster, now: float) -> None:
    """Fencing is armed again: what is still away counts as lost now."""
    cluster.lately.update(host.name for host in cluster.hosts.values() if host.state in _UNPROVEN)
    consider(cluster, now)


def look(cluster: Cluster, now: float) -> None:
    """End the brake if its time has come, or an operator said so."""
    brake = cluster.brake
    if brake is None:
        return
    if cluster.intent.brake_released_s >= brake.since_s:
        _end(cluster, now, f"{cluster.intent.brake_by}: {cluster.intent.brake_reason}")
    elif 0 < brake.until_s <= now:
        _end(cluster, now, f"no other host was lost for {cluster.policy.brake.cooldown_s:.0f} s")


def nothing_lives(cluster: Cluster) -> bool:
    """Whether every host is lost: then the fault is probably here, and nothing is done to anybody."""
    return not cluster.alive


def in_words(brake: Brake, now: float) -> str:
    """What keeps jobs waiting, and for how long."""
    ends = f"it ends in {brake.until_s - now:.0f} s if no other host is lost, or" if brake.until_s else "it ends"
    return f"the mass failure brake is on, as {brake.reason}; {ends} when an operator releases it"


def _end(cluster: Cluster, now: float, why: str) -> None:
    losses = (cluster.hosts[name].lost_s[-1:] for name in cluster.lately)
    cluster.brake, cluster.settled_s = None, max([now, *(at_s for last in losses for at_s in last)])
    cluster.dirty.cluster = True
    cluster.log.append(Transition("cluster", "brake", "on", "off", why))
    cluster.requeue_lost()


def _lost_s(cluster: Cluster, host: Host) -> float:
    """When the host was lost, as far as the brake minds; -inf: it was not, or that is settled.

    Losses of a time of disarmament count only for hosts that are still away when it ends, as of then.
    """
    if not host.lost_s:
        return -inf
    last_s, armed_s = host.lost_s[-1], cluster.intent.at_s
    if host.state in _UNPROVEN:
        last_s = max(last_s, armed_s)
    elif host.name in cluster.alive and last_s < armed_s:
        return -inf
    return last_s if last_s > cluster.settled_s else -inf


def _too_much(cluster: Cluster, lost: list[str]) -> str:
    """Why the loss of these hosts within the window is too much; "": it is not."""
    policy = cluster.policy.brake
    alive = cluster.alive
    known = len(alive.union(lost))
    still = [name for name in lost if cluster.hosts[name].lost_s[-1] < cluster.intent.at_s]
    when = ", or still lost when fencing was armed" if still else ""
    found = f"{len(lost)} of {known} hosts were lost within {policy.window_s:.0f} s{when}"
    by_number = 0 < policy.hosts <= len(lost)
    by_share = policy.share > 0 and len(lost) >= max(policy.at_least, policy.share * known)
    everything = not alive and len(lost) > 1
    return found if by_number or by_share or everything else ""
