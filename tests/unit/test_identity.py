"""What a unit is wherever it sits: a quarantine goes along with the card, and with nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.devices.identity import (
    duplicate_serials,
    follow,
    identities,
    identity_of,
    is_other,
    mismatch,
    parked_id,
)
from gpupool.v1 import records_pb2
from gpupool.v1.inventory_pb2 import PciFunction, Unit
from gpupool.v1.records_pb2 import UnitReport

X, Y, Z = "0000:21:00.0", "0000:22:00.0", "0000:23:00.0"
A, B = "48b02dffff000001", "48b02dffff000002"
FREE, DIRTY, QUARANTINED = (
    records_pb2.UNIT_STATE_FREE,
    records_pb2.UNIT_STATE_DIRTY,
    records_pb2.UNIT_STATE_QUARANTINED,
)


def function(
    address: str, serial: str = "", port: str = "0000:20:01.0", *, device: int = 0x20B5, root_bus: str = "0000:20"
) -> PciFunction:
    return PciFunction(
        address=address, vendor_id=0x10DE, device_id=device, subsystem_vendor_id=0x10DE, subsystem_device_id=0x1533,
        serial=serial, path=[port], root_bus=root_bus,
    )  # fmt: skip


def unit(address: str, serial: str = "", port: str = "0000:20:01.0", **more: int) -> Unit:
    return Unit(id=address, functions=[function(address, serial, port, **more)])  # type: ignore[arg-type]


def named(*units: Unit) -> dict[str, str]:
    return identities(units)


def report(identity: str, state: records_pb2.UnitState.ValueType = QUARANTINED, **more: str) -> UnitReport:
    return UnitReport(state=state, identity=identity, reason="dead" if state == QUARANTINED else "", **more)  # type: ignore[arg-type]


# What an identity is


def test_serial_number_counts_and_the_place_does_not() -> None:
    here = identity_of([function(X, A)])
    assert here == "10de:20b5/10de:1533#48b02dffff000001"
    assert identity_of([function(Y, "48-B0-2D-FF-FF-00-00-01", "0000:40:03.0")]) == here
    assert identity_of([function(X, B)]) != here


def test_without_serial_number_the_way_to_it_counts_and_the_bus_number_does_not() -> None:
    here = identity_of([PciFunction(address=X, path=["0000:20:01.0", "0000:1f:02.0"], root_bus="0000:20")])
    assert here == "0000:0000/0000:0000@0000:20/01.0/02.0/00"
    assert here == identity_of([PciFunction(address=Y, path=["0000:20:01.0", "0000:21:02.0"], root_bus="0000:20")])
    assert here != identity_of([PciFunction(address=X, path=["0000:20:02.0", "0000:1f:02.0"], root_bus="0000:20")])


@pytest.mark.parametrize("serial", ["", "0" * 16, "f" * 16, "F" * 16, "00-00-00-00-00-00-00-00", "12", "g" * 16])
def test_what_is_no_serial_number(serial: str) -> None:
    assert "#" not in identity_of([function(X, serial)])


def test_companions_belong_to_the_card_in_any_order() -> None:
    gpu, audio = function(X, A), function("0000:21:00.1", device=0x1AEF)
    assert identity_of([audio, gpu]) == identity_of([gpu, audio]) == "10de:20b5/10de:1533,10de:1aef/10de:1533#" + A


def test_two_cards_in_a_unit_that_change_places_are_the_same_unit() -> None:
    assert identity_of([function(X, A), function(Y, B)]) == identity_of([function(X, B), function(Y, A)])


def test_functions_of_one_device_share_a_serial_number() -> None:
    one = Unit(id=X, functions=[function(X, A), function("0000:21:00.1", A)])
    virtual = Unit(id=Y, functions=[PciFunction(address=Y, serial=A, physical_function=X)])
    assert duplicate_serials([one, virtual]) == {}
    assert identities([one])[X].endswith(f"#{A}")


def test_a_serial_number_that_a_vendor_gives_to_every_card_is_none() -> None:
    units = [unit(X, A, "0000:20:01.0"), unit(Y, A, "0000:20:02.0"), unit(Z, B, "0000:20:03.0")]
    assert duplicate_serials(units) == {A: [X, Y]}
    found = named(*units)
    assert found[X].endswith("@0000:20/01.0/00")
    assert found[Y].endswith("@0000:20/02.0/00")
    assert found[Z].endswith(f"#{B}")


def test_a_tree_that_puts_two_cards_in_one_place_or_nowhere() -> None:
    assert len(set(named(unit(X), unit(Y)).values())) == 2
    nowhere = named(unit(X, root_bus=""), unit(Y, root_bus=""))  # type: ignore[arg-type]
    assert len(set(nowhere.values())) == 2


addresses = st.builds(
    "{:04x}:{:02x}:{:02x}.{}".format, st.integers(0, 1), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)
)
functions = st.builds(
    PciFunction,
    address=addresses,
    vendor_id=st.sampled_from([0, 0x10DE, 0x1002]),
    serial=st.sampled_from(["", A, B, "f" * 16, "nonsense+#@"]),
    path=st.lists(addresses, max_size=2),
    root_bus=st.sampled_from(["", "0000:00"]),
)


@given(st.lists(functions, unique_by=lambda one: one.address, max_size=8))
def test_whatever_the_tree_every_unit_has_one_identity_of_its_own(found: Sequence[PciFunction]) -> None:
    names = named(*[Unit(id=one.address, functions=[one]) for one in found])
    assert len(set(names.values())) == len(found)
    assert all(names.values())
    assert not any(is_other(name, name) for name in names.values())


# Whether it is another


def test_what_speaks_for_another_unit() -> None:
    serial, other, weak = (identity_of([function(X, number)]) for number in (A, B, ""))
    assert is_other(serial, other)
    assert is_other(serial, identity_of([function(X, A, device=1)]))
    assert not is_other(serial, serial)
    assert not is_other(serial, weak), "it may have died, and answer no number any more"
    assert not is_other(weak, serial)
    assert not is_other(weak, identity_of([function(X, port="0000:20:02.0")]))
    assert not is_other("", serial)


def test_a_card_that_gained_or_lost_a_function_or_a_neighbour_is_no_other() -> None:
    gpu, audio, nic = function(X, A), function("0000:21:00.1", device=0x1AEF), function(Y, B, device=0x1021)
    bare = function(X)
    for more, less in (([gpu, audio], [gpu]), ([gpu, nic], [gpu]), ([bare, audio], [bare]), ([gpu, audio], [bare])):
        assert not is_other(identity_of(more), identity_of(less))
        assert not is_other(identity_of(less), identity_of(more))
    assert is_other(identity_of([gpu, audio]), identity_of([function(X, B), audio]))


# A decision and what sits there now


def test_allocation_for_a_card_that_sits_elsewhere_now() -> None:
    a, b = named(unit(X, A))[X], named(unit(X, B))[X]
    assert mismatch([X], [a], {X: a}) == ""
    assert mismatch([X], [a], {X: b}) == f"device at {X} is now {b}, the decision was for {a}"
    assert mismatch([Y, X], [b, a], {X: a, Y: b}) == ""
    assert mismatch([X], [a], {Y: a}) == f"unit {X} is not on this host"
    assert "of unknown identity" in mismatch([X], [a], {X: ""})
    assert mismatch([X], [""], {X: a}) == "", "the decision did not say"
    assert mismatch([X], [], {X: a}) == "", "the scheduler is of an earlier version"


# What follows a card


def test_quarantine_follows_the_card() -> None:
    now = named(unit(X, B, "0000:20:02.0"), unit(Y, A))
    found = follow(now, {X: report(now[Y], allocation="j1.1")})
    assert (found[Y].state, found[Y].reason, found[Y].allocation) == (QUARANTINED, "dead", "")
    assert (found[X].state, found[X].identity) == (0, now[X]), "a new card at the old address is no suspect"
    assert found.keys() == {X, Y}


@pytest.mark.parametrize("serial", [A, ""])
def test_quarantine_follows_a_card_that_lost_a_function_to_its_new_address(serial: str) -> None:
    before = identity_of([function(X, serial), function("0000:21:00.1", device=0x1AEF)])
    now = named(unit(Y, serial), unit(X, B, "0000:20:02.0"))
    found = follow(now, {X: report(before)})
    assert (found[Y].state, found[X].state) == (QUARANTINED, 0)
    assert found.keys() == {X, Y}


@pytest.mark.parametrize("serials", [(A, B), ("", "")])
def test_quarantine_of_units_that_are_joined_and_parted_again(serials: tuple[str, str]) -> None:
    """IOMMU groups change with the firmware's settings; what was wrong with a card does not."""
    one, two = unit(X, serials[0]), unit(Y, serials[1], "0000:20:02.0")
    both = Unit(id=X, functions=[*one.functions, *two.functions])
    apart, joined = named(one, two), named(both)
    found = follow(joined, {X: report(apart[X], FREE), Y: report(apart[Y])})
    assert {name: one.state for name, one in found.items()} == {X: QUARANTINED}
    again = follow(apart, found)
    assert {name: one.state for name, one in again.items()} == {X: QUARANTINED, Y: QUARANTINED}


