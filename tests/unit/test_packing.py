"""The packing core: nothing is given twice, and what the index says is what asking every host would say."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.packing import HostSize, Mix, NodeSize, Packer, Shape, Share, Taken
from scheduler.core.packing.pressure import prices

SIZES = (
    HostSize("a", "T4", (NodeSize(52_000, 9_000, 2),)),
    HostSize("b", "G2", (NodeSize(24_000, 4_000, 2), NodeSize(24_000, 4_000, 2))),
    HostSize("c", "G2", (NodeSize(24_000, 4_000, 2), NodeSize(24_000, 4_000, 2))),
    HostSize("d", "T4", (NodeSize(52_000, 9_000, 2),)),
    HostSize("e", "V100", (NodeSize(16_000, 16_000, 4),)),
    HostSize("f", "V100", (NodeSize(16_000, 0, 1),)),
)
SHAPES = (
    Shape(0, 8_000, 1_000),
    Shape(320, 3_000, 500),
    Shape(470, 11_000, 1_000),
    Shape(500, 1_000, 4_000, ("T4",)),
    Shape(1000, 4_000, 1_000),
    Shape(1000, 1_000, 2_500),
    Shape(1000, 12_000, 2_000, ("T4", "V100")),
    Shape(2000, 8_000, 3_000),
    Shape(4000, 12_001, 2_001),
    Shape(1000, 0, 0, ("H100",)),
)
UNSEEN = Shape(250, 2_000, 100)  # not in the mix
MIX = Mix({shape: 14 if shape.models else 1 + 3 * n for n, shape in enumerate(SHAPES)})  # models are scarce
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.sampled_from((*SHAPES, UNSEEN))),
        st.tuples(st.just("free"), st.integers(0, 40)),
        st.tuples(st.just("close"), st.sampled_from("abcdef")),
        st.tuples(st.just("open"), st.sampled_from("abcdef")),
    ),
    max_size=60,
)


class Fleet:
    """A packer with all that was done to it."""

    def __init__(self) -> None:
        self.packer = Packer(SIZES, MIX)
        self.taken: list[tuple[Shape, Taken]] = []
        self.closed: set[str] = set()

    def do(self, event: tuple[str, object]) -> None:
        what, arg = event
        if what == "place":
            assert isinstance(arg, Shape)
            taken = self.packer.place(arg)
            if taken is not None:
                assert taken.host not in self.closed
                self.taken.append((arg, taken))
        elif what == "free" and self.taken:
            assert isinstance(arg, int)
            self.packer.free(self.taken.pop(arg % len(self.taken))[1])
        elif what == "close":
            self.packer.close(str(arg))
            self.closed.add(str(arg))
        elif what == "open":
            self.packer.open(str(arg))
            self.closed.discard(str(arg))

    def rebuilt(self) -> Packer:
        """Another, which was told only what is taken now: it knows nothing of how it came about."""
        packer = Packer(SIZES, MIX)
        packer.take(taken for _, taken in self.taken)
        for name in sorted(self.closed):
            packer.close(name)
        return packer


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_nothing_is_given_twice(events: list[tuple[str, object]]) -> None:
    fleet = Fleet()
    for event in events:
        fleet.do(event)
    check(fleet)


@pytest.mark.parametrize("first", range(len(SHAPES)))
def test_a_fleet_is_filled_to_the_brim_and_no_further(first: int) -> None:
    fleet = Fleet()
    for shape in SHAPES[first:] + SHAPES[:first]:
        fleet.do(("place", shape))
        fleet.do(("place", shape))
    for shape in (SHAPES[first:] + SHAPES[:first]) * 2:
        count = -1
        while count < len(fleet.taken):
            count = len(fleet.taken)
            fleet.do(("place", shape))
    check(fleet)
    assert not any(_room(fleet, size, shape) for size in SIZES for shape in SHAPES)


def check(fleet: Fleet) -> None:
    """Each task has what it asked for, and what hosts have left is what they had, less that."""
    used: Counter[tuple[str, int, str]] = Counter()
    for shape, taken in fleet.taken:
        given = 0
        for share in taken.shares:
            used[taken.host, share.node, "cpu"] += share.cpu_milli
            used[taken.host, share.node, "memory"] += share.memory_mib
            assert len(set(share.gpus)) == len(share.gpus)
            for gpu in share.gpus:
                used[taken.host, share.node, f"gpu{gpu}"] += share.gpu_milli
                given += share.gpu_milli
        assert given == shape.gpu_milli
        assert sum(share.cpu_milli for share in taken.shares) == shape.cpu_milli
        assert sum(share.memory_mib for share in taken.shares) == shape.memory_mib
        assert shape.allows(next(size.model for size in SIZES if size.name == taken.host))
        assert len(taken.shares) == 1 or shape.gpu_milli == 4000  # one NUMA node wherever one could ever do
    for size in SIZES:
        for number, (node, free) in enumerate(zip(size.nodes, fleet.packer.free_of(size.name), strict=True)):
            cpu, memory, gpus = free
            assert cpu == node.cpu_milli - used[size.name, number, "cpu"] >= 0
            assert memory == node.memory_mib - used[size.name, number, "memory"] >= 0
            assert gpus == tuple(1000 - used[size.name, number, f"gpu{gpu}"] for gpu in range(node.gpus))
            assert all(0 <= gpu <= 1000 for gpu in gpus)


@given(EVENTS)
@settings(max_examples=60, deadline=None)
def test_the_index_is_what_one_built_anew_would_be(events: list[tuple[str, object]]) -> None:
    """So the decision follows from what is free, and not from how it came to be free; and a miss is a true miss."""
    fleet = Fleet()
    for event in events:
        fleet.do(event)
    rebuilt = fleet.rebuilt()
    assert fleet.packer._current_prices() == rebuilt._current_prices()
    for shape in (*SHAPES, UNSEEN):
        kept, anew = fleet.packer.place(shape), rebuilt.place(shape)
        assert kept == anew


@given(EVENTS)
@settings(max_examples=40, deadline=None)
def test_a_task_is_refused_only_if_no_host_has_room(events: list[tuple[str, object]]) -> None:
    fleet = Fleet()
    for event in events:
        fleet.do(event)
    for shape in SHAPES:
        room = any(_room(fleet, size, shape) for size in SIZES)
        taken = fleet.packer.place(shape)
        assert (taken is not None) == room
        if taken is not None:
            fleet.packer.free(taken)


def _room(fleet: Fleet, size: HostSize, shape: Shape) -> bool:
    """By the words of the rules alone."""
    if size.name in fleet.closed or not shape.allows(size.model):
        return False
    free = fleet.packer.free_of(size.name)
    largest = max(node.gpus for node in size.nodes)
    if shape.gpu_milli > largest * 1000:
        count = len(free)
        ceiling = [-(-need // count) for need in (shape.gpu_milli // 1000, shape.cpu_milli, shape.memory_mib)]
        enough = [gpus.count(1000) >= ceiling[0] and cpu >= ceiling[1] for cpu, _, gpus in free]
        return count > 1 and all(enough) and all(memory >= ceiling[2] for _, memory, _ in free)
    for cpu, memory, gpus in free:
        if cpu >= shape.cpu_milli and memory >= shape.memory_mib:
            if shape.gpu_milli >= 1000 and gpus.count(1000) * 1000 >= shape.gpu_milli:
                return True
            if shape.gpu_milli < 1000 and max((0, *gpus)) >= shape.gpu_milli:
                return True
    return False


@given(EVENTS)
@settings(max_examples=15, deadline=None)
def test_the_same_input_gives_the_same_decisions(events: list[tuple[str, object]]) -> None:
    first, second = Fleet(), Fleet()
    for event in events:
        first.do(event)
        second.do(event)
    assert first.taken == second.taken


def test_tasks_with_many_cores_go_where_cores_are_plenty() -> None:
    poor, rich = HostSize("a", "G2", (NodeSize(72_000, 999, 8),)), HostSize("z", "T4", (NodeSize(104_000, 999, 2),))
    light, heavy, none = Shape(1000, 4_000, 8), Shape(1000, 24_000, 8), Shape(0, 32_000, 8)
    packer = Packer([poor, rich], Mix({light: 6, heavy: 2, none: 2}))
    hosts = [taken.host for shape in (none, heavy, light) if (taken := packer.place(shape)) is not None]
    assert hosts == ["z", "z", "a"]


def test_a_slice_goes_where_it_fills_a_gpu() -> None:
    mix = Mix({Shape(530, 1, 1): 1, Shape(470, 1, 1): 1})
    packer = Packer([HostSize("a", "G2", (NodeSize(96_000, 393_000, 4),))], mix)
    for shape in (Shape(530, 1, 1), Shape(470, 1, 1)):
        packer.place(shape)
    assert packer.free_of("a")[0][2] == (0, 1000, 1000, 1000)


def test_flexible_tasks_keep_off_models_that_others_need() -> None:
    hosts = [HostSize("a", "T4", (NodeSize(96, 96, 4),)), HostSize("b", "G2", (NodeSize(96, 96, 4),))]
    any_model, only_t4 = Shape(1000, 1, 1), Shape(1000, 1, 1, ("T4",))
    packer = Packer(hosts, Mix({any_model: 1, only_t4: 1}))
    assert [taken.host for _ in range(3) if (taken := packer.place(any_model)) is not None] == ["b", "b", "b"]
    assert [taken.host for _ in range(4) if (taken := packer.place(only_t4)) is not None] == ["a"] * 4
    assert packer.place(only_t4) is None


def test_no_price_where_demand_can_be_spread_evenly() -> None:
    assert prices({(0, 1): 10.0, (0,): 2.0}, [1000, 1000]) == pytest.approx([0.0, 0.0], abs=1e-6)
    scarce = prices({(0, 1): 1.0, (0,): 10.0}, [1000, 1000])
    assert scarce[0] > 1 > scarce[1] == 0


def test_many_shapes_and_a_long_life_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.core.packing.index.SHAPES_KEPT", 8)
    monkeypatch.setattr("scheduler.core.packing.states.STEPS_KEPT", 4)
    monkeypatch.setattr("scheduler.core.packing.states.KEPT", 30)
    packer = Packer(SIZES, MIX)
    for n in range(400):
        taken = packer.place(Shape(100 + n % 40, 100 + n % 7, n % 50))
        assert taken is not None
        if n % 11:
            packer.free(taken)
    index = packer._index
    assert len(index._shapes) <= 8
    assert len(packer._states._known) <= 31
    assert all(len(heap.answers) < 200 for heaps in index._shapes.values() for _, heap in heaps)


@pytest.mark.parametrize("seed", range(8))
def test_no_state_comes_back_beside_its_equal(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Though all that are not in use are forgotten every few decisions."""
    monkeypatch.setattr("scheduler.core.packing.states.KEPT", 12)
    monkeypatch.setattr("scheduler.core.packing.index.SLACK", 0)
    fleet, rng = Fleet(), Random(seed)
    for _ in range(300):
        fleet.do(("place", rng.choice(SHAPES)) if rng.random() < 0.55 else ("free", rng.randrange(40)))
        inside = [state for state in fleet.packer._state_of if state is not None]
        known = fleet.packer._states._known
        assert all(known.get((state.model, state.node_gpus, state.nodes)) is state for state in inside)
    check(fleet)
    rebuilt = fleet.rebuilt()
    assert [fleet.packer.place(shape) for shape in SHAPES] == [rebuilt.place(shape) for shape in SHAPES]


