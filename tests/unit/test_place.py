"""What the placer remembers between its looks never changes what it decides."""

from __future__ import annotations

from copy import copy, deepcopy
from operator import itemgetter

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.fit import Fit, fit
from scheduler.core.fitting.own import Case
from scheduler.core.fitting.ranking import FreeUnits, Rank, Ranking, answer, placeable
from scheduler.core.fitting.valuation import Valuation
from scheduler.core.invariants import violations
from scheduler.core.place import Placer, retract
from scheduler.core.reservation.admission import Choice
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import (
    Event,
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
from scheduler.core.state.hosts import Host
from scheduler.core.state.jobs import Job, Outcome, Request
from scheduler.core.state.movers import KEPT, Movers
from scheduler.core.state.tables import AllocationState, JobState
from scheduler.core.step import step

HOSTS = ("h1", "h2", "h3")
UNITS = ("u0", "u1", "u2", "u3")
SHAPES = (Request("img", 1, cpus=2), Request("img", 2, cpus=2), Request("img", 3, "h100"), Request("img", 0, cpus=3))

ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 3), st.integers(0, 1)),
    st.tuples(st.just("finish"), st.integers(0, 9), st.integers(0, 2)),
    st.tuples(st.just("report"), st.integers(0, 11), st.integers(0, 3)),
    st.tuples(st.just("cordon"), st.integers(0, 2), st.integers(0, 1)),
    st.tuples(st.just("retract"), st.integers(0, 9), st.just(0)),
)


class Forgetful(Placer):
    """Asks every host anew for every job: what the placer must amount to."""

    def _choose(self, cluster: Cluster, job: Job, mine: Case | None, now: float) -> Choice | None:
        del mine, now
        failed_on = {a.host for a in job.attempts if a.outcome is Outcome.START_FAILED}
        fits = [(host, fit(host, job.request, cluster.policy.starts_at_once)) for host in cluster.hosts.values()]
        values = _made_anew(self.values, cluster)
        ranked = [
            ((host.name in failed_on, *_priced(values, host, found, job.request)), host, found)
            for host, found in fits
            if isinstance(found, Fit) and placeable(cluster, host)
        ]
        return Choice(*min(ranked, key=itemgetter(0))[1:]) if ranked else None


def _made_anew(values: Valuation, cluster: Cluster) -> Valuation:
    """What counts what is free from nothing, with the same mix."""
    anew = copy(values)
    anew._free, anew._all = [0] * len(values._free), [0] * len(values._all)
    anew._free_of, anew._states, anew._steps, anew._position = {}, {}, (), -1
    anew.refresh(cluster)
    return anew


def _priced(values: Valuation, host: Host, found: Fit, request: Request) -> Rank:
    spread, lost = values.cost(host, found, request)
    lost += values.price(values.kind(host), request.gpus)
    return spread, lost, found.gpu_memory_mib, len(found.nodes), found.leftover, host.name


def fleet() -> Cluster:
    cluster = Cluster()
    for session, name in enumerate(HOSTS, 1):
        model = "h100" if name == "h3" else "a100"
        units = tuple(UnitFact(u, model, 81920, n % 2, (u,)) for n, u in enumerate(UNITS))
        nodes = tuple((node, tuple((8 * node + core,) for core in range(4)), 4096) for node in (0, 1))
        step(cluster, SessionChanged(name, SessionFact(session, "b", GuardKind.SOFT, True, True)), 1.0)
        step(cluster, InventoryChanged(name, InventoryFact(session, units, nodes, frozenset({"img"}))), 1.0)
        for unit in UNITS:
            step(cluster, UnitReported(name, unit, UnitReport(UnitState.FREE, session, "")), 1.0)
    for n in range(20):
        step(cluster, JobSubmitted(Job(f"first-{n:02}", SHAPES[n * 7 % 4], n, 1.0, priority=n % 3)), 1.0)
    cluster.take_dirty()  # hosts whose records are not written are not placed on
    return cluster


def finish(cluster: Cluster, which: int, how: int) -> list[Event]:
    """One allocation ends, failed or not, and its units come back, clean or not."""
    ids = sorted(cluster.allocations)
    if not ids:
        return []
    gone = cluster.allocations[ids[which % len(ids)]]
    ended = VmReported(
        gone.host, gone.id, gone.session, AllocationState.ENDED, Outcome.START_FAILED if how else Outcome.EXITED, 0
    )
    state = UnitState.QUARANTINED if how > 1 else UnitState.FREE
    return [ended, *(UnitReported(gone.host, u, UnitReport(state, gone.session, gone.id)) for u in gone.units)]