def test_two_cards_that_changed_places() -> None:
    now = named(unit(X, B), unit(Y, A))
    found = follow(now, {X: report(now[Y]), Y: report(now[X], FREE)})
    assert (found[X].state, found[Y].state) == (FREE, QUARANTINED)


def test_card_without_serial_number_whose_bus_number_changed() -> None:
    before = named(unit(X))[X]
    found = follow(named(unit(Y)), {X: report(before)})
    assert found[Y].state == QUARANTINED
    assert X not in found


def test_the_bus_number_changed_and_a_card_of_the_same_model_has_the_old_address() -> None:
    weak = named(unit(X))[X]
    now = named(unit(Y), unit(X, A, "0000:20:02.0"))
    assert now[Y] == weak
    found = follow(now, {X: report(weak)})
    assert (found[Y].state, found[X].state) == (QUARANTINED, 0)


def test_a_card_known_under_two_addresses_is_quarantined_if_either_is() -> None:
    now = named(unit(X, A))
    assert follow(now, {X: report(now[X], FREE), Y: report(now[X])}).keys() == {X}
    assert follow(now, {X: report(now[X], FREE), Y: report(now[X])})[X].state == QUARANTINED


def test_nothing_is_lost_where_nothing_moved() -> None:
    now = named(unit(X, A), unit(Y, B))
    known = {X: report(now[X], allocation="j1.1"), Y: report(now[Y], DIRTY, allocation="j2.1")}
    assert follow(now, known) == known


