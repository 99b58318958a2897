"""The commands of a scenario that are about planned work: drain, undrain, maintenance."""

from __future__ import annotations

from dataclasses import replace

from scheduler.core.failover.drain import drain, stopping
from scheduler.core.gangs import together
from scheduler.core.place import Placer
from scheduler.core.queueing.preempt import Preempter
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import Drain, UnitState


class Planned:
    """Mixed into the player of scenarios."""

    cluster: Cluster
    placer: Placer
    now: float
    log: list[str]

    def tell(self, event: events.Event) -> None:
        raise NotImplementedError

    def intend(self, host: str, **wanted: object) -> None:
        """Change some of what an operator wants of a host; the rest stays, as the API sees to."""
        before = self.cluster.hosts[host].intent
        self.tell(events.HostIntentChanged(host, replace(before, **wanted)))  # type: ignore[arg-type]

    def do_drain(
        self, host: str, *, at_once: str = "0", grace: str = "0", wait: str = "no", paused: str = "no",
        reason: str = "new_fans",
    ) -> None:  # fmt: skip
        wanted = Drain(
            self.now, "ann", reason.replace("_", " "), int(grace), int(at_once), wait == "yes", paused == "yes"
        )  # fmt: skip
        self.intend(host, drain=wanted)

    def do_unit(self, host: str, unit: str, state: str) -> None:
        """The agent says, from now on, that the unit whose address begins so is in this state."""
        found = self.cluster.hosts[host]
        name = next(u for u in found.units if u.startswith(f"0000:{unit}"))
        report = replace(found.reports[name], state=UnitState[state])
        self.tell(events.UnitReported(host, name, report))

    def do_undrain(self, host: str) -> None:
        self.intend(host, drain=None)

    def do_maintenance(self, switch: str, host: str) -> None:
        self.intend(host, maintenance=switch == "on", maintenance_reason="new board" if switch == "on" else "")

    def ask_to_stop(self) -> None:
        """What the leader does after placing."""
        drain(self.cluster, self.placer, self.now)
        Preempter().preempt(self.cluster, self.now)
        together.look(self.cluster, self.now)
        for allocation_id in sorted(self.cluster.allocations):
            a = self.cluster.allocations[allocation_id]
            if a.stop_reason and a.stop_requested_s == self.now:
                grace = f", within {a.stop_grace_s} s" if a.stop_grace_s else ""
                self.log.append(f"  {a.id} on {a.host} shall stop: {a.stop_reason}{grace}")

    def do_vms(self, host: str) -> None:
        """As `gpupool host` counts them."""
        h = self.cluster.hosts[host]
        drained = " (drained)" if h.intent.drain is not None and not h.allocations else ""
        self.log.append(f"  {host}: {len(h.allocations)} VMs, {stopping(self.cluster, h)} stopping{drained}")

    def do_jobs(self) -> None:
        for job_id in sorted(self.cluster.jobs):
            job = self.cluster.jobs[job_id]
            self.log.append(
                f"  {job_id}: {job.state.value}, attempt {job.attempt_count}, {job.restarts} restarts, "
                f"{job.start_failures} start failures"
            )
