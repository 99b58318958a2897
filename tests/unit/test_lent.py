"""Room kept for restarts and lent to preemptible jobs: they may have it, and what was promised is kept all the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.fitting.scratch import without
from scheduler.core.invariants import violations
from scheduler.core.queueing.lent import GRACE_S, in_the_way
from scheduler.core.reservation.reserve import Reserve
from scheduler.core.reservation.room import Take
from scheduler.core.state.events import JobCancelRequested, JobSubmitted, SessionChanged, UnitReported, VmReported
from scheduler.core.state.facts import UnitReport, UnitState
from scheduler.core.state.hosts import Allocation
from scheduler.core.state.jobs import Job, Outcome, Request
from scheduler.core.state.policy import BrakePolicy, Policy
from scheduler.core.state.tables import AllocationState, JobState
from scheduler.core.state.terms import Terms
from scheduler.core.step import step
from tests.golden.runner import Player
from tests.unit.test_reserve import KEEP, RACKS, SEEDS, World, domain_of, reserve_of, scene

CALM = replace(KEEP, starts_at_once=0, brake=BrakePolicy(share=0.0))
RACKED = replace(CALM, reservation=replace(RACKS.reservation, warn=False))
TURNS = 12


class Lending(World):
    """Half of what is submitted is preemptible, of any priority."""

    def submit(self, request: Request, restarts: int) -> None:
        rng = random.Random(f"{self.count} {request}")
        self.count += 1
        labels = request.rules.own if request.rules is not None else ()
        terms = Terms(preemptible=rng.random() < 0.5, stop_grace_s=rng.choice([5, 600]))
        job = Job(
            f"j{self.count:02}", request, self.count, self.now, rng.randint(0, 2), restarts, labels=labels, terms=terms
        )
        step(self.cluster, JobSubmitted(job), self.now)

    def alive(self) -> list[Allocation]:
        """Whose VM is there."""
        mine = (self.cluster.allocations[a] for a in sorted(self.cluster.allocations))
        return [a for a in mine if a.state is not AllocationState.ENDED and self.host_of(a.id).fact is not None]

    def asked(self) -> list[Allocation]:
        """Who was asked to make room."""
        return [a for a in self.alive() if a.preempted_for]

    def leave(self, gone: Allocation) -> None:
        step(
            self.cluster, VmReported(gone.host, gone.id, gone.session, AllocationState.ENDED, Outcome.STOPPED), self.now
        )
        for unit in gone.units:
            report = UnitReport(UnitState.FREE, gone.session, gone.id)
            step(self.cluster, UnitReported(gone.host, unit, report), self.now)


def played(policy: Policy, seed: int) -> Iterator[Lending]:
    hosts, steps = scene(seed)
    world = Lending(policy, hosts)
    reserve_of(world)
    for what in steps:
        world.do(what)
        assert violations(world.cluster) == []
        yield world


@settings(max_examples=60, deadline=None, phases=[Phase.generate])  # a smaller seed is no smaller case
@given(st.sampled_from([KEEP, RACKS]), SEEDS)
def test_kept_up_as_from_scratch(policy: Policy, seed: int) -> None:
    for world in played(policy, seed):
        assert reserve_of(world).covered() == Reserve(world.cluster, once=True).covered()


@settings(max_examples=150, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.sampled_from([CALM, RACKED]), SEEDS)
@example(CALM, 935)  # the first to restart would take what the second cannot do without
def test_what_is_covered_does_restart_once_they_have_left(policy: Policy, seed: int) -> None:
    *_, world = played(policy, seed)
    cluster = world.cluster
    known = reserve_of(world).covered()
    covered = [d for d, ok in known.items() if ok]
    if any(d.kind == "lost" for d in known) or not covered:
        return  # two losses at once are more than is promised
    before = {a.id for a in world.asked()}
    dying = [h for name, h in sorted(cluster.hosts.items()) if domain_of(cluster, name) == covered[0]]
    lost = [cluster.jobs[cluster.allocations[a].job] for h in dying for a in h.allocations]
    lost = [j for j in lost if j.allocation_id and j.restarts < j.max_restarts and not j.cancel_reason]
    promised = [j for j in lost if not j.terms.preemptible]
    for host in dying:
        step(cluster, SessionChanged(host.name, None), world.now)
    world.now += 400
    world.place()
    at_once = all(job.state is JobState.STARTING for job in promised)
    left = [a for a in world.asked() if a.id not in before]
    assert not (at_once and left), "they leave for nothing"
    _until_all_have_left(world, random.Random(seed))
    for job in promised:
        assert job.state is JobState.STARTING, (job.id, job.message)


@settings(max_examples=100, deadline=None, phases=[Phase.generate])
@given(st.sampled_from([CALM, RACKED]), SEEDS)
def test_what_waits_and_is_covered_does_restart(policy: Policy, seed: int) -> None:
    """Also what crashed or was stopped, though room is lent while it may not start yet."""
    *_, world = played(policy, seed)
    reserve = reserve_of(world)
    if not all(reserve.covered().values()) or sum(d.kind == "lost" for d in reserve.covered()) > 1:
        return  # whoever has no room promised, or was lost in another loss, may take that of others
    waits = reserve.owed()
    world.now += 400
    _until_all_have_left(world, random.Random(seed))
    for job in waits:
        assert job.final or job.attempts[-1].created_s >= world.now - 400, (job.id, job.message)


def _until_all_have_left(world: Lending, rng: random.Random) -> None:
    """One after the other, in any order; meanwhile others want what is free."""
    for _ in range(TURNS):
        for a in world.asked():
            job = world.cluster.jobs[a.job]
            assert job.terms.preemptible, f"{a.id} is asked to stop"
            assert (a.stop_grace_s or job.terms.stop_grace_s) <= GRACE_S
        if leaving := [a for a in world.alive() if a.stop_reason]:
            world.leave(rng.choice(leaving))
        world.submit(Request("img", 1), 3)
        world.now += 5
        world.place()
        assert violations(world.cluster) == []


@settings(max_examples=100, deadline=None, phases=[Phase.generate])
@given(SEEDS)
def test_kept_room_is_no_bar_to_those_who_leave(seed: int) -> None:
    """While nothing waits for a restart, a preemptible job starts wherever it would if no room were kept."""
    *_, world = played(CALM, seed)
    cluster = world.cluster
    if any(d.kind == "lost" for d in reserve_of(world).covered()) or cluster.books.claims:
        return
    for waits in list(cluster.pending):
        step(cluster, JobCancelRequested(waits, "x"), world.now)
    room = list(world.placer.takers(cluster, Request("img", 1)))
    job = Job("zz", Request("img", 1), 999, world.now, -5, terms=Terms(preemptible=True))
    step(cluster, JobSubmitted(job), world.now)
    world.place()
    assert (job.state is JobState.STARTING) == bool(room)


def test_only_who_is_preemptible_is_in_the_way() -> None:
    player = Player()
    player.play("host h1 2xa100\nsubmit j0 gpus=2\nplace\nrun")
    cluster, job = player.cluster, player.cluster.jobs["j0"]
    (there,) = cluster.allocations.values()
    host = cluster.hosts["h1"]
    found = fit(without(host, [there]), job.request)
    assert isinstance(found, Fit)
    take = Take(job.request, "h1", found)
    assert in_the_way(cluster, host, take) is None
    job.terms = replace(job.terms, preemptible=True)
    assert in_the_way(cluster, host, take) == [there]