@pytest.mark.parametrize("before", ["", identity_of([function(X)]), identity_of([function(X, port="0000:20:09.0")])])
def test_quarantine_stands_where_the_cards_cannot_be_told_apart(before: str) -> None:
    """By an agent of an earlier version, without serial number, or at a place that is told otherwise now."""
    now = named(unit(X, A))
    assert follow(now, {X: report(before)})[X].state == QUARANTINED


def test_a_dead_card_keeps_its_serial_number_on_record() -> None:
    alive = named(unit(X, A))[X]
    found = follow(named(unit(X, "f" * 16)), {X: report(alive)})
    assert (found[X].state, found[X].identity) == (QUARANTINED, alive)
    assert follow(named(unit(Y, A)), found)[Y].state == QUARANTINED


def test_quarantined_card_that_is_away_is_remembered() -> None:
    away = named(unit(X, A))[X]
    now = named(unit(Y, B))
    found = follow(now, {X: report(away), Z: report("10de:1/10de:1#" + "1" * 16, FREE)})
    assert found.keys() == {X, Y}, "one that was free is forgotten"
    assert found[X].state == QUARANTINED
    back = follow(named(unit(Y, B), unit(Z, A, "0000:20:02.0")), found)
    assert back.keys() == {Y, Z}
    assert back[Z].state == QUARANTINED


def test_quarantined_card_that_is_away_while_another_has_its_address() -> None:
    away, now = named(unit(X, A))[X], named(unit(X, B))
    parked = parked_id(away)
    found = follow(now, {X: report(away)})
    assert (found[X].state, found[parked].state) == (0, QUARANTINED)
    assert follow(now, found) == found, "until the card is back"
    assert follow(named(unit(X, A)), found).keys() == {X}


def test_agents_that_know_no_identities() -> None:
    known = {X: report(""), Y: report("", FREE)}
    assert {name: one.state for name, one in follow({X: "", Y: ""}, known).items()} == {X: QUARANTINED, Y: FREE}


places = st.sampled_from([X, Y, Z, "0000:24:00.0"])
serials = st.sampled_from(["", A, B, "48b02dffff000003"])


@given(st.dictionaries(places, serials), st.dictionaries(places, serials), st.data())
def test_a_quarantine_is_never_lost(before: dict[str, str], after: dict[str, str], data: st.DataObject) -> None:
    """Whatever was moved, added or taken out: each quarantined card is on record after it, and none becomes one."""
    old = named(*[unit(name, serial, f"0000:20:{name[5:7]}.0") for name, serial in before.items()])
    new = named(*[unit(name, serial, f"0000:20:{name[5:7]}.0") for name, serial in after.items()])
    bad = data.draw(st.sets(st.sampled_from(sorted(old)))) if old else set()
    known = {name: report(identity, QUARANTINED if name in bad else FREE) for name, identity in old.items()}
    found = follow(new, known)
    assert found.keys() >= new.keys()
    states = {one.identity: one.state for one in found.values()}
    for name in bad:
        stands = states.get(old[name]) == QUARANTINED or found.get(name, UnitReport()).state == QUARANTINED
        assert stands, (name, old, new, found)
    suspects = [name for name in new if found[name].state == QUARANTINED]
    for name in suspects:
        assert new[name] in {old[one] for one in bad} or (name in bad and not is_other(old[name], new[name]))
    again = follow(new, found)
    assert {name: one.state for name, one in again.items()} == {name: one.state for name, one in found.items()}
