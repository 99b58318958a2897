"""A host with a quarantined unit, drained for a reboot or a look, if the site's policy says so.

What a device needs that no reset could mend is often power that is cut, and that takes the whole host. It decides
nothing that is kept: the order follows from the policy and from what agents say of their units, so it ends by itself
when the operator has the unit tried again and it is proven clean, and every leader finds it anew.

It must never hurt what runs on sound units for nothing: a VM is asked to stop only once there is a place for it. And it
is no word of an operator: that the host is lost meanwhile counts for the mass failure brake as any loss.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..state.cluster import Cluster
from ..state.facts import Drain, UnitState
from ..state.hosts import Host
from ..state.tables import Transition

POLICY = "drain_on_quarantine"


def reason(units: Iterable[str]) -> str:
    """Why a host is drained on which these units are quarantined; "": it is not."""
    found = sorted(units)
    if not found:
        return ""
    others = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"unit {found[0]}{others} quarantined ({POLICY}); retry-unit once it is mended"


def look(cluster: Cluster, host: Host) -> None:
    """Order the host's drain, or call it off, by what is known of it now. An operator's own drain comes before it."""
    if cluster.policy.drain_on_quarantine or host.ordered is not None:
        _order(cluster, host)
    (cluster.draining.discard if host.drain is None else cluster.draining.add)(host.name)


def _order(cluster: Cluster, host: Host) -> None:
    bad: list[str] = []
    if cluster.policy.drain_on_quarantine:  # whichever session said so: a quarantine outlives a reboot
        bad = [u for u in host.units if u in host.reports and host.reports[u].state is UnitState.QUARANTINED]
    wanted = Drain(0.0, POLICY, reason(bad), wait=True) if bad else None
    if wanted != host.ordered:
        words = ("in", "draining") if wanted is not None else ("draining", "in")
        why = wanted.reason if wanted is not None else "no unit of it is quarantined"
        host.ordered = wanted
        cluster.touch(host)
        cluster.log.append(Transition("host", host.name, *words, why))
