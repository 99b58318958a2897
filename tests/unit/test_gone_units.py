"""An allocation that ended on a unit that its host says nothing of any more must not keep cores and memory for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.core.state import events
from scheduler.core.state.facts import InventoryFact, UnitReport, UnitState
from tests.golden.runner import Player

UNIT = "0000:10:00.0"
ENDED = "report j1.1 ENDED outcome=START_FAILED said=it_is_gone"


def placed() -> Player:
    """j1 is placed on the one GPU of h1, which the agent speaks of no more."""
    player = Player()
    player.play("host h1 1xa100\nsubmit j1 starts=5\nplace")
    player.tell(events.UnitReported("h1", UNIT, None))
    return player


def without(player: Player, *, unfit: str = "") -> InventoryFact:
    found = player.cluster.hosts["h1"].inventory
    assert found is not None
    return replace(found, units=tuple(replace(unit, unfit=unfit) for unit in found.units) if unfit else ())


def left(player: Player) -> bool:
    return "j1.1" in player.cluster.allocations


@pytest.mark.parametrize("unfit", ["", "used by process 4711"])
def test_released_when_the_host_offers_the_unit_no_more(unfit: str) -> None:
    player = placed()
    player.tell(events.InventoryChanged("h1", without(player, unfit=unfit)))
    assert left(player), "its VM may live"
    player.play(ENDED)
    assert not left(player)


def test_released_when_the_inventory_comes_last() -> None:
    player = placed()
    player.play(ENDED)
    assert left(player), "the unit is offered: its agent will speak of it"
    player.tell(events.InventoryChanged("h1", without(player)))
    assert not left(player)


def test_released_when_the_report_goes_last() -> None:
    player = Player()
    player.play("host h1 1xa100\nsubmit j1 starts=5\nplace\n" + ENDED)
    player.tell(events.InventoryChanged("h1", without(player)))
    assert left(player), "the agent still has it, and will say that it is clean or quarantined"
    player.tell(events.UnitReported("h1", UNIT, None))
    assert not left(player)


def test_a_unit_that_is_back_is_not_placed_on_before_its_proof() -> None:
    player = placed()
    found = player.cluster.hosts["h1"].inventory
    player.tell(events.InventoryChanged("h1", without(player)))
    player.play(ENDED)
    player.tell(events.InventoryChanged("h1", found))
    player.play("wait 60\nplace")
    assert player.cluster.jobs["j1"].allocation_id is None
    player.tell(events.UnitReported("h1", UNIT, UnitReport(UnitState.FREE, 1, "")))
    player.play("wait 60\nplace")
    assert player.cluster.jobs["j1"].allocation_id == "j1.2"
