"""Whatever happens in whatever order: no job is forgotten, none has two lives, no restart gets past the brake."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.failover.retry import BACKOFF_MAX_S, restart_delay_s, start_retry_delay_s
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import ClusterIntent, GuardKind, JobIntent, SessionFact, UnitReport, UnitState
from scheduler.core.state.jobs import Job, Outcome, Request
from scheduler.core.state.policy import BrakePolicy, Device, FlapPolicy, Policy
from scheduler.core.state.tables import AllocationState, HostState, JobState
from scheduler.core.step import step
from scheduler.core.todo import todo
from scheduler.load import load
from tests.golden.runner import inventory
from tests.golden.stored import stored

HOSTS = ("h1", "h2", "h3", "h4")
JOBS = ("a", "b", "c", "d", "e", "f")
POLICY = Policy(
    powered={"h4": Device()},
    starts_at_once=2,
    brake=BrakePolicy(share=0.5, at_least=2, window_s=60.0, cooldown_s=40.0),
    flap=FlapPolicy(losses=3, window_s=200.0),
)

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["lose", "back", "unguard", "uncordon"]), st.sampled_from(HOSTS)),
        st.tuples(st.sampled_from(["submit", "crash", "exit", "fail", "cancel", "release"]), st.sampled_from(JOBS)),
        st.tuples(st.sampled_from(["run", "turn", "disarm", "arm", "end the brake", "leader"]), st.just("")),
        st.tuples(st.just("wait"), st.sampled_from(["1", "30", "100"])),
    ),
    max_size=60,
)


class World:
    """A cluster, its hosts and its operator."""

    def __init__(self) -> None:
        self.cluster = Cluster(policy=POLICY)
        self.placer = Placer()
        self.now = 1000.0
        self.sessions = 0
        self.reports: dict[str, events.VmReported] = {}
        self.epochs: dict[str, int] = {}
        self.lost: set[str] = set()  # jobs of which the last VM that ran at all was lost with its host
        for host in HOSTS:
            self.back(host)
        self.cluster.take_dirty()

    def tell(self, event: events.Event) -> None:
        step(self.cluster, event, self.now)

    def turn(self) -> None:
        """A turn of the leader's loop, up to the commit. What was lost must not be placed while that is forbidden."""
        for job in self.cluster.jobs.values():
            outcome = job.attempts[-1].outcome if job.attempts else None
            if outcome is Outcome.HOST_LOST:
                self.lost.add(job.id)
            elif outcome in (Outcome.CRASHED, Outcome.EXITED, Outcome.STOPPED):
                self.lost.discard(job.id)
        self.placer.place(self.cluster, self.now)
        if self.cluster.brake is not None or self.cluster.intent.disarmed:
            started = {self.cluster.allocations[a].job for a in self.cluster.dirty.created}
            assert not started & self.lost, "a restart got past the brake, or was made while disarmed"
            assert not [owed for owed in todo(self.cluster, self.now) if type(owed).__name__ == "PowerOff"]
        self.check()
        self.cluster.take_dirty()

    def check(self) -> None:
        assert violations(self.cluster) == []
        alive = Counter(a.job for a in self.cluster.allocations.values() if a.state is not AllocationState.ENDED)
        assert all(count == 1 for count in alive.values()), alive
        for job in self.cluster.jobs.values():
            epoch = self.epochs.get(job.id, 0)
            assert job.attempt_count in (epoch, epoch + 1), "an attempt's number went back, or was passed over"
            self.epochs[job.id] = job.attempt_count

    # What happens

    def back(self, host: str) -> None:
        known = self.cluster.host(host)
        if known.fact is not None:
            return
        self.sessions += 1
        fact = SessionFact(self.sessions, f"boot {self.sessions}", GuardKind.SOFT, simulated=True, vms_found_dead=True)
        self.tell(events.SessionChanged(host, fact))
        found = inventory(self.sessions, {"a100": 2})
        self.tell(events.InventoryChanged(host, found))
        for unit in found.units:
            self.tell(events.UnitReported(host, unit.id, UnitReport(UnitState.FREE, self.sessions, "")))

    def lose(self, host: str) -> None:
        self.tell(events.SessionChanged(host, None))

    def unguard(self, host: str) -> None:
        fact = self.cluster.hosts[host].fact
        if fact is not None:
            self.tell(events.SessionChanged(host, replace(fact, unguarded="it died")))

    def uncordon(self, host: str) -> None:
        self.tell(events.HostIntentChanged(host, replace(self.cluster.hosts[host].intent, uncordoned_s=self.now)))

    def submit(self, job: str) -> None:
        n = JOBS.index(job)
        after = (JOBS[(n + 1) % 4],) if n < 4 else ()  # a circle of four
        fresh = Job(
            job, Request("img", 1, cpus=2), n + 1, self.now, priority=n % 2, max_restarts=1000,
            max_start_failures=1000, name=job, restart_priority=n % 3, after=after, max_host_deaths=2,
        )  # fmt: skip
        self.tell(events.JobSubmitted(fresh))

    def report(self, job: str, state: AllocationState, outcome: Outcome | None = None, code: int | None = None) -> None:
        allocation = self.cluster.allocations.get(
            (job in self.cluster.jobs and self.cluster.jobs[job].allocation_id) or ""
        )
        if allocation is None or self.cluster.hosts[allocation.host].fact is None:
            return
        event = events.VmReported(
            allocation.host, allocation.id, allocation.session, state, outcome, code,
            started_s=self.now if state is AllocationState.RUNNING else 0.0, ended_s=self.now,
        )  # fmt: skip
        self.reports[allocation.id] = event
        self.tell(event)
        if state is AllocationState.ENDED:
            for unit in allocation.units:
                report = UnitReport(UnitState.FREE, allocation.session, allocation.id)
                self.tell(events.UnitReported(allocation.host, unit, report))

    def run(self) -> None:
        for job in JOBS:
            self.report(job, AllocationState.RUNNING)

    def leader(self) -> None:
        items = stored(self.cluster, self.reports)
        self.cluster, self.placer = Cluster(policy=POLICY), Placer()
        load(self.cluster, items, self.now)

    def intend(self, **wanted: object) -> None:
        self.tell(events.ClusterIntentChanged(replace(self.cluster.intent, **wanted)))  # type: ignore[arg-type]

    def act(self, what: str, whom: str) -> None:
        match what:
            case "lose" | "back" | "unguard" | "uncordon" | "submit":
                getattr(self, what)(whom)
            case "crash":
                self.report(whom, AllocationState.ENDED, Outcome.CRASHED)
            case "exit":
                self.report(whom, AllocationState.ENDED, Outcome.EXITED, 0)
            case "fail":
                self.report(whom, AllocationState.ENDED, Outcome.START_FAILED)
            case "cancel":
                self.tell(events.JobCancelRequested(whom, "no more"))
                self.report(whom, AllocationState.ENDED, Outcome.STOPPED)
            case "release":
                self.tell(events.JobIntentChanged(whom, JobIntent(self.now)))
            case "disarm" | "arm":
                self.intend(disarmed=what == "disarm", at_s=self.now)
            case "end the brake":
                self.intend(brake_released_s=self.now)
            case "wait":
                self.now += float(whom)
            case "run" | "leader":
                getattr(self, what)()


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_no_job_is_forgotten_whatever_happens(actions: list[tuple[str, str]]) -> None:
    world = World()
    for job in JOBS[:4]:
        world.act("submit", job)
    for what, whom in actions:
        world.act(what, whom)
        world.turn()
        world.now += 1
    _mend(world)
    left = {job.id: job.state for job in world.cluster.jobs.values() if not job.final}
    assert all(state is JobState.RUNNING for state in left.values()), left
    assert all(failover.done_s for failover in world.cluster.failovers.values())