def report(which: int, how: int) -> Event:
    name, unit = HOSTS[which % 3], UNITS[which // 3]
    state = (UnitState.FREE, UnitState.DIRTY, None, UnitState.FREE)[how]
    said = UnitReport(state, HOSTS.index(name) + 1, "", sick="AER" if how == 3 else "") if state else None
    return UnitReported(name, unit, said)


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 3)), min_size=8, max_size=40), st.sampled_from([10, 30, 1000]))
@settings(max_examples=100, deadline=None)
def test_memory_changes_no_decision(actions: list[tuple[tuple[str, int, int], int]], enough: int) -> None:
    cluster, placer, now = fleet(), Placer(values=Valuation(enough)), 2.0
    for n, ((what, which, how), limit) in enumerate(actions):
        now += 5.0
        events: list[Event] = []
        match what:
            case "submit":
                events = [JobSubmitted(Job(f"j{n}-{k}", SHAPES[which], n, now, priority=how)) for k in range(3)]
            case "finish":
                events = finish(cluster, which, how)
            case "report":
                events = [report(which, how)]
            case "cordon":
                events = [HostIntentChanged(HOSTS[which], HostIntent(cordoned=bool(how)))]
            case "retract" if waiting := [a for a in cluster.allocations.values() if _fresh(cluster, a.job)]:
                retract(cluster, waiting[which % len(waiting)], now, "test")
        for event in events:
            step(cluster, event, now)
        if limit:
            wanted = deepcopy(cluster)
            Forgetful(values=_made_anew(placer.values, wanted)).place(wanted, now, limit)
            placer.place(cluster, now, limit)
            assert cluster.allocations == wanted.allocations
        assert not violations(cluster)
        assert_rankings_are_as_made_anew(cluster, placer)


def assert_rankings_are_as_made_anew(cluster: Cluster, placer: Placer) -> None:
    """What is kept up by what changed is what asking every host gives, and in order."""
    for request in SHAPES:
        placer.values.refresh(cluster)
        kept = placer.rankings.get(request) or Ranking(placer.values)
        anew, free = Ranking(placer.values), FreeUnits()
        placer.free.refresh(cluster)
        free.refresh(cluster)
        kept.refresh(cluster, request, placer.free)
        anew.refresh(cluster, request, free)
        assert kept.fits == anew.fits == _asked_all(cluster, request, placer.values)
        hosts, values = cluster.hosts, placer.values
        order = sorted(kept.fits.values(), key=lambda found: _priced(values, hosts[found[0][-1]], found[1], request))
        assert list(kept.in_order()) == list(anew.in_order()) == order
        assert kept.best() == (order[0] if order else None)
        for count in range(len(UNITS) + 1):
            assert set(placer.free.at_least(count)) == set(free.at_least(count))


def _asked_all(cluster: Cluster, request: Request, values: Valuation) -> dict[str, tuple[Rank, Fit]]:
    found = {name: answer(cluster, host, request, values) for name, host in cluster.hosts.items()}
    return {name: given for name, given in found.items() if given is not None}


def test_a_reader_who_comes_too_late_looks_at_everything() -> None:
    movers = Movers()
    movers.add("h1")
    assert movers.since(0) == ["h1"]
    for _ in range(KEPT):
        movers.add("h2")
    assert movers.since(0) is None
    late = movers.end - 2
    movers.add("h3")
    movers.add("h2")
    assert movers.since(late) == ["h2", "h3"]
    assert movers.since(movers.end) == []


def _fresh(cluster: Cluster, job: str) -> bool:
    return cluster.jobs[job].state is JobState.STARTING


def test_a_mix_is_learnt_anew_only_if_it_is_another() -> None:
    cluster, values = fleet(), Valuation(10)
    values.learn(cluster)
    assert values.epoch == 1
    for n in range(200):
        step(cluster, JobSubmitted(Job(f"same-{n:03}", SHAPES[n % 4], n, 1.0)), 1.0)
    values.learn(cluster)
    assert values.epoch == 1, "as many of each shape: whatever is ranked stands"
    for n in range(200):
        step(cluster, JobSubmitted(Job(f"other-{n:03}", SHAPES[0], n, 1.0)), 1.0)
    values.learn(cluster)
    assert values.epoch == 2


def test_a_placer_that_began_in_turns_decides_as_another() -> None:
    clusters, placers = (fleet(), fleet()), (Placer(values=Valuation(10)), Placer(values=Valuation(10)))
    assert sum(1 for _ in placers[1].begin(clusters[1])) == 2 * len(HOSTS)
    for now in (2.0, 3.0):
        for cluster, placer in zip(clusters, placers, strict=True):
            placer.place(cluster, now)
            for event in finish(cluster, 1, 0):
                step(cluster, event, now)
        assert clusters[0].allocations == clusters[1].allocations
    assert clusters[0].allocations


def test_a_host_that_changed_since_it_was_asked_says_nothing_of_those_that_did_not() -> None:
    """What it gave leads on to no state for the others, as more than that has changed on it."""
    cluster, placer = fleet(), Placer()
    for name, job in (("h1", "first-00"), ("h2", "first-04")):
        host = cluster.hosts[name]
        given = placer.alike.answer(host, SHAPES[0], placer.values).fit
        assert given is not None
        if name == "h1":
            step(cluster, UnitReported(name, "u3", UnitReport(UnitState.DIRTY, host.session, "")), 2.0)
        placer.bind(cluster, cluster.jobs[job], Choice(host, given), 2.0)
    large = Request("img", 3, cpus=2)
    for host in cluster.hosts.values():
        found = fit(host, large)
        assert placer.alike.answer(host, large, placer.values).fit == (found if isinstance(found, Fit) else None)
