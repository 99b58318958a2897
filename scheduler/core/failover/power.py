"""Power fencing, as far as it is decided: which hosts are to be switched off now, and what a try has proven.

It decides that a host may be switched off only while it is lost, has VMs that nobody can prove dead, and neither the
brake nor an operator forbids it. It must never take a try for proof about any other session than the one it was for,
nor of another machine than the device is of (`devices.py`):
a host that is off at time t has no VM of a boot that began before t, and a session never outlives its boot; but the
next boot may begin right after t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..state.cluster import Cluster
from ..state.events import PowerFenced
from ..state.hosts import Host
from ..state.losses import PowerFencing
from ..state.tables import HostState
from .brake import nothing_lives
from .devices import not_its_own

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 300.0


@dataclass(frozen=True, slots=True)
class PowerOff:
    """A host shall be switched off, to prove that the VMs of its lost `session` are dead."""

    host: str
    session: int


def power_owed(cluster: Cluster, now: float) -> list[PowerOff]:
    """Hosts to be switched off now, by name."""
    if withheld(cluster):
        return []
    return [PowerOff(host.name, host.session) for host in _wanted(cluster) if _next_s(host, now) <= now]


def next_power_s(cluster: Cluster, now: float) -> float | None:
    """When another try is due that is not due yet; None: no such thing is known."""
    if withheld(cluster):
        return None
    return min((due for host in _wanted(cluster) if (due := _next_s(host, now)) > now), default=None)


def withheld(cluster: Cluster) -> str:
    """Why nothing is switched off at all; "": it may be."""
    if cluster.intent.disarmed:
        return "fencing is disarmed"
    if cluster.brake is not None:
        return "the mass failure brake is on"
    return "no host lives, so that the fault may be here" if nothing_lives(cluster) else ""


def power_fenced(cluster: Cluster, host: Host, event: PowerFenced) -> None:
    """A try has ended. What it was for must still be so, or it says nothing."""
    if host.state is not HostState.FENCING or event.session != host.session:
        return
    if host.taken_by() is not None:
        return  # nobody knows which of the two machines it was
    if not_its_own(cluster, host):
        return  # it was another machine than that of this session
    before = _tried(host)
    if before is not None and (event.at_s, event.off) == (before.last_s, not before.error):
        return  # told again; an earlier one may have been dated later, by the clock of another leader
    tries = before.tries + 1 if before is not None else 1
    error = "" if event.off else event.detail or "it failed, and did not say why"
    next_s = event.at_s + min(FIRST_RETRY_S * 2 ** min(tries - 1, 30), LONGEST_RETRY_S)
    detail = event.detail if event.off else ""
    host.power = PowerFencing(event.device, event.session, tries, event.at_s, next_s, error, detail, host.machine)
    cluster.dirty.hosts.add(host.name)


def seen_off(host: Host) -> str:
    """The wording of the proof that the host was off after it had lost its session; "": there is none."""
    power = _tried(host)
    if power is None or power.error or power.machine != host.machine:
        return ""
    after_s = max(0.0, power.last_s - host.since_s)
    more = f" ({power.detail})" if power.detail else ""
    return f"{power.device} saw its power off, {after_s:.0f} s after the loss{more}"


def told(cluster: Cluster, host: Host, now: float) -> str:
    """How it stands with power fencing of a host in FENCING, for people; "": nothing can switch it off."""
    if (other := host.taken_by()) is not None:
        sure = "holds" if host.machine and other.machine else "may hold"
        return (
            f"not used, as another machine {sure} the name: session {host.session} was of machine "
            f"{host.machine or 'unknown'} (boot {host.boot_id}), session {other.session} is of machine "
            f"{other.machine or 'unknown'} (boot {other.boot_id}). Make sure that the first is off, or that they are "
            f"one, then confirm-dead"
        )
    if host.name not in cluster.policy.powered:
        return ""
    if why := not_its_own(cluster, host):
        return f"not used, as {why}; else make sure that its machine is off, then confirm-dead"
    power = _tried(host)
    tries = "" if power is None or power.tries == 1 else f" {power.tries} times"
    failed = f"{power.device} failed{tries}: {power.error}" if power is not None and power.error else ""
    if why := withheld(cluster):
        return f"it is not switched off, as {why}" + (f" ({failed})" if failed else "")
    if not failed:
        return "it is being switched off"
    return f"{failed}; next try in {max(0.0, _next_s(host, now) - now):.0f} s"


def under_way(cluster: Cluster, host: Host) -> bool:
    """Whether the first try to switch it off has not ended yet: nobody need be called before it has."""
    first = host.name in cluster.policy.powered and _tried(host) is None
    return first and _would_help(cluster, host) and not withheld(cluster)


def _wanted(cluster: Cluster) -> Iterator[Host]:
    """Hosts whose power would be evidence, by name."""
    for name in sorted(cluster.policy.powered):
        host = cluster.hosts.get(name)
        if host is not None and _would_help(cluster, host):
            yield host


def _would_help(cluster: Cluster, host: Host) -> bool:
    if host.state is not HostState.FENCING or not host.allocations or seen_off(host):
        return False
    if host.taken_by() is not None or not_its_own(cluster, host):
        return False
    return host.fact is None or host.fact.session != host.session  # or else it lives


def _next_s(host: Host, now: float) -> float:
    """When the next try is due. One that is further off than any is was dated by a clock that was ahead: it is due."""
    power = _tried(host)
    return power.next_s if power is not None and power.next_s <= now + LONGEST_RETRY_S else 0.0


def _tried(host: Host) -> PowerFencing | None:
    """The last try for the present session."""
    return host.power if host.power is not None and host.power.session == host.session else None
