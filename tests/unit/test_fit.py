"""Placement arithmetic: properties over random hosts and requests, and the refusals' order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.v1 import scheduler_pb2
from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import InventoryChanged, JobSubmitted, SessionChanged, UnitReported
from scheduler.core.state.facts import GuardKind, InventoryFact, SessionFact, UnitFact, UnitReport, UnitState
from scheduler.core.state.hosts import Host, Node
from scheduler.core.state.jobs import Job, NumaPolicy, Request
from scheduler.core.state.reasons import Reason, Refusal
from scheduler.core.step import step

NODES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 2), st.integers(0, 8192)), min_size=1, max_size=3
)  # cores, threads a core, MiB
UNITS = st.lists(st.tuples(st.sampled_from(["a100", "h100"]), st.integers(-1, 2), st.booleans()), max_size=8)
REQUESTS = st.builds(
    Request,
    image=st.just("img"),
    gpus=st.integers(0, 4),
    model=st.sampled_from(["", "a100", "h100", "t4"]),
    gpu_memory_mib=st.sampled_from([0, 81920, 90000]),
    cpus=st.integers(1, 8),
    memory_mib=st.integers(64, 8192),
    numa=st.sampled_from(NumaPolicy),
)


def cluster_of(
    nodes: list[tuple[int, int, int]], units: list[tuple[str, int, bool]], names: tuple[str, ...] = ("h1",)
) -> Cluster:
    cluster = Cluster()
    for session, name in enumerate(names, 1):
        found = []
        next_cpu = 0
        for node, (cores, threads, mib) in enumerate(nodes):
            these = []
            for _ in range(cores):
                these.append(tuple(range(next_cpu, next_cpu + threads)))
                next_cpu += threads
            found.append((node, tuple(these), mib))
        facts = tuple(
            UnitFact(f"u{n}", model, 81920, min(node, len(nodes) - 1), (f"u{n}",))
            for n, (model, node, _) in enumerate(units)
        )
        step(cluster, SessionChanged(name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(name, InventoryFact(session, facts, tuple(found), frozenset({"img"}))), 1.0)
        for n, (_, _, free) in enumerate(units):
            state = UnitState.FREE if free else UnitState.DIRTY
            step(cluster, UnitReported(name, f"u{n}", UnitReport(state, session, "")), 1.0)
    cluster.take_dirty()
    return cluster


@given(NODES, UNITS, REQUESTS)
def test_a_fit_is_sound(
    nodes: list[tuple[int, int, int]], units: list[tuple[str, int, bool]], request: Request
) -> None:
    host = cluster_of(nodes, units).hosts["h1"]
    found = fit(host, request)
    if isinstance(found, Refusal):
        assert found.detail
        return
    assert len(found.units) == len(set(found.units)) == request.gpus
    facts = [host.units[u] for u in found.units]
    assert all(host.unit_state(u) is UnitState.FREE for u in found.units)
    assert len({f.model for f in facts}) <= 1
    assert all(request.model in ("", f.model) and f.memory_mib >= request.gpu_memory_mib for f in facts)
    assert sum(map(len, found.cores)) >= request.cpus
    assert sum(found.memory_mib) == request.memory_mib
    for node, mib in zip(found.nodes, found.memory_mib, strict=True):
        assert mib <= host.nodes[node].free_memory_mib
    assert set(found.cores) <= {core for n in found.nodes for core in host.nodes[n].free_cores}
    if request.numa is NumaPolicy.REQUIRED:
        assert len(found.nodes) == 1
        assert all(f.node == found.nodes[0] for f in facts)


@given(NODES, UNITS, REQUESTS)
def test_a_refusal_is_right(
    nodes: list[tuple[int, int, int]], units: list[tuple[str, int, bool]], request: Request
) -> None:
    """Where everything in the host would do, no request may be refused."""
    host = cluster_of(nodes, units).hosts["h1"]
    if not isinstance(fit(host, request), Refusal):
        return
    free = [u for u in host.units.values() if host.unit_state(u.id) is UnitState.FREE]
    by_model = {
        m: [u for u in free if u.model == m and u.memory_mib >= request.gpu_memory_mib] for m in ("a100", "h100")
    }
    wanted = [by_model[m] for m in by_model if request.model in ("", m)]
    spans = [{n} for n in host.nodes] if request.numa is NumaPolicy.REQUIRED else [set(host.nodes)]
    for span in spans:
        cpus = sum(len(core) for n in span for core in host.nodes[n].free_cores)
        mib = sum(host.nodes[n].free_memory_mib for n in span)
        enough = request.gpus == 0 or any(
            sum(request.numa is not NumaPolicy.REQUIRED or u.node in span for u in us) >= request.gpus for us in wanted
        )
        assert not (enough and cpus >= request.cpus and mib >= request.memory_mib)


@given(NODES, UNITS, st.lists(REQUESTS, max_size=12))
@settings(max_examples=60)
def test_capacity_is_never_exceeded(
    nodes: list[tuple[int, int, int]], units: list[tuple[str, int, bool]], requests: list[Request]
) -> None:
    def run() -> tuple[list[str], list[str]]:
        cluster = cluster_of(nodes, units, ("h1", "h2"))
        for n, request in enumerate(requests):
            step(cluster, JobSubmitted(Job(f"j{n}", request, n, 1.0)), 1.0)
        Placer().place(cluster, 2.0)
        return violations(cluster), [repr(cluster.allocations[a]) for a in sorted(cluster.allocations)]

    broken, placed = run()
    assert not broken
    assert run() == (broken, placed)  # the same input, the same bytes


def test_unknown_locality_is_not_good_enough_for_required() -> None:
    host = cluster_of([(4, 2, 4096), (4, 2, 4096)], [("a100", -1, True)]).hosts["h1"]
    wanted = Request("img", 1, "a100", 0, 2, 64, NumaPolicy.REQUIRED)
    refused = fit(host, wanted)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.NUMA_SPLIT
    assert isinstance(fit(host, Request("img", 1, "a100", 0, 2, 64, NumaPolicy.PREFERRED)), Fit)


def judged(*units: tuple[str, str], sick: str = "") -> Host:
    """A host whose units are of these models and unfit for these reasons; all are FREE, and one may be sick."""
    cluster = cluster_of([(8, 2, 4096)], [(model, 0, True) for model, _ in units])
    host = cluster.hosts["h1"]
    assert host.inventory is not None
    facts = tuple(replace(u, unfit=why) for u, (_, why) in zip(host.inventory.units, units, strict=True))
    step(cluster, InventoryChanged("h1", replace(host.inventory, units=facts)), 2.0)
    if sick:
        step(cluster, UnitReported("h1", sick, UnitReport(UnitState.FREE, 1, "", sick="AER")), 2.0)
    return host


@pytest.mark.parametrize(
    ("units", "gpus", "reason", "detail"),
    [
        ([("a", "no group")], 1, Reason.UNITS_UNFIT, "needs 1, 0 of 1 fit; u0: no group"),
        (
            [("a", "boot VGA"), ("a", "no group"), ("a", "no group")],
            1,
            Reason.UNITS_UNFIT,
            "needs 1, 0 of 3 fit; 2 units: no group; 1 for other reasons",
        ),
        (
            [("a", ""), ("a", "no group"), ("a", "no group"), ("a", "no group")],
            2,
            Reason.UNITS_UNFIT,
            "needs 2, 1 of 4 fit; 3 units: no group",
        ),
        (
            [("a", ""), ("a", "no group")],
            3,
            Reason.TOO_FEW_UNITS,
            "needs 3 units of one model, it has 2, 1 of them fit",
        ),
        ([("a", ""), ("b", "")], 2, Reason.TOO_FEW_UNITS, "needs 2 units of one model, it has 1"),
        ([("a", ""), ("b", "x"), ("b", "x")], 2, Reason.UNITS_UNFIT, "needs 2, 1 of 3 fit; 2 units: x"),
        ([("a", "x"), ("a", "y")], 1, Reason.UNITS_UNFIT, "needs 1, 0 of 2 fit; u0: x; 1 for other reasons"),
    ],
)
def test_who_needs_unfit_units_is_told_why_they_are(
    units: list[tuple[str, str]], gpus: int, reason: Reason, detail: str
) -> None:
    assert fit(judged(*units), Request("img", gpus)) == Refusal(reason, detail)


def test_a_sick_unit_is_not_handed_out() -> None:
    found = fit(judged(("a", ""), ("a", ""), sick="u0"), Request("img", 1))
    assert isinstance(found, Fit)
    assert found.units == ("u1",)
    host = judged(("a", ""), sick="u0")
    assert fit(host, Request("img", 1)) == Refusal(Reason.UNITS_UNFIT, "needs 1, 0 of 1 fit; u0: sick: AER")


def test_a_unit_that_is_well_again_is_handed_out() -> None:
    cluster = cluster_of([(8, 2, 4096)], [("a", 0, True)])
    for sick in ("AER", ""):
        step(cluster, UnitReported("h1", "u0", UnitReport(UnitState.FREE, 1, "", sick=sick)), 2.0)
    assert isinstance(fit(cluster.hosts["h1"], Request("img", 1)), Fit)


def test_reasons_mirror_the_contract() -> None:
    wire = {name.removeprefix("REASON_"): value for name, value in scheduler_pb2.Reason.items()}
    del wire["UNSPECIFIED"]
    assert wire == {reason.name: reason.value for reason in Reason}


def test_cores_of_one_node_may_have_different_numbers_of_cpus() -> None:
    even = Node(0, ((0, 1), (2, 3)), 1024, {(0, 1), (2, 3)}, 1024)
    uneven = Node(0, ((0, 1), (2,)), 1024, {(0, 1), (2,)}, 1024)
    assert (even.free_cpus, uneven.free_cpus) == (4, 3)
    even.free_cores.discard((0, 1))
    uneven.free_cores.discard((0, 1))
    assert (even.free_cpus, uneven.free_cpus) == (2, 1)
    assert Node(0, (), 1024, set(), 1024).free_cpus == 0
