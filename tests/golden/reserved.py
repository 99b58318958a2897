"""The commands of a scenario that are about room for restarts, and about plans for the loss of hosts."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

from scheduler.core.failover.plan import plan
from scheduler.core.reservation.admission import gaps
from scheduler.core.reservation.reserve import Reserve
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import InventoryFact


class Reserved:
    """Mixed into the player of scenarios."""

    cluster: Cluster
    now: float
    log: list[str]
    tell: Callable[[events.Event], None]
    _inventory: Callable[[str], InventoryFact]

    def do_label(self, *hosts: str, **labels: str) -> None:
        """Hosts say, from now on, that they have these labels."""
        for host in hosts:
            found = self._inventory(host)
            self.tell(events.InventoryChanged(host, replace(found, labels=tuple(sorted(labels.items())))))

    def do_ttl(self, seconds: str, *hosts: str) -> None:
        """The sessions of these hosts say that their leases last so long."""
        for host in hosts:
            fact = self.cluster.hosts[host].fact
            assert fact is not None
            self.tell(events.SessionChanged(host, replace(fact, ttl_s=int(seconds))))

    def do_room(self) -> None:
        """Each failure domain: where all that it would lose has room, or that it has none."""
        reserve = Reserve(self.cluster, once=True)
        without = {gap.domain: gap for gap in gaps(self.cluster)}
        for domain, covered in reserve.covered().items():
            if not covered:
                self.log.append(f"  {domain}: no room for {', '.join(without[domain].jobs) or 'all of it together'}")
                continue
            takes = sorted(reserve.witness(domain) or (), key=lambda take: (take.host, take.fit.units))
            room = ", ".join(f"{take.host} {'+'.join(u[5:7] for u in take.fit.units)}" for take in takes)
            self.log.append(f"  {domain}: room on {room}")
        if not reserve.covered():
            self.log.append("  nothing would have to be restarted")

    def do_plan(self, *hosts: str) -> None:
        """What would happen if these hosts died now, on a copy."""
        found = plan(deepcopy(self.cluster), hosts, self.now)
        for e in found.evidence:
            kind = e.evidence.value if e.evidence is not None else "NONE"
            self.log.append(f"  {e.host}: {kind} after {e.after_s:.0f} s: {e.detail}")
        if found.brake:
            self.log.append(f"  the brake would go on: {found.brake}")
        for r in found.restarts:
            where = f"{r.to} {'+'.join(u[5:7] for u in r.units)} after {r.after_s:.0f} s" if r.to else "nowhere"
            self.log.append(f"  {r.allocation} of {r.host} -> {where}{f' ({r.reason})' if r.reason else ''}")
