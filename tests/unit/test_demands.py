"""Placement, `fit`, `explain`, `nearest`, `known` against an oracle that tries everything, on small random clusters."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scheduler.core.explain import explain
from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.fitting.known import Known
from scheduler.core.fitting.nearest import lacks
from scheduler.core.fitting.own import asked
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import (
    HostIntentChanged,
    InventoryChanged,
    JobSubmitted,
    SessionChanged,
    UnitReported,
    VmReported,
)
from scheduler.core.state.facts import (
    GuardKind,
    HostIntent,
    InventoryFact,
    SessionFact,
    UnitFact,
    UnitReport,
    UnitState,
)
from scheduler.core.state.hosts import Node
from scheduler.core.state.hugepages import HugepagesFact
from scheduler.core.state.jobs import Job, NumaPolicy, Outcome, Request
from scheduler.core.state.policy import Policy
from scheduler.core.state.rules import Rules, Within, meant
from scheduler.core.state.tables import AllocationState, JobState
from scheduler.core.step import step
from tests.unit.oracle import choices, could_take, overdrawn, wrong

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # examples are small; shrinking them takes minutes

LABELS = st.sampled_from([(), (("app", "a"),), (("app", "a"),), (("app", "b"),), (("app", "a"), ("tier", "1"))])
DEMANDS: tuple[dict[str, Any], ...] = (  # each is common enough to be met, and to be in the way
    {"models": ("a100", "h100")},
    {"vendor": "nvidia"},
    {"driver": "55*"},
    {"within": Within.NUMA_NODE},
    {"within": Within.PCIE_ROOT},
    {"hosts": (("zone", "[ab]"),)},
    {"hosts": (("host", "h2"),)},
    {"not_hosts": (("zone", "b"),)},
    {"near": (("app", "a"),)},
    {"near": (("app", "*"),)},
    {"apart": (("app", "a"),)},
    {"apart": (("tier", "1"),)},
    {"whole_host": True},
    {"whole_host": True},
    {"apart": (("app", "*"),)},
)
RULES = st.lists(st.sampled_from(DEMANDS), min_size=1, max_size=2).map(
    lambda found: Rules(**{name: value for demand in found for name, value in demand.items()})
)
REQUESTS = st.builds(
    Request,
    st.sampled_from(["img"] * 9 + ["other"]),
    st.sampled_from([0, 1, 1, 1, 2, 2, 3]),
    st.sampled_from(["", "", "", "", "a100"]),
    st.sampled_from([0, 0, 0, 0, 81920]),
    st.integers(1, 3),
    st.integers(1, 4).map(lambda n: n * 256),
    st.sampled_from(NumaPolicy),
    st.sampled_from([0, 0, 2048]),
    st.none() | RULES,
)
UNITS = st.lists(
    st.builds(
        UnitFact,
        st.just(""),
        st.sampled_from(["a100"] * 4 + ["h100"]),
        st.sampled_from([81920] * 4 + [40960]),
        st.sampled_from([0, 1, 0, 1, -1]),
        st.just(()),
        st.sampled_from([""] * 7 + ["no group"]),
        vendor=st.sampled_from(["nvidia"] * 4 + ["amd"]),
        root=st.sampled_from(["r0", "r1", "r0", ""]),
    ),
    min_size=2,
    max_size=5,
)
NODES = st.lists(st.tuples(st.integers(2, 6), st.integers(1, 2), st.integers(1, 5)), min_size=1, max_size=2)
HOSTS = st.tuples(
    UNITS,
    NODES,
    st.sampled_from([(), (("gpu-driver", "550"), ("zone", "a")), (("zone", "b"),)]),
    st.sampled_from([frozenset({"img"}), frozenset({"img", "other"})]),
    st.lists(st.sampled_from([UnitState.FREE] * 8 + [UnitState.DIRTY, UnitState.QUARANTINED]), max_size=5),
)
JOBS = st.lists(st.tuples(REQUESTS, LABELS, st.integers(0, 2), st.integers(-1, 1)), min_size=3, max_size=8)
CLUSTERS = st.lists(HOSTS, min_size=1, max_size=2)


def cluster_of(hosts: list[Any], starts_at_once: int) -> Cluster:
    cluster = Cluster(policy=Policy(starts_at_once=starts_at_once))
    for session, (units, nodes, labels, images, states) in enumerate(hosts, 1):
        name, cpu = f"h{session}", 0
        found = []
        for node, (cores, threads, quarters) in enumerate(nodes):
            mine = tuple(tuple(range(cpu + c * threads, cpu + (c + 1) * threads)) for c in range(cores))
            found.append((node, mine, quarters * 512))
            cpu += cores * threads
        facts = tuple(replace(unit, id=f"u{n}", node=min(unit.node, len(found) - 1)) for n, unit in enumerate(units))
        pages = tuple(HugepagesFact(node, 2048, 256, 128 * (session % 3)) for node, _, _ in found)
        fact = InventoryFact(session, facts, tuple(found), images, pages, labels)
        step(cluster, SessionChanged(name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(name, fact), 1.0)
        for n, unit in enumerate(facts):
            state = states[n] if n < len(states) else UnitState.FREE
            step(cluster, UnitReported(name, unit.id, UnitReport(state, session, "")), 1.0)
    cluster.take_dirty()
    return cluster


def submit(cluster: Cluster, jobs: list[tuple[Request, tuple[tuple[str, str], ...], int, int]]) -> None:
    for n, (request, labels, failures, priority) in enumerate(jobs):
        job = Job(f"j{n}", request, n, 1.0, priority=priority, labels=labels, max_failures_per_host=failures)
        if (rules := request.rules) is not None:
            own = meant((*rules.near, *rules.apart), labels)
            job.request = replace(request, rules=replace(rules, own=own))
        step(cluster, JobSubmitted(job), 1.0)


def fail_some(cluster: Cluster, times: int) -> None:
    """Some VMs do not start, and their units are clean again: their jobs have a history."""
    for allocation_id in sorted(cluster.allocations)[:times]:
        made = cluster.allocations[allocation_id]
        ended = VmReported(made.host, made.id, made.session, AllocationState.ENDED, Outcome.START_FAILED)
        step(cluster, ended, 3.0)
        for unit in made.units:
            step(cluster, UnitReported(made.host, unit, UnitReport(UnitState.FREE, made.session, made.id)), 3.0)
    cluster.take_dirty()


@given(CLUSTERS, JOBS, st.integers(0, 2), st.sampled_from([0, 0, 2]))
@settings(max_examples=250, deadline=None, phases=UNSHRUNK)
def test_every_placement_is_right_and_none_was_missed(
    hosts: list[Any],
    jobs: list[tuple[Request, tuple[tuple[str, str], ...], int, int]],
    fails: int,
    starts: int,
) -> None:
    cluster, placer, known = cluster_of(hosts, starts), Placer(), Known()
    for name, host in cluster.hosts.items():
        known.update(name, host.inventory)
    submit(cluster, jobs)
    for now in (2.0, 100.0, 200.0):
        while True:  # one at a time, so that each is judged against what was there before
            before = deepcopy(cluster)
            if not placer.place(cluster, now, limit=1):
                break
            assert not violations(cluster)
            (made,) = (cluster.allocations[a] for a in cluster.dirty.created)
            job = cluster.jobs[made.job]
            assert could_take(before, before.hosts[made.host], before.jobs[made.job]), made
            assert not list(wrong(cluster, job, made))
            assert not list(overdrawn(cluster))
            assert known.impossible(job.request) is None
            cluster.take_dirty()
        for job_id in sorted(cluster.pending):
            job = cluster.jobs[job_id]
            if job.not_before_s <= now:
                assert not any(could_take(cluster, host, job) for host in cluster.hosts.values()), job
        fail_some(cluster, fails)


@given(CLUSTERS, JOBS, st.integers(0, 1))
@settings(max_examples=150, deadline=None, phases=UNSHRUNK)
def test_explain_agrees_with_place_host_by_host(
    hosts: list[Any], jobs: list[tuple[Request, tuple[tuple[str, str], ...], int, int]], fails: int
) -> None:
    cluster = cluster_of(hosts, 0)
    submit(cluster, jobs)
    Placer().place(cluster, 2.0, limit=3)
    fail_some(cluster, fails)
    now = 1000.0
    for job_id in sorted(cluster.pending):
        found = explain(cluster, cluster.jobs[job_id], now)
        assert sum(count for _, count in found.counts) == sum(refusal is not None for _, refusal in found.verdicts)
        assert (found.nearest is None) == any(refusal is None for _, refusal in found.verdicts)
        for name, refusal in found.verdicts:
            alone = deepcopy(cluster)
            for other in [j for j in alone.pending if j != job_id]:
                alone.pending.discard(other)
            for other in alone.hosts:
                if other != name:
                    step(alone, HostIntentChanged(other, HostIntent(cordoned=True)), now)
            Placer().place(alone, now)
            assert (alone.jobs[job_id].state is JobState.STARTING) == (refusal is None), (job_id, name, refusal)


@given(CLUSTERS, JOBS)
@settings(max_examples=150, deadline=None, phases=UNSHRUNK)
def test_who_lacks_nothing_fits_and_one_node_is_enough_where_it_can_be(
    hosts: list[Any], jobs: list[tuple[Request, tuple[tuple[str, str], ...], int, int]]
) -> None:
    cluster = cluster_of(hosts, 0)
    submit(cluster, jobs)
    Placer().place(cluster, 2.0, limit=2)
    for job_id in sorted(cluster.pending):
        request = asked(cluster, cluster.jobs[job_id])
        for host in cluster.hosts.values():
            found = fit(host, request)
            assert isinstance(found, Fit) == (not lacks(host, request)), (found, lacks(host, request))
            if not isinstance(found, Fit) or len(found.nodes) < 2:
                continue
            taken = {host.units[unit].model for unit in found.units}
            for units in choices(host, request):
                if {unit.model for unit in units} == taken and {unit.memory_mib for unit in units} == {
                    found.gpu_memory_mib
                }:
                    assert not any(_all_on(host.nodes[n], request, units) for n in host.nodes)


def _all_on(node: Node, request: Request, units: tuple[UnitFact, ...]) -> bool:
    cpus = sum(map(len, node.free_cores))
    mib = node.free_mib(request.hugepage_size_kib)
    here = all(unit.node == node.id for unit in units)
    return here and cpus >= request.cpus and mib >= request.memory_mib