def _mend(world: World) -> None:
    """Everything that broke is mended, and operators say what is theirs to say."""
    world.intend(disarmed=False, at_s=world.now)
    for host in HOSTS:
        if world.cluster.hosts[host].state is not HostState.READY:
            world.lose(host)
            world.back(host)
        world.uncordon(host)
    for _ in range(12):
        world.now += BACKOFF_MAX_S
        for job in JOBS:
            world.act("release", job)
        world.turn()
        world.run()
        world.check()


@given(st.integers(2, 100_000), st.text("ab", min_size=1, max_size=3))
def test_delays_stay_between_half_and_all_of_what_they_are_named_for(count: int, job_id: str) -> None:
    job = Job(job_id, Request("img"), 1, 0.0, restarts=count, start_failures=count)
    for delay_s, whole_s in (
        (restart_delay_s(job), min(2.0 ** min(count - 1, 20), BACKOFF_MAX_S)),
        (start_retry_delay_s(job), min(2.0 ** min(count - 1, 20), BACKOFF_MAX_S)),
    ):
        assert whole_s / 2 <= delay_s <= whole_s


def test_what_failed_together_does_not_come_back_together() -> None:
    delays = {restart_delay_s(Job(f"j{n}", Request("img"), 1, 0.0, restarts=9)) for n in range(100)}
    assert len(delays) == 100


def test_only_the_newest_failovers_are_kept() -> None:
    world = World()
    cluster = world.cluster
    world.submit("e")
    for _ in range(210):
        world.now += BACKOFF_MAX_S
        world.intend(brake_released_s=world.now)
        for host in HOSTS:
            world.uncordon(host)
        world.act("release", "e")
        world.turn()
        world.turn()  # hosts that were changed are placed on once that is committed
        world.run()
        host = cluster.allocations[cluster.jobs["e"].allocation_id or ""].host
        world.lose(host)
        world.back(host)
    assert len(cluster.failovers) == 200
    assert (min(f.fence.fenced_s for f in cluster.failovers.values())) > 1000.0 + 9 * BACKOFF_MAX_S
    assert cluster.intent == ClusterIntent(brake_released_s=cluster.intent.brake_released_s)
