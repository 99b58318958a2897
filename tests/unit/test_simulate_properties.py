"""Whatever load is made up: nothing waits that fits, units are conserved, work adds up, and a run repeats."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.state.cluster import Cluster, Dirty
from scheduler.core.state.facts import UnitState
from scheduler.core.state.policy import BackfillPolicy, Policy, PreemptionPolicy
from scheduler.core.state.tables import HostState, JobState, Transition
from scheduler.simulate.failures import Failing
from scheduler.simulate.load import Replay, Settings
from scheduler.simulate.synthetic import Synthetic, load_of
from scheduler.simulate.vms import Pace

SLOW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])

loads = st.builds(
    Synthetic,
    hosts=st.integers(1, 4),
    gpus_per_host=st.sampled_from((2, 4)),
    jobs=st.integers(1, 60),
    load=st.sampled_from((0.5, 1.0, 2.0)),
    sizes=st.sampled_from(({1: 1.0}, {1: 3.0, 2: 1.0})),
    run_median_s=st.sampled_from((60.0, 3600.0)),
    tenants=st.sampled_from(({"default": 1.0}, {"a": 3.0, "b": 1.0})),
    priorities=st.sampled_from(({0: 1.0}, {0: 4.0, 10: 1.0})),
    preemptible=st.sampled_from((0.0, 0.5)),
    declared=st.sampled_from((0.0, 1.5)),
    seed=st.integers(0, 1000),
)
# Hosts that kill a job three times have it held for an operator, and one that flaps is kept out; so few fail.
failing = st.builds(Failing, count=st.integers(0, 2))
policies = st.builds(
    Policy,
    preemption=st.builds(PreemptionPolicy, st.booleans()),
    backfill=st.builds(BackfillPolicy, st.sampled_from((0, 1))),
)
paces = st.builds(
    Pace,
    start_s=st.sampled_from((0.0, 30.0)),
    reclaim_s=st.sampled_from((0.0, 10.0)),
    checkpoint_s=st.sampled_from((0.0, 50.0)),
)


def replay(load: Synthetic, fails: Failing, policy: Policy, pace: Pace) -> Replay:
    return Replay(load_of(load), Settings(policy=policy, pace=pace, failing=fails, seed=load.seed, check=True))


@given(loads, failing, policies, paces)
@SLOW
def test_everything_ends_and_everything_is_given_back(
    load: Synthetic, fails: Failing, policy: Policy, pace: Pace
) -> None:
    # A limit may pass between a host's death and the moment at which it is noticed: then the job has had its time.
    assume(not (fails.count and load.declared))
    run = replay(load, fails, policy, pace)
    found = run.run()
    run.world.run(run.world.now + 60.0)  # the last units are still to be proven clean
    cluster = run.world.cluster
    assert found["jobs"]["succeeded"] == load.jobs
    assert not cluster.allocations
    assert run.agents.running_gpus == 0
    for host in cluster.hosts.values():
        assert not host.held
        if host.state is HostState.READY:  # not one that failed near the end
            assert all(host.unit_state(unit) is UnitState.FREE for unit in host.units)
            assert all(node.free_memory_mib == node.memory_mib for node in host.nodes.values())
            assert all(node.free_cores == set(node.cores) for node in host.nodes.values())
    _work_adds_up(run, found)


def _work_adds_up(run: Replay, found: dict[str, Any]) -> None:
    """What was done for good is what was asked for, and nobody was quicker than his run time."""
    asked = sum(task.request.gpus * task.run_s for task in run.load.tasks) / 3600
    assert abs(found["gpu_hours"]["done"] - asked) < 1e-3 + 1e-9 * asked
    for task in run.load.tasks:
        ended_s, _ = run.recorder.ends[task.id]
        started_s = run.recorder.starts[task.id]
        assert ended_s - started_s >= task.run_s - 1e-3
    assert 0 <= found["utilisation"]["running_pct"] <= found["utilisation"]["allocated_pct"] + 1e-6 <= 100 + 2e-6
    assert (found["bounded_slowdown"]["mean"] or 1.0) >= 1.0


@given(loads, failing, paces)
@SLOW
def test_nothing_waits_that_fits(load: Synthetic, fails: Failing, pace: Pace) -> None:
    """Work conservation, where no place is kept for anybody: at the end of a turn no host could take who waits."""
    run = replay(load, fails, Policy(backfill=BackfillPolicy(0)), pace)
    cluster = run.world.cluster

    def look(dirty: Dirty, log: list[Transition]) -> None:
        if log or dirty.hosts or dirty.cluster or cluster.books.claims:
            return  # another turn follows, or a place is kept for whom others have been stopped
        assert not list(_idle(cluster))

    run.world.lookers.append(look)
    run.run()


def _idle(cluster: Cluster) -> Any:
    seen = set()
    for job_id in cluster.pending:
        job = cluster.jobs[job_id]
        if cluster.pending.parked(job_id) or job.not_before_s > 0 or job.request in seen:
            continue
        seen.add(job.request)
        for host in cluster.hosts.values():
            if isinstance(fit(host, job.request, cluster.policy.starts_at_once), Fit):
                yield job_id, host.name


@given(loads, failing, policies, paces)
@SLOW
def test_a_run_repeats(load: Synthetic, fails: Failing, policy: Policy, pace: Pace) -> None:
    assert replay(load, fails, policy, pace).run() == replay(load, fails, policy, pace).run()


@given(loads, paces)
@SLOW
def test_units_in_use_are_never_more_than_there_are(load: Synthetic, pace: Pace) -> None:
    run = replay(load, Failing(), Policy(), pace)
    gpus = run.load.gpus

    def look(_: Dirty, __: list[Transition]) -> None:
        held = sum(len(host.held) for host in run.world.cluster.hosts.values())
        running = sum(
            job.request.gpus for job in run.world.cluster.jobs.values() if job.state is JobState.RUNNING
        )  # fmt: skip
        assert run.agents.running_gpus == running <= held <= gpus
        point = run.recorder.points[-1]
        assert (point.running, point.allocated) == (running, held)
        waiting = [job for job in run.world.cluster.jobs.values() if job.state is JobState.PENDING]
        assert (point.waiting_jobs, point.waiting_gpus) == (len(waiting), sum(job.request.gpus for job in waiting))

    run.world.lookers.append(look)
    run.run()
