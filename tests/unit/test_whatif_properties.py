"""Whatever a saved cluster looks like: unchanged it fares the same, and each VM of a lost host is accounted for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupool import dumpfile
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import VmReported
from scheduler.core.state.tables import AllocationState
from scheduler.simulate.changes import Changes
from scheduler.simulate.load import Replay, Settings
from scheduler.simulate.synthetic import Synthetic, load_of
from scheduler.simulate.vms import Pace
from scheduler.simulate.whatif import KINDS, Life, Question, answer
from tests.golden.stored import stored
from tests.unit.test_whatif import parts

SLOW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])

loads = st.builds(
    Synthetic,
    hosts=st.integers(2, 4),
    gpus_per_host=st.sampled_from((2, 4)),
    jobs=st.integers(10, 40),
    load=st.sampled_from((1.0, 3.0)),
    sizes=st.sampled_from(({1: 1.0}, {1: 3.0, 2: 1.0})),
    run_median_s=st.just(1800.0),
    tenants=st.sampled_from(({"default": 1.0}, {"a": 3.0, "b": 1.0})),
    priorities=st.sampled_from(({0: 1.0}, {0: 4.0, 10: 1.0})),
    preemptible=st.sampled_from((0.0, 0.5)),
    declared=st.sampled_from((0.0, 1.5)),
    seed=st.integers(0, 1000),
)
moments = st.sampled_from((100.0, 1000.0, 5000.0))


def saved(load: Synthetic, until_s: float) -> tuple[Cluster, dumpfile.Dump]:
    """A cluster in the middle of a load, and what its dump is read as."""
    run = Replay(load_of(load), Settings(until_s=until_s))
    run.run()
    cluster = run.world.cluster
    reports = {a.id: _report(cluster, a.id) for a in cluster.allocations.values() if a.state in _TOLD}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "now.json")
        told = parts(stored(cluster, reports), at_s=run.world.now)
        path.write_text("\n".join(dumpfile.lines(told)))
        return cluster, dumpfile.read(path)


_TOLD = (AllocationState.RUNNING, AllocationState.ENDED)


def _report(cluster: Cluster, allocation_id: str) -> VmReported:
    allocation = cluster.allocations[allocation_id]
    started_s = cluster.jobs[allocation.job].attempts[-1].started_s
    return VmReported(
        allocation.host, allocation.id, allocation.session, allocation.state, started_s=started_s, exit_code=0
    )  # fmt: skip


def asked(dump: dumpfile.Dump, changes: Changes, ahead_s: float) -> dict[str, Any]:
    return answer(Question(dump, Path("now.json"), changes, ahead_s, Pace()))


@given(loads, moments, st.sampled_from((900.0, 86400.0)))
@SLOW
def test_a_cluster_that_is_not_changed_fares_the_same(load: Synthetic, moment: float, ahead_s: float) -> None:
    _, dump = saved(load, moment)
    found = asked(dump, Changes(), ahead_s)
    assert found["jobs"] == []
    assert found["before"] == found["after"]


@given(loads, moments)
@SLOW
def test_every_vm_of_a_lost_host_is_accounted_for(load: Synthetic, moment: float) -> None:
    cluster, dump = saved(load, moment)
    mine = {a.job for a in cluster.allocations.values() if a.host == "h0000" and a.state not in _OVER}
    found = asked(dump, Changes(lose=("h0000",)), 900.0)
    told = {job["id"] for job in found["jobs"] if "h0000" in job["after"]["lost_with"]}
    stopping = {a.job for a in cluster.allocations.values() if a.stop_reason}
    assert mine - stopping <= told | _ended_before(dump)
    assert {job["change"] for job in found["jobs"]} <= set(KINDS)
    assert found["after"]["hosts_ready"] == found["before"]["hosts_ready"] - 1
    assert found["after"]["gpus_used"] <= found["after"]["gpus"]


_OVER = (AllocationState.ENDED, AllocationState.LOST)


def _ended_before(dump: dumpfile.Dump) -> set[str]:
    """Jobs that are over, by their limits, before the loss is noticed."""
    life = Life(dump, Path("now.json"), None, Pace())
    life.play(Pace().ttl_s + 1.0)
    return {job.id for job in life.cluster.jobs.values() if job.final}


@given(loads, moments, st.integers(1, 3))
@SLOW
def test_more_hosts_are_used_and_none_is_lent_twice(load: Synthetic, moment: float, more: int) -> None:
    _, dump = saved(load, moment)
    found = asked(dump, Changes(add=more, like="h0001"), 900.0)
    assert found["after"]["gpus"] == found["before"]["gpus"] + more * load.gpus_per_host
    assert found["after"]["gpus_used"] >= found["before"]["gpus_used"]
    waits = found["after"]["jobs_waiting"]
    if waits:  # then nothing that is free would do: all of them ask for more than any free part
        free = sum(sizes["1"] for sizes in found["after"]["free_by_model_and_size"].values())
        assert free == 0 or found["after"]["gpus_waited_for"] > waits
