"""The commands of a scenario that are about what the site decides, and about an operator's word on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scheduler.core.failover import failovers
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import ClusterIntent, GuardKind, JobIntent, SessionFact
from scheduler.core.state.policy import Policy
from scheduler.core.state.skew import answers
from scheduler.core.state.tables import AllocationState


class Policies:
    """Mixed into the player of scenarios."""

    cluster: Cluster
    policy: Policy
    now: float
    log: list[str]
    said: dict[str, SessionFact]
    tell: Callable[[events.Event], None]
    do_place: Callable[[], None]
    do_report: Callable[..., None]
    wish: Callable[..., JobIntent]

    def do_policy(self, **wanted: str) -> None:
        """Settings as in the policy file, e.g. `policy brake.hosts=2`."""
        for path, text in wanted.items():
            section, _, key = path.rpartition(".")
            of: Any = getattr(self.policy, section) if section else self.policy
            kind = type(getattr(of, key))
            changed: Any = replace(of, **{key: text == "yes" if kind is bool else kind(text)})
            if section:
                fields: dict[str, Any] = {section: changed}
                changed = replace(self.policy, **fields)
            self.policy = changed
        self.cluster.policy = self.policy

    def do_run(self) -> None:
        """Place what can be placed; every VM that is starting then runs."""
        self.do_place()
        for allocation_id in sorted(self.cluster.allocations):
            if self.cluster.allocations[allocation_id].state in (AllocationState.BOUND, AllocationState.PREPARING):
                self.do_report(allocation_id, "RUNNING")
        failovers.look(self.cluster, self.now)  # as in the leader's next turn

    def do_crash(self, *jobs: str, said: str = "qemu_died") -> None:
        """The VMs of the jobs' present attempts end by themselves, without an exit code."""
        for job in jobs:
            found = self.cluster.jobs[job]
            self.do_report(f"{job}.{found.attempt_count}", "ENDED", outcome="CRASHED", said=said)

    def do_brake(self) -> None:
        brake = self.cluster.brake
        if brake is None:
            self.log.append("  the brake is off")
            return
        ends = f"until {brake.until_s:.0f}" if brake.until_s else "until an operator ends it"
        self.log.append(
            f"  the brake is on since {brake.since_s:.0f}, {ends}: {brake.reason}; {', '.join(brake.hosts)}"
        )

    def do_release_brake(self) -> None:
        at_s = self.cluster.brake.since_s if self.cluster.brake is not None else self.now
        wanted = replace(self.cluster.intent, brake_released_s=at_s, brake_by="ann", brake_reason="the switch is back")
        self.tell(events.ClusterIntentChanged(wanted))

    def do_disarm(self) -> None:
        wanted = replace(self.cluster.intent, disarmed=True, reason="etcd gets new disks", by="ann", at_s=self.now)
        self.tell(events.ClusterIntentChanged(wanted))

    def do_arm(self) -> None:
        wanted = replace(self.cluster.intent, disarmed=False, reason="done", by="ann", at_s=self.now)
        self.tell(events.ClusterIntentChanged(wanted))

    def do_disarm_unseen(self) -> None:
        """As `disarm`, while no leader watches."""
        self.cluster.intent = ClusterIntent(disarmed=True, reason="etcd gets new disks", by="ann", at_s=self.now)

    def do_arm_unseen(self) -> None:
        """As `arm`, while no leader watches."""
        self.cluster.intent = ClusterIntent(disarmed=False, reason="done", by="ann", at_s=self.now)

    def do_unguarded(self, host: str, why: str) -> None:
        """The agent's session says, from now on, that its guard does not stand."""
        fact = self.cluster.hosts[host].fact
        assert fact is not None
        self.tell(events.SessionChanged(host, replace(fact, unguarded=why.replace("_", " "))))

    def do_guard_unseen(self, host: str, kind: str, why: str = "") -> None:
        """As `guard`, or with a reason as `unguarded`, while no leader watches."""
        self.said[host] = replace(self.said[host], guard=GuardKind[kind], unguarded=why.replace("_", " "))
        if self.cluster.hosts[host].fact is not None:
            self.cluster.hosts[host].fact = self.said[host]

    def do_release(self, job: str) -> None:
        found = self.cluster.jobs[job]
        at_s = answers(found.held_s, found.intent.held_s, found.intent.released_s)
        self.tell(events.JobIntentChanged(job, self.wish(job, released_s=at_s, by="ann", reason="its image is mended")))

    def do_uncordon(self, host: str) -> None:
        found = self.cluster.hosts[host]
        at_s = answers(*found.lost_s, found.held_out_s) if found.lost_s else found.intent.uncordoned_s
        self.tell(events.HostIntentChanged(host, replace(found.intent, cordoned=False, uncordoned_s=at_s)))

    def do_failovers(self) -> None:
        failovers.look(self.cluster, self.now)
        for (host, session), found in sorted(self.cluster.failovers.items()):
            done = f"done at {found.done_s:.0f}" if found.done_s else "not done"
            brake = f"; held up: {found.brake}" if found.brake else ""
            self.log.append(
                f"  {host}, session {session}: lost at {found.fence.lost_s:.0f}, fenced at {found.fence.fenced_s:.0f} "
                f"by {found.fence.evidence.value}, {done}{brake}"
            )
            self.log += [
                f"    {vm.allocation}: {vm.host or 'nowhere'} placed {vm.placed_s:.0f} started {vm.started_s:.0f}: "
                f"{vm.outcome or 'open'}"
                for vm in found.vms
            ]

    def do_hosts(self) -> None:
        for name in sorted(self.cluster.hosts):
            host = self.cluster.hosts[name]
            self.log.append(f"  {name}: {host.state.value}{', held out: ' + host.held_out if host.held_out else ''}")

    def do_at(self, time: str) -> None:
        """Time goes on to this moment."""
        assert float(time) > self.now, "time goes forward only"
        self.now = float(time)
