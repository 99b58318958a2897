"""Plays a scenario's script against the pure core and returns the log: every transition, decision and invariant.

A script has one command a line; see `Player`. Time advances one second a line, or by `wait SECONDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scheduler.core.explain import explain
from scheduler.core.failover import devices
from scheduler.core.failover.power import told
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import (
    GuardKind,
    HostIntent,
    InventoryFact,
    SessionFact,
    UnitFact,
    UnitReport,
    UnitState,
)
from scheduler.core.state.hugepages import HugepagesFact
from scheduler.core.state.jobs import Job, NumaPolicy, Outcome, Request
from scheduler.core.state.losses import Brake
from scheduler.core.state.policy import Device, Policy
from scheduler.core.state.tables import AllocationState, HostState
from scheduler.core.step import step
from scheduler.core.todo import todo
from scheduler.load import load
from tests.golden.planned import Planned
from tests.golden.policies import Policies
from tests.golden.queued import Queued
from tests.golden.reserved import Reserved
from tests.golden.ruled import DEMANDS, Ruled
from tests.golden.stored import stored

CORES_PER_NODE, NODE_MIB = 8, 65536


def inventory(session: int, gpus: dict[str, int], nodes: int = 2) -> InventoryFact:
    """`gpus` by model, spread over the nodes in turn."""
    models = [model for model, count in gpus.items() for _ in range(count)]
    units = tuple(
        UnitFact(f"0000:{16 + n:02x}:00.0", model, 81920, n % nodes, (f"0000:{16 + n:02x}:00.0",))
        for n, model in enumerate(models)
    )
    cores = [tuple((c, c + nodes * CORES_PER_NODE) for c in range(n * 8, n * 8 + 8)) for n in range(nodes)]
    return InventoryFact(session, units, tuple((n, cores[n], NODE_MIB) for n in range(nodes)), frozenset({"img"}))


class Player(Planned, Policies, Queued, Reserved, Ruled):
    """Commands: host, submit, cancel, report, clean, sick, pages, unfit, lost, back, cordon, uncordon, confirm, place,
    leader, explain, attempts, owed, wait."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.cluster = Cluster(policy=self.policy)
        self.placer = Placer()
        self.now = 1000.0
        self.session = 0
        self.arrival = 0
        self.gpus: dict[str, dict[str, int]] = {}
        self.reports: dict[str, events.VmReported] = {}
        self.log: list[str] = []
        self.said: dict[str, SessionFact] = {}  # by each host's last session, whoever saw it

    def play(self, script: str) -> str:
        for raw in script.splitlines():
            line = raw.split("#")[0].strip()
            if not line:
                continue
            self.log.append(f"> {line}")
            name, *words = line.split()
            command: Callable[..., None] = getattr(self, f"do_{name}")
            plain = [w for w in words if "=" not in w]
            command(*plain, **dict(w.split("=", 1) for w in words if "=" in w))
            self._note()
            self.cluster.take_dirty()  # each command ends with a commit
            self.now += 1
        return "\n".join(self.log) + "\n"

    def _note(self) -> None:
        self.log += [str(t) for t in self.cluster.take_log()]
        self.log += [f"VIOLATION {v}" for v in violations(self.cluster)]

    def tell(self, event: events.Event) -> None:
        if isinstance(event, events.SessionChanged) and event.fact is not None:
            self.said[event.host] = event.fact
        step(self.cluster, event, self.now)
        step(self.cluster, event, self.now)  # a fact told twice changes nothing

    def do_host(self, name: str, *gpus: str, guard: str = "SOFT", simulated: str = "yes", boot: str = "b1",
                dead: str = "yes", machine: str = "m1") -> None:  # fmt: skip
        """`machine=`: nobody knows which."""
        self.session += 1
        if gpus:
            self.gpus[name] = {model: int(n) for n, model in (g.split("x", 1) for g in gpus)}
        fact = SessionFact(self.session, f"{name}-{boot}", GuardKind[guard], simulated == "yes", dead == "yes",
                           machine=machine)  # fmt: skip
        self.tell(events.SessionChanged(name, fact))
        self._note()
        found = inventory(self.session, self.gpus[name])
        self.tell(events.InventoryChanged(name, found))
        for unit in found.units:
            self.tell(events.UnitReported(name, unit.id, UnitReport(UnitState.FREE, self.session, "")))

    def do_submit(self, *jobs: str, gpus: str = "1", model: str = "", cpus: str = "2", mib: str = "1024",
                  numa: str = "PREFERRED", priority: str = "0", restarts: str = "10",
                  starts: str = "3", pages: str = "0", first: str = "0", after: str = "",
                  deaths: str = "3", **more: str) -> None:  # fmt: skip
        """`first` is the restart priority; `after` names jobs, with commas. A job's name is its id. For `more` see
        Ruled and Queued.
        """
        demands = {name: more.pop(name) for name in DEMANDS & more.keys()}
        for job in jobs:
            self.arrival += 1
            request = Request("img", int(gpus), model, 0, int(cpus), int(mib), NumaPolicy[numa], int(pages))
            fresh = Job(
                job, request, self.arrival, self.now, int(priority), int(restarts), int(starts), name=job,
                restart_priority=int(first), after=tuple(filter(None, after.split(","))), max_host_deaths=int(deaths),
                **self.queued(**more),
            )  # fmt: skip
            self.tell(events.JobSubmitted(self.demanding(fresh, **demands)))

    def do_cancel(self, job: str) -> None:
        self.tell(events.JobCancelRequested(job, "by the user"))
        for allocation in sorted(self.cluster.allocations):
            if self.cluster.allocations[allocation].stop_reason:
                self.log.append(f"  {allocation} shall stop: {self.cluster.allocations[allocation].stop_reason}")

    def do_place(self) -> None:
        self.placer.place(self.cluster, self.now)
        due_s = self.cluster.pending.next_due_s()
        if due_s is not None and due_s <= self.now:  # whoever sleeps until then never sleeps
            self.log.append("VIOLATION what was due is due still")
        self.ask_to_stop()
        for allocation_id in sorted(self.cluster.dirty.created):
            a = self.cluster.allocations[allocation_id]
            units = ",".join(u[5:7] for u in a.units)
            self.log.append(
                f"  {a.id}: {a.host} units {units} nodes {a.nodes} cores {len(a.cores)} session {a.session}"
            )

    def do_report(
        self, allocation: str, state: str, *, outcome: str = "", code: str = "", said: str = "", warns: str = "",
        clock: str = "0", ran: str = "",
    ) -> None:  # fmt: skip
        """As the agent of the allocation's host would; its clock is `clock` seconds ahead of the leader's. `ran`: it
        says that the VM ended so many seconds after its start.
        """
        at_s = self.now + float(clock)
        a = self.cluster.allocations[allocation]
        began_s = at_s if state == "RUNNING" else 0.0
        if ran:
            began_s = self.cluster.jobs[a.job].attempts[-1].started_s + float(clock)
            at_s = began_s + float(ran)
        exit_code = int(code) if code else None
        event = events.VmReported(
            a.host, a.id, a.session, AllocationState[state], Outcome[outcome] if outcome else None, exit_code,
            said.replace("_", " "), began_s, at_s,
            (warns.replace("_", " "),) if warns else (),
        )  # fmt: skip
        self.reports[a.id] = event
        self.tell(event)

    def do_clean(self, allocation: str, state: str = "FREE") -> None:
        """The agent reports each unit of the allocation clean after it, or `state`."""
        a = self.cluster.allocations[allocation]
        for unit in a.units:
            report = UnitReport(UnitState[state], a.session, a.id, "bars differ" if state == "QUARANTINED" else "")
            self.tell(events.UnitReported(a.host, unit, report))
        self.log.append(f"  allocations left: {', '.join(sorted(self.cluster.allocations)) or 'none'}")

    def do_sick(self, host: str, unit: str, why: str = "") -> None:
        """The agent calls the unit whose address begins so sick, or, without a reason, well again."""
        h = self.cluster.hosts[host]
        found = next(u for u in h.units if u.startswith(f"0000:{unit}"))
        self.tell(events.UnitReported(host, found, replace(h.reports[found], sick=why.replace("_", " "))))

    def do_pages(self, host: str, node: str, total: str, free: str, size: str = "2048") -> None:
        """The host's inventory says, from now on, that it has these pages on the node."""
        found = self._inventory(host)
        others = [p for p in found.hugepages if (p.node, p.size_kib) != (int(node), int(size))]
        told = (*others, HugepagesFact(int(node), int(size), int(total), int(free)))
        self.tell(events.InventoryChanged(host, replace(found, hugepages=told)))

    def do_unfit(self, host: str, *units: str, why: str) -> None:
        """The host's inventory says, from now on, that the units whose addresses begin so are unfit."""
        found = self._inventory(host)
        told = [replace(u, unfit=why.replace("_", " ")) if u.id[5:7] in units else u for u in found.units]
        self.tell(events.InventoryChanged(host, replace(found, units=tuple(told))))

    def _inventory(self, host: str) -> InventoryFact:
        found = self.cluster.hosts[host].inventory
        assert found is not None
        return found

    def do_attempts(self, job: str) -> None:
        for a in self.cluster.jobs[job].attempts:
            self.log.append(f"  {a.number}: {a.host} {a.outcome and a.outcome.value} {a.message} {list(a.warnings)}")

    def do_lost(self, *hosts: str) -> None:
        """The session keys go, of all in the same second."""
        for host in hosts:
            self.tell(events.SessionChanged(host, None))
            self._note()

    def do_host_gone_unseen(self, *hosts: str) -> None:
        """The session keys go while no leader watches."""
        for host in hosts:
            self.cluster.hosts[host].fact = None

    def do_back(self, host: str, boot: str = "b2", **more: str) -> None:
        """For `more` see `host`."""
        self.do_host(host, boot=boot, **more)

    def do_back_unseen(self, host: str, boot: str, machine: str) -> None:
        """As `back`, while no leader watches."""
        self.session += 1
        fact = SessionFact(self.session, f"{host}-{boot}", GuardKind.SOFT, False, True, machine=machine)
        self.said[host] = self.cluster.hosts[host].fact = fact

    def do_guard(self, host: str, kind: str) -> None:
        """The agent's session says, from now on, that it has this guard."""
        fact = self.cluster.hosts[host].fact
        assert fact is not None
        self.tell(events.SessionChanged(host, replace(fact, guard=GuardKind[kind])))

    def do_tells(self, host: str, machine: str) -> None:
        """The agent's session says, from now on, of which machine it is."""
        fact = self.cluster.hosts[host].fact
        assert fact is not None
        self.tell(events.SessionChanged(host, replace(fact, machine=machine)))

    def do_cordon(self, host: str) -> None:
        self.tell(events.HostIntentChanged(host, HostIntent(cordoned=True, reason="maintenance")))

    def do_confirm(self, host: str) -> None:
        session = self.cluster.hosts[host].session
        self.tell(events.HostIntentChanged(host, HostIntent(False, "", session, "ann", "pulled the plug")))

    def do_leader(self) -> None:
        """The leader dies; another reads what was committed: everything, for each command ends with a commit."""
        items = stored(self.cluster, self.reports, self.said)
        self.cluster = Cluster(policy=self.policy)
        self.placer = Placer()
        load(self.cluster, items, self.now)
        self.log.append(
            f"  a new leader read {len(self.cluster.jobs)} jobs, {len(self.cluster.allocations)} allocations"
        )

    def do_explain(self, job: str) -> None:
        found = explain(self.cluster, self.cluster.jobs[job], self.now)
        self.log.append(f"  {job}: {found.wait.name + ': ' if found.wait else ''}{found.summary}")
        self.log += [f"    {host}: {r.reason.name} {r.detail}" for host, r in found.verdicts if r is not None]

    def do_owed(self) -> None:
        self.log += [f"  owed: {effect}" for effect in todo(self.cluster, self.now)] or ["  nothing is owed"]

    def do_powered(self, *hosts: str, device: str = "", machine: str = "") -> None:
        """The power file names these hosts, and no others, from now on: replicas were started with it, and one leads.
        `device`: as another address of it; `machine`: as the file says.
        """
        powered = {host: Device(device, machine) for host in hosts}
        self.policy = self.cluster.policy = replace(self.policy, powered=powered)
        for name in sorted(self.cluster.hosts):
            devices.seen_alive(self.cluster, self.cluster.hosts[name])

    def do_power(self, host: str, what: str, *, session: str = "", said: str = "") -> None:
        """A try to switch the host off ends: `off`, or `failed`. For its session, unless another is named."""
        of = int(session) if session else self.cluster.hosts[host].session
        self.tell(events.PowerFenced(host, of, "fence_x", self.now, what == "off", said.replace("_", " ")))
        found = self.cluster.hosts[host]
        if found.state is HostState.FENCING:
            self.log.append(f"  {host}: {told(self.cluster, found, self.now) or 'nothing can switch it off'}")

    def do_braked(self, until: str = "") -> None:
        """The mass failure brake is on; `no`: it is not."""
        self.cluster.brake = None if until == "no" else Brake(self.now, 0.0, "too many hosts were lost", ())

    def do_wait(self, seconds: str) -> None:
        self.now += float(seconds)

    def do_slower_leader(self, seconds: str) -> None:
        """As `leader`, on a machine whose clock is that far behind."""
        self.now -= float(seconds)
        self.do_leader()
