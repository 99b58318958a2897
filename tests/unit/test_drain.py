"""The core of a drain, whatever the order of events: no job is lost, none costs a restart, none runs twice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.core.failover.drain import drain
from scheduler.core.fitting.fit import fit
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.state import events
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.facts import Drain
from scheduler.core.state.hosts import Host
from scheduler.core.state.jobs import Outcome
from scheduler.core.state.reasons import Reason, Refusal
from scheduler.core.state.tables import AllocationState, JobState
from scheduler.core.step import step
from scheduler.load import load
from tests.golden.runner import Player
from tests.golden.stored import stored

HOSTS = ("h1", "h2", "h3")
UNHURRIED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def player(jobs: int = 3, gpus: int = 2) -> Player:
    made = Player()
    for host in HOSTS:
        made.play(f"host {host} {gpus}xa100")
    for n in range(jobs):
        made.play(f"submit j{n} restarts=0")
    return made


def end(made: Player, allocation: str, outcome: Outcome, *, clean: bool) -> None:
    a = made.cluster.allocations[allocation]
    made.play(f"report {allocation} ENDED outcome={outcome.value}" + (" code=0" if outcome is Outcome.EXITED else ""))
    if clean and a.id in made.cluster.allocations:
        made.play(f"clean {allocation}")


@UNHURRIED
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_a_drain_never_loses_a_job(seed: int) -> None:
    """Hosts are drained and let in again, leaders die, agents stop what they are asked to: at last every job runs.

    Every one of them has no restart to lose. Nothing but a stop that was asked for ends an attempt here.
    """
    rng = random.Random(seed)
    made = player(jobs=4)
    for _ in range(rng.randrange(10, 60)):
        host = rng.choice(HOSTS)
        asked = [a.id for a in made.cluster.allocations.values() if a.stop_reason and a.state is not _ENDED]
        ended = [a.id for a in made.cluster.allocations.values() if a.state is _ENDED]
        running = [a.id for a in made.cluster.allocations.values() if a.state is AllocationState.BOUND]
        match rng.choice(
            ("drain", "wait", "undrain", "maintenance", "leader", "place", "stop", "stop", "start", "clean")
        ):
            case "drain":
                made.play(f"drain {host} at_once={rng.randrange(3)}")
            case "wait":
                made.play(f"drain {host} wait=yes")
            case "undrain":
                made.play(f"undrain {host}")
            case "maintenance":
                made.play(f"maintenance {rng.choice(('on', 'off'))} {host}")
            case "leader":
                made.play("leader")
            case "stop" if asked:
                end(made, rng.choice(asked), Outcome.STOPPED, clean=rng.random() < 0.5)
            case "clean" if ended:
                made.play(f"clean {rng.choice(ended)}")
            case "start" if running:
                made.play(f"report {rng.choice(running)} RUNNING")
            case _:
                made.play("place")
        _whole(made)
    for host in HOSTS:
        made.play(f"undrain {host}\nmaintenance off {host}")
    for _ in range(3):
        for a in list(made.cluster.allocations.values()):
            if a.state is _ENDED:
                made.play(f"clean {a.id}")
            elif a.stop_reason:
                end(made, a.id, Outcome.STOPPED, clean=True)
        made.play("place")
    assert {job.state for job in made.cluster.jobs.values()} <= {JobState.STARTING, JobState.RUNNING}


_ENDED = AllocationState.ENDED


def _whole(made: Player) -> None:
    assert not violations(made.cluster)
    for job in made.cluster.jobs.values():
        assert not job.final, f"{job.id} was lost: {job.message}"
        assert (job.restarts, job.not_before_s) == (0, 0.0)
        live = [a for a in made.cluster.allocations.values() if a.job == job.id and a.state is not _ENDED]
        assert len(live) <= 1


@UNHURRIED
@given(seed=st.integers(min_value=0, max_value=2**32), at_once=st.integers(min_value=1, max_value=3))
def test_no_more_stop_at_once_than_may(seed: int, at_once: int) -> None:
    rng = random.Random(seed)
    made = player(jobs=6, gpus=4)
    made.play("place")
    made.play("\n".join(f"drain {host} at_once={at_once}" for host in HOSTS))
    for _ in range(40):
        made.play("leader" if rng.random() < 0.1 else "place")
        for name in HOSTS:
            mine = [made.cluster.allocations[a] for a in made.cluster.hosts[name].allocations]
            stopping = [a.id for a in mine if a.stop_reason and a.state is not _ENDED]
            assert len(stopping) <= at_once
            if stopping and rng.random() < 0.5:
                end(made, rng.choice(sorted(stopping)), Outcome.STOPPED, clean=True)
    assert all(not host.allocations for host in made.cluster.hosts.values())


def test_two_turns_ask_once() -> None:
    made = player()
    made.play("place\ndrain h1\nplace")
    asked = {a.id: a.stop_requested_s for a in made.cluster.allocations.values()}
    made.play("wait 50\nplace\nleader\nplace")
    assert {a.id: a.stop_requested_s for a in made.cluster.allocations.values()} == asked
    assert drain(made.cluster, made.placer, made.now) == 0


def test_a_cancel_keeps_the_time_of_the_drains_request_and_its_grace() -> None:
    made = player(jobs=1)
    made.play("place\ndrain h1 grace=90\nplace")
    before = made.cluster.allocations["j0.1"]
    at_s = before.stop_requested_s
    made.play("wait 30\ncancel j0\nleader")
    after = made.cluster.allocations["j0.1"]
    assert (after.stop_requested_s, after.stop_grace_s, after.stop_reason) == (at_s, 90, "by the user")
    assert made.cluster.jobs["j0"].cancel_reason == "by the user"


@pytest.mark.parametrize("paused", [False, True])
def test_a_draining_host_is_refused_before_anything_else_is_asked(paused: bool) -> None:
    made = player(jobs=0)
    made.intend("h1", drain=Drain(made.now, reason="fans", paused=paused), maintenance=True)
    made.play("submit j gpus=9")
    refusal = fit(made.cluster.hosts["h1"], made.cluster.jobs["j"].request)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.detail) == (Reason.HOST_DRAINING, "fans")


def test_the_first_boot_of_a_host_and_each_other_has_its_time() -> None:
    made = Player()
    made.play("host h1 1xa100")
    first_s = made.cluster.hosts["h1"].boot_s
    assert first_s > 0
    made.play("wait 100\nlost h1\nback h1 boot=b1\nleader")  # the agent's new session, of the same boot
    assert made.cluster.hosts["h1"].boot_s == first_s
    made.play("lost h1\nback h1 boot=b2")
    assert made.cluster.hosts["h1"].boot_s > first_s + 100


def test_a_drain_of_a_host_that_nobody_knows_yet_waits_for_it() -> None:
    cluster = Cluster()
    step(cluster, events.HostIntentChanged("new", replace(Host("x").intent, drain=Drain(1.0))), 1.0)
    assert drain(cluster, Placer(), 2.0) == 0
    fresh = Cluster()
    load(fresh, stored(cluster, {}), 3.0)
    assert fresh.draining == {"new"}