@pytest.mark.parametrize("slack", [64, -9])
def test_a_state_that_comes_back_is_found_again(monkeypatch: pytest.MonkeyPatch, slack: int) -> None:
    """Though its answer was dropped meanwhile: at the top of its heap, or in a sweep."""
    monkeypatch.setattr("scheduler.core.packing.index.SLACK", slack)
    packer = Packer([HostSize("a", "G2", (NodeSize(96, 96, 1),))], Mix({Shape(1000, 1, 1): 1}))
    for _ in range(3):
        taken = packer.place(Shape(1000, 1, 1))
        assert taken is not None
        assert packer.place(Shape(1000, 1, 1)) is None
        packer.free(taken)


def test_prices_come_down_when_tasks_end() -> None:
    hosts = [HostSize("a", "T4", (NodeSize(96, 96, 4),)), HostSize("b", "G2", (NodeSize(96, 96, 4),))]
    packer = Packer(hosts, Mix({Shape(1000, 1, 1): 1, Shape(1000, 1, 1, ("T4",)): 1}))
    before = list(packer._current_prices())
    taken = [packer.place(Shape(1000, 1, 1, ("T4",))) for _ in range(4)]
    assert packer._current_prices() != before
    for one in taken:
        assert one is not None
        packer.free(one)
    assert packer._current_prices() == before


