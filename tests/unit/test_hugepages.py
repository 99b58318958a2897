"""Hugepages are never promised twice, whoever else takes some, and in whatever order the news comes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.fit import fit
from scheduler.core.invariants import violations
from scheduler.core.place import Placer
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.events import InventoryChanged, JobSubmitted, SessionChanged, UnitReported, VmReported
from scheduler.core.state.facts import GuardKind, InventoryFact, SessionFact, UnitFact, UnitReport, UnitState
from scheduler.core.state.hosts import Allocation
from scheduler.core.state.hugepages import HugepagesFact, Pool, pool_of, size_name
from scheduler.core.state.jobs import Job, NumaPolicy, Outcome, Request
from scheduler.core.state.reasons import Reason, Refusal
from scheduler.core.state.tables import AllocationState as State
from scheduler.core.step import step
from scheduler.load import load
from tests.golden.stored import stored

SIZE_KIB, PAGE_MIB = 2048, 2
TOTAL = 64  # pages a node
NODES = (0, 1)
UNITS = tuple(UnitFact(f"u{n}", "a100", 81920, n % 2, (f"u{n}",)) for n in range(6))
SHAPES = tuple(
    Request("img", gpus, cpus=1, memory_mib=pages * PAGE_MIB, numa=numa, hugepage_size_kib=SIZE_KIB)
    for gpus, pages, numa in ((1, 20, NumaPolicy.REQUIRED), (1, 50, NumaPolicy.REQUIRED), (0, 70, NumaPolicy.PREFERRED))
)


@dataclass
class Host:
    """The truth about one host: who has its pages. The cluster is told of it by `look` alone."""

    cluster: Cluster = field(default_factory=Cluster)
    placer: Placer = field(default_factory=Placer)
    foreign: dict[int, int] = field(default_factory=lambda: dict.fromkeys(NODES, 0))
    have: dict[str, dict[int, int]] = field(default_factory=dict)  # pages of our VMs, by allocation and node
    reports: dict[str, VmReported] = field(default_factory=dict)
    seen_have: frozenset[str] = frozenset()  # whose VMs had pages at the last look
    unsure: frozenset[str] = frozenset()  # half made or half gone then: their agent's word and their pages differ
    seen_foreign: dict[int, int] = field(default_factory=dict)
    now: float = 1.0
    jobs: int = 0

    def __post_init__(self) -> None:
        step(self.cluster, SessionChanged("h1", SessionFact(1, "b", GuardKind.SOFT, True, True)), 1.0)
        self.look()
        for unit in UNITS:
            step(self.cluster, UnitReported("h1", unit.id, UnitReport(UnitState.FREE, 1, "")), 1.0)
        self.cluster.take_dirty()

    def free(self, node: int) -> int:
        return TOTAL - self.foreign[node] - sum(pages.get(node, 0) for pages in self.have.values())

    def look(self) -> None:
        cores = {node: tuple((100 * node + n,) for n in range(30)) for node in NODES}
        pages = tuple(HugepagesFact(node, SIZE_KIB, TOTAL, self.free(node)) for node in NODES)
        fact = InventoryFact(1, UNITS, tuple((n, cores[n], 4096) for n in NODES), frozenset({"img"}), pages)
        step(self.cluster, InventoryChanged("h1", fact), self.now)
        self.seen_have, self.seen_foreign = frozenset(self.have), dict(self.foreign)
        self.compare()

    def compare(self) -> None:
        told = {a.id for a in self.cluster.allocations.values() if a.state not in (State.BOUND, State.ENDED)}
        self.unsure = frozenset(told - self.seen_have)

    def report(self, a: Allocation, state: State) -> None:
        outcome = Outcome.EXITED if state is State.ENDED else None
        event = VmReported("h1", a.id, 1, state, outcome, 0 if outcome else None)
        self.reports[a.id] = event
        step(self.cluster, event, self.now)

    def advance(self, a: Allocation) -> None:
        """The agent takes the next step with the allocation: what it does, or what it says."""
        has = a.id in self.have
        wants = {node: mib // PAGE_MIB for node, mib in zip(a.nodes, a.memory_mib, strict=True)}
        match a.state:
            case State.BOUND:
                self.report(a, State.PREPARING)
            case State.PREPARING if not has:
                if all(self.free(node) >= pages for node, pages in wants.items()):
                    self.have[a.id] = wants
                else:
                    self.report(a, State.ENDED)
            case State.PREPARING:
                self.report(a, State.RUNNING)
            case State.RUNNING:
                self.report(a, State.STOPPING)
            case State.STOPPING if has:
                del self.have[a.id]
            case State.STOPPING:
                self.report(a, State.ENDED)
            case State.ENDED:
                for unit in a.units:
                    step(self.cluster, UnitReported("h1", unit, UnitReport(UnitState.FREE, 1, a.id)), self.now)

    def act(self, what: str, which: int) -> None:
        self.now += 1000.0  # no back-off lasts
        held = [self.cluster.allocations[a] for a in sorted(self.cluster.allocations)]
        match what:
            case "submit":
                self.jobs += 1
                step(self.cluster, JobSubmitted(Job(f"j{self.jobs:03}", SHAPES[which % 3], self.jobs, 1.0)), self.now)
            case "look":
                self.look()
            case "leader":
                items = stored(self.cluster, self.reports)
                self.cluster, self.placer = Cluster(), Placer()
                load(self.cluster, items, self.now)
                self.cluster.take_dirty()
                self.compare()
            case "foreign":
                node = which % 2
                self.foreign[node] = min(which * 3, self.foreign[node] + max(0, self.free(node)))
            case "advance" if held:
                self.advance(held[which % len(held)])

    def place(self) -> None:
        self.placer.place(self.cluster, self.now)
        fresh = self.cluster.dirty.created
        allocations = self.cluster.allocations.values()
        sure = all(a.id not in self.unsure or a.state is State.ENDED for a in allocations)
        for node in NODES:
            lent = sum(dict(zip(a.nodes, a.memory_mib, strict=True)).get(node, 0) for a in allocations) // PAGE_MIB
            assert lent <= TOTAL, "more is promised than there is"
            touched = any(node in self.cluster.allocations[a].nodes for a in fresh)
            if touched and sure:
                assert lent + self.seen_foreign[node] <= TOTAL, "what others have is promised"
        assert not violations(self.cluster)
        self.cluster.take_dirty()

    def settle(self) -> None:
        """Every VM is made or gone, and told of; then the host looks."""
        for a in [self.cluster.allocations[a] for a in sorted(self.cluster.allocations)]:
            while a.state in (State.PREPARING, State.STOPPING) and a.id in self.cluster.allocations:
                self.advance(a)
        self.look()


ACTIONS = st.tuples(st.sampled_from(["submit", "advance", "advance", "advance", "look", "foreign", "leader"]),
                    st.integers(0, 20))  # fmt: skip


@given(st.lists(ACTIONS, max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_page_is_promised_twice_and_none_is_forgotten(actions: list[tuple[str, int]]) -> None:
    host = Host()
    for what, which in actions:
        host.act(what, which)
        host.place()
    host.settle()
    for node in NODES:
        pool = host.cluster.hosts["h1"].nodes[node].hugepages[SIZE_KIB]
        promised = sum(
            dict(zip(a.nodes, a.memory_mib, strict=True)).get(node, 0) for a in host.cluster.allocations.values()
        )
        assert pool.free_mib == (TOTAL - host.foreign[node]) * PAGE_MIB - promised


def cluster_of(*pages: HugepagesFact) -> Cluster:
    cluster = Cluster()
    step(cluster, SessionChanged("h1", SessionFact(1, "b", GuardKind.SOFT, True, True)), 1.0)
    nodes = tuple((n, tuple((8 * n + c,) for c in range(8)), 4096) for n in (0, 1))
    step(cluster, InventoryChanged("h1", InventoryFact(1, (), nodes, frozenset({"img"}), pages)), 1.0)
    cluster.take_dirty()
    return cluster


def refusal(cluster: Cluster, request: Request) -> Refusal:
    found = fit(cluster.hosts["h1"], request)
    assert isinstance(found, Refusal)
    return found


def test_refusals_tell_size_and_hands() -> None:
    cluster = cluster_of(HugepagesFact(0, 2048, 512, 400), HugepagesFact(1, 2048, 256, 256))
    wanted = Request("img", cpus=1, memory_mib=2048, hugepage_size_kib=2048)
    told = refusal(cluster, wanted)
    assert told == Refusal(Reason.TOO_FEW_HUGEPAGES, "needs 2048 MiB in pages of 2 MiB, it has 1536")
    wanted = Request("img", cpus=1, memory_mib=1400, hugepage_size_kib=2048)
    told = refusal(cluster, wanted)
    text = "needs 1400 MiB in pages of 2 MiB, 1312 of 1536 free, 224 in other hands"
    assert told == Refusal(Reason.HUGEPAGES_BUSY, text)
    strict = Request("img", cpus=1, memory_mib=1000, numa=NumaPolicy.REQUIRED, hugepage_size_kib=2048)
    told = refusal(cluster, strict)
    assert told == Refusal(Reason.NUMA_SPLIT, "no one node has it all; node 0 lacks 200 MiB in pages of 2 MiB")
    huge = Request("img", cpus=1, memory_mib=1024, hugepage_size_kib=1024 * 1024)
    assert refusal(cluster, huge).reason is Reason.TOO_FEW_HUGEPAGES


def test_ordinary_memory_and_hugepages_are_two_accounts() -> None:
    cluster = cluster_of(HugepagesFact(0, 2048, 512, 512))
    for n, size_kib in enumerate((0, 2048)):
        request = Request("img", cpus=1, memory_mib=1024, numa=NumaPolicy.REQUIRED, hugepage_size_kib=size_kib)
        step(cluster, JobSubmitted(Job(f"j{n}", request, n, 1.0)), 1.0)
    assert Placer().place(cluster, 2.0) == 2
    node = cluster.hosts["h1"].nodes[0]
    assert (node.free_memory_mib, node.hugepages[2048].free_mib) == (3072, 0)
    assert not violations(cluster)


def test_a_node_that_shrank_under_its_vms_lends_nothing_and_stops_nobody() -> None:
    """An operator who sets hugepages aside takes them from ordinary memory, also from what is lent."""
    cluster = cluster_of()
    first = Request("img", cpus=1, memory_mib=4096, numa=NumaPolicy.REQUIRED)
    step(cluster, JobSubmitted(Job("j0", first, 0, 1.0)), 1.0)
    placer = Placer()
    placer.place(cluster, 2.0)
    cluster.take_dirty()
    nodes = ((0, ((0,), (1,)), 1024), (1, ((8,), (9,)), 4096))
    step(cluster, InventoryChanged("h1", InventoryFact(1, (), nodes, frozenset({"img"}))), 3.0)
    step(cluster, JobSubmitted(Job("j1", Request("img", cpus=3, memory_mib=2048), 1, 3.0)), 3.0)
    placer.place(cluster, 4.0)
    placed = cluster.allocations["j1.1"]
    assert (placed.nodes, placed.memory_mib) == ((0, 1), (0, 2048)), "its debt is not the other node's"
    assert not violations(cluster), "what the inventory says of node 0 is no fault of this turn"


def test_pages_that_are_promised_twice_break_an_invariant() -> None:
    cluster = cluster_of(HugepagesFact(0, 2048, 512, 512))
    request = Request("img", cpus=1, memory_mib=1024, hugepage_size_kib=2048)
    step(cluster, JobSubmitted(Job("j0", request, 0, 1.0)), 1.0)
    Placer().place(cluster, 2.0)
    cluster.hosts["h1"].nodes[0].hugepages[2048].seen_free_mib -= 2
    assert violations(cluster) == ["host h1: node 0 lends 1024 MiB of hugepages of 2048 KiB, counts -2 free"]
    cluster.hosts["h1"].nodes[0].hugepages[2048].lent_mib -= 2
    assert "lends 1024 MiB of hugepages" in violations(cluster)[0]


def test_a_reading_that_cannot_be() -> None:
    assert pool_of(HugepagesFact(0, 2048, 4, 9)) == Pool(8, 8)
    assert [size_name(kib) for kib in (64, 2048, 1048576, 16777216)] == ["64 KiB", "2 MiB", "1 GiB", "16 GiB"]


def test_what_a_vm_gave_back_before_it_was_said_is_not_counted_twice() -> None:
    host = Host()
    host.act("submit", 0)
    host.place()
    (held,) = host.cluster.allocations.values()
    (node,) = held.nodes
    for _ in range(4):
        host.advance(held)
    assert held.state is State.STOPPING
    host.foreign[node] = TOTAL - 20
    host.advance(held)  # the VM is gone, and nobody has said so
    host.look()
    pool = host.cluster.hosts["h1"].nodes[node].hugepages[SIZE_KIB]
    host.advance(held)
    assert (pool.usable_mib, pool.free_mib) == (20 * PAGE_MIB, 0)
