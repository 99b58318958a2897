"""What counts as known, and that hosts of one kind answer for each other."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.fitting.known import Known
from scheduler.core.state.facts import InventoryFact, UnitFact
from scheduler.core.state.hugepages import HugepagesFact
from scheduler.core.state.jobs import NumaPolicy, Request
from scheduler.core.state.rules import Rules, Within

CORES = tuple((n,) for n in range(8))


def fact(gpus: int = 2, *, cores: int = 8, session: int = 1, free_pages: int = 0, **labels: str) -> InventoryFact:
    units = tuple(UnitFact(f"u{n}", "a100", 81920, n % 2, (), "no group" if n else "", f"sn{n}") for n in range(gpus))
    nodes = ((0, CORES[: cores // 2], 4096), (1, CORES[cores // 2 : cores], 4096))
    pages = (HugepagesFact(0, 2048, 512, free_pages),)
    return InventoryFact(session, units, nodes, frozenset({"img"}), pages, tuple(sorted(labels.items())))


def known(**hosts: InventoryFact) -> Known:
    found = Known()
    for name, told in hosts.items():
        found.update(name, told)
    return found


def test_nothing_is_impossible_while_nobody_is_known() -> None:
    found = known(h1=fact())
    assert found.impossible(Request("img", 99)) is not None
    found.update("h1", None)
    assert not found
    assert found.impossible(Request("img", 99)) is None


def test_the_nearest_of_all_kinds_is_told() -> None:
    found = known(h1=fact(2), h2=fact(4), h3=fact(4), h4=fact(3))
    assert str(found.impossible(Request("img", 5))) == "h2 has 1 unit too few"
    strict = Request("img", 2, cpus=6, numa=NumaPolicy.REQUIRED)
    assert str(found.impossible(strict)) == "h2 has 2 CPUs too few on NUMA node 0"
    assert str(found.impossible(Request("x"))) == "h1 has no image 'x'"
    assert found.impossible(Request("img", 4)) is None, "units that are unfit may be mended"


def test_pages_count_as_they_were_set_aside() -> None:
    found = known(h1=fact(free_pages=0))
    assert found.impossible(Request("img", memory_mib=1024, hugepage_size_kib=2048)) is None
    assert found.impossible(Request("img", memory_mib=1026, hugepage_size_kib=2048)) is not None


def test_labels_and_names() -> None:
    found = known(h1=fact(zone="a"), h2=fact(zone="b"), h3=fact(4, zone="b"))
    assert found.impossible(Request("img", rules=Rules(hosts=(("zone", "b"),)))) is None
    assert found.impossible(Request("img", rules=Rules(hosts=(("zone", "c"),)))) is not None
    assert found.impossible(Request("img", 2, rules=Rules(hosts=(("host", "h2"),)))) is None
    both = found.impossible(Request("img", 4, rules=Rules(hosts=(("host", "h[12]"),))))
    assert str(both) == "h1 has 2 units too few"
    found.update("h0", fact(zone="b"))  # speaks for h2 as well, but is not meant
    assert found.impossible(Request("img", 2, rules=Rules(hosts=(("host", "h2"),), not_hosts=(("zone", "a"),)))) is None
    assert found.impossible(Request("img", 4, rules=Rules(not_hosts=(("host", "h3"),)))) is not None
    assert found.impossible(Request("img", rules=Rules(hosts=(("host", "h9"),)))) is not None


def test_neighbours_may_come_yet() -> None:
    assert known(h1=fact()).impossible(Request("img", rules=Rules(near=(("a", "b"),), apart=(("c", "d"),)))) is None


def test_nearness_of_units() -> None:
    below = fact(4)
    below = replace(below, units=tuple(replace(u, root=f"r{n // 3}") for n, u in enumerate(below.units)))
    found = known(h1=below)
    assert found.impossible(Request("img", 3, rules=Rules(within=Within.PCIE_ROOT))) is None
    miss = found.impossible(Request("img", 4, rules=Rules(within=Within.PCIE_ROOT)))
    assert str(miss) == "h1 has 1 unit too few at PCIe root r0"


FACTS = st.builds(fact, st.integers(0, 3), cores=st.sampled_from([2, 4, 8]), session=st.integers(1, 3))
CHANGES = st.lists(st.tuples(st.sampled_from(["h1", "h2", "h3"]), st.none() | FACTS), max_size=12)
REQUESTS = st.builds(
    Request, st.just("img"), st.integers(0, 4), cpus=st.integers(1, 9), numa=st.sampled_from(NumaPolicy)
)


@given(CHANGES, st.lists(REQUESTS, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_memory_changes_no_answer(changes: list[tuple[str, InventoryFact | None]], requests: list[Request]) -> None:
    kept, now = Known(), {}
    for name, told in changes:
        kept.update(name, told)
        now[name] = told
        fresh = known(**{n: f for n, f in now.items() if f is not None})
        for request in requests:
            assert kept.impossible(request) == fresh.impossible(request)