def test_a_task_for_all_nodes_needs_room_on_each() -> None:
    wide = Shape(4000, 4, 4)
    packer = Packer(
        [HostSize("a", "G2", (NodeSize(96, 96, 2), NodeSize(96, 96, 2)))], Mix({wide: 1, Shape(1, 1, 1): 9})
    )
    small = packer.place(Shape(1000, 1, 1))
    assert small is not None
    assert packer.place(wide) is None
    packer.free(small)
    taken = packer.place(wide)
    assert taken is not None
    assert [(share.node, share.gpus, share.cpu_milli, share.memory_mib) for share in taken.shares] == [
        (0, (0, 1), 2, 2), (1, (0, 1), 2, 2),
    ]  # fmt: skip


def hosts_in_turn(packer: Packer, *shapes: Shape) -> list[str]:
    """Where each goes; "": nowhere."""
    return [taken.host if (taken := packer.place(shape)) is not None else "" for shape in shapes]


def test_a_slice_leaves_what_others_can_use() -> None:
    """The fullest GPU would keep 400, which none of the many can use; the empty one keeps 700."""
    many, few = Shape(700, 1, 1), Shape(300, 1, 1)
    sizes = [HostSize(name, "G2", (NodeSize(96_000, 393_000, 1),)) for name in "ab"]
    packer = Packer(sizes, Mix({many: 9, few: 1}))
    assert hosts_in_turn(packer, few) == ["a"]
    assert hosts_in_turn(packer, few) == ["b"]
    assert hosts_in_turn(packer, many, many) == ["a", "b"]


def test_where_cores_are_scarce_more_are_kept_beside_each_gpu() -> None:
    """Tasks without GPUs want what is there twice over: the one that comes first takes no GPU's cores."""
    light, none = Shape(1000, 4_000, 8), Shape(0, 8_000, 8)
    few, many = HostSize("a", "G2", (NodeSize(13_000, 999, 1),)), HostSize("b", "G2", (NodeSize(20_000, 999, 1),))
    assert hosts_in_turn(Packer([few, many], Mix({light: 9, none: 1})), none) == ["a"]  # 5 cores stay: enough
    assert hosts_in_turn(Packer([few, many], Mix({light: 1, none: 2})), none) == ["b"]


def test_whole_hosts_are_kept_for_tasks_that_no_node_can_take() -> None:
    small, wide = Shape(1000, 1_000, 8), Shape(4000, 1_000, 8)
    empty = HostSize("a", "G2", (NodeSize(32_000, 9_000, 2), NodeSize(32_000, 9_000, 2)))
    used = HostSize("b", "G2", (NodeSize(64_000, 9_000, 2), NodeSize(64_000, 9_000, 2)))
    packer = Packer([empty, used], Mix({small: 1, wide: 1}))
    packer.take([Taken("b", (Share(0, 1_000, 8, (0,), 1000),))])
    assert hosts_in_turn(packer, small, wide) == ["b", "a"]
