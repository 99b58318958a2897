"""One unit, one user: whoever else claims it, or whatever else sits there now, the start is refused with the reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from agent.devices.identity import identities, parked_id
from gpupool.store import keys
from gpupool.v1 import inventory_pb2, job_pb2, records_pb2
from tests.fakes.agent_rig import HOST, OTHER, UNIT, FakeDevices, Rig
from tests.fakes.virtual_time import until, virtual_time
from tests.fakes.vms import Guest

FOREVER = Guest(run_s=None)
A, B, C = "48b02dffff000001", "48b02dffff000002", "48b02dffff000003"
QUARANTINED, FREE = records_pb2.UNIT_STATE_QUARANTINED, records_pb2.UNIT_STATE_FREE
START_FAILED = job_pb2.OUTCOME_START_FAILED


class Cards(FakeDevices):
    """A host whose units are cards with serial numbers, by the address where each sits. `users`: why one is in use."""

    def __init__(self, cards: Mapping[str, str]) -> None:
        super().__init__(tuple(cards))
        self.cards = dict(cards)
        self.users: dict[str, str] = {}
        self.companions: dict[str, str] = {}  # device ids of second functions

    def inventory(self) -> inventory_pb2.Inventory:
        self.units = sorted(self.cards)
        found = super().inventory()
        for unit in found.units:
            unit.functions[0].serial = self.cards[unit.id]
            unit.unfit = self.users.get(unit.id, "")
            if device := self.companions.get(unit.id):
                unit.functions.add(address=unit.id[:-1] + "1", device_id=int(device, 16))
        return found

    def identity(self, address: str) -> str:
        return identities(self.inventory().units)[address]


@asynccontextmanager
async def ready(cards: Mapping[str, str] | None = None) -> AsyncIterator[tuple[Rig, Cards]]:
    devices = Cards(cards or {UNIT: A, OTHER: B})
    rig = Rig(devices=devices)
    rig.vms.default = FOREVER
    await rig.ready()
    yield rig, devices
    await rig.close()


async def reboot(rig: Rig) -> None:
    """The host starts anew: no VM, no record of its boot, only what the store has."""
    await rig.kill_agent()
    rig.vms.kill_all("power cut")
    rig.records.kinds.clear()
    rig.boot_id += "+"
    await rig.boot()


def allocate(rig: Rig, name: str, unit: str, identity: str) -> None:
    """As a scheduler that knows identities does."""
    rig.allocate(name, [unit])
    kv = rig.backend.get(keys.allocation(HOST, name))
    assert kv
    allocation = records_pb2.Allocation.FromString(kv.value)
    allocation.unit_identities.append(identity)
    rig.put(keys.allocation(HOST, name), allocation)


async def broken(rig: Rig, devices: Cards, unit: str = UNIT) -> None:
    """The unit is quarantined after a job."""
    devices.faults[unit] = "0xff throughout"
    rig.allocate("j0.1", [unit])
    await rig.running("j0.1")
    rig.stop("j0.1")
    await until(lambda: rig.unit(unit).state == QUARANTINED)
    rig.withdraw("j0.1")


def runs(rig: Rig) -> list[str]:
    return [name for _, what, name in rig.vms.history if what == "run"]


# Two claims


@virtual_time
async def test_second_claim_for_a_unit_in_use_is_refused_and_the_first_goes_on() -> None:
    async with ready() as (rig, _):
        rig.allocate("j1.1")
        await rig.running("j1.1")
        rig.allocate("j2.1")
        report = await rig.ended("j2.1")
        assert (report.outcome, report.message) == (START_FAILED, f"unit {UNIT} is held by j1.1")
        assert runs(rig) == ["j1.1"]
        rig.stop("j1.1")
        await rig.ended("j1.1")
        rig.withdraw("j1.1")
        await until(lambda: rig.unit().state == FREE and rig.unit().allocation == "j2.1")  # so that it can be released


@virtual_time
async def test_two_claims_at_once_start_one_vm() -> None:
    async with ready() as (rig, _):
        rig.allocate("j1.1")
        rig.allocate("j2.1")
        await rig.ended("j2.1")
        await rig.running("j1.1")
        assert runs(rig) == ["j1.1"]


@virtual_time
async def test_a_unit_that_comes_back_is_waited_for() -> None:
    """No second claim: the first has ended, and only its unit is not clean yet."""
    async with ready() as (rig, _):
        rig.vms.guests["j1.1"] = Guest(run_s=1)
        rig.devices.reclaim_s = 20
        rig.allocate("j1.1")
        await rig.ended("j1.1")
        rig.allocate("j2.1")
        await rig.running("j2.1")


# A stale domain


@virtual_time
async def test_domain_of_an_earlier_time_on_the_unit_is_ended_before_anything_starts() -> None:
    async with ready() as (rig, _):
        rig.allocate("j1.1")
        await rig.running("j1.1")
        spec = replace(rig.vms.vms["j1.1"].spec, allocation="stale.7")
        rig.stop("j1.1")
        await until(lambda: rig.unit().state == FREE)
        rig.withdraw("j1.1")
        await rig.kill_agent()
        await rig.vms.start(spec, may_run=lambda: True)
        rig.allocate("j2.1", session=rig.agent.keeper.session)
        await rig.boot()
        await rig.running("j2.1")
        order = [(what, name) for _, what, name in rig.vms.history if name in ("stale.7", "j2.1")]
        assert order == [("run", "stale.7"), ("end", "stale.7"), ("run", "j2.1")]


# Somebody else's VM


@virtual_time
async def test_somebody_elses_vm_found_at_the_start() -> None:
    async with ready() as (rig, devices):
        devices.unbindable[UNIT] = "vfio-pci, to be left alone: used by process 4711, VM 'win10'"
        rig.allocate("j1.1")
        report = await rig.ended("j1.1")
        assert report.outcome == START_FAILED
        assert "process 4711, VM 'win10'" in report.message
        assert not runs(rig)


@virtual_time
async def test_somebody_elses_vm_seen_between_placement_and_start() -> None:
    async with ready() as (rig, devices):
        rig.guard.dead = True  # nothing may start yet
        rig.guard.unstartable = True
        rig.allocate("j1.1")
        devices.users[UNIT] = "used by libvirt domain 'win10'"
        await until(lambda: rig.agent.describe().inventory.units[0].unfit)
        rig.guard.unstartable = False
        report = await rig.ended("j1.1")
        assert (report.outcome, report.message) == (START_FAILED, f"unit {UNIT}: used by libvirt domain 'win10'")


@virtual_time
async def test_unit_in_use_is_neither_offered_nor_reset_and_comes_back() -> None:
    async with ready() as (rig, devices):
        before = len(devices.reclaimed)
        devices.users[UNIT] = "used by process 4711"
        await until(lambda: not rig.unit().state)
        stored = rig.backend.get(keys.inventory(HOST))
        assert stored
        assert inventory_pb2.Inventory.FromString(stored.value).units[0].unfit == "used by process 4711"
        assert len(devices.reclaimed) == before
        devices.users.clear()
        await until(lambda: rig.unit().state == FREE)
        assert devices.reclaimed[before:] == [UNIT]


# A device that is gone, or another


@virtual_time
async def test_device_that_vanished_between_placement_and_start() -> None:
    async with ready() as (rig, devices):
        identity = devices.identity(UNIT)
        del devices.cards[UNIT]
        await until(lambda: not rig.unit().state)
        allocate(rig, "j1.1", UNIT, identity)
        report = await rig.ended("j1.1")
        assert (report.outcome, report.message) == (START_FAILED, f"unit {UNIT} is not on this host")


@virtual_time
async def test_device_that_vanishes_while_its_start_waits_is_not_waited_for() -> None:
    async with ready() as (rig, devices):
        rig.guard.dead = rig.guard.unstartable = True
        allocate(rig, "j1.1", UNIT, devices.identity(UNIT))
        del devices.cards[UNIT]
        await until(lambda: len(rig.agent.describe().inventory.units) == 1)
        rig.guard.unstartable = False
        report = await rig.ended("j1.1")
        assert (report.outcome, report.message) == (START_FAILED, f"unit {UNIT} is not on this host")


@virtual_time
async def test_decision_for_a_card_that_sits_elsewhere_now() -> None:
    async with ready() as (rig, devices):
        a, b = devices.identity(UNIT), devices.identity(OTHER)
        await rig.kill_agent()
        devices.cards = {UNIT: B, OTHER: A}
        await rig.boot()  # of the same session: the scheduler has not seen the change when it decides
        allocate(rig, "j1.1", UNIT, a)
        report = await rig.ended("j1.1")
        assert report.outcome == START_FAILED
        assert report.message == f"device at {UNIT} is now {b}, the decision was for {a}"
        allocate(rig, "j2.1", UNIT, b)
        await rig.running("j2.1")
        assert runs(rig) == ["j2.1"]


# What follows a card


@virtual_time
async def test_quarantine_follows_the_card_to_its_new_address() -> None:
    async with ready() as (rig, devices):
        await broken(rig, devices)
        devices.cards = {UNIT: C, OTHER: B, "0000:03:00.0": A}
        devices.faults.clear()
        await reboot(rig)
        await until(lambda: rig.unit().state == FREE)
        moved = rig.unit("0000:03:00.0")
        assert (moved.state, moved.session) == (QUARANTINED, rig.session)
        assert "0xff throughout" in moved.reason


@virtual_time
async def test_quarantined_card_that_is_away_is_remembered_until_it_is_back() -> None:
    async with ready() as (rig, devices):
        identity = devices.identity(UNIT)
        await broken(rig, devices)
        devices.faults.clear()
        devices.cards = {OTHER: B}
        await reboot(rig)
        await until(lambda: rig.unit(OTHER).session == rig.session)
        assert rig.unit().state == QUARANTINED, "under its old address, as nobody else has it"
        devices.cards[UNIT] = C
        await until(lambda: rig.unit().state == FREE)
        assert rig.unit(parked_id(identity)).state == QUARANTINED
        await reboot(rig)
        devices.cards["0000:03:00.0"] = A
        await until(lambda: rig.unit("0000:03:00.0").state == QUARANTINED)
        await until(lambda: not rig.unit(parked_id(identity)).state)


@virtual_time
async def test_an_operator_may_forget_a_quarantined_card_that_is_gone() -> None:
    async with ready() as (rig, devices):
        await broken(rig, devices)
        del devices.cards[UNIT]
        await until(lambda: len(rig.agent.describe().inventory.units) == 1)
        assert rig.unit().state == QUARANTINED
        rig.put(keys.unit_intent(HOST, UNIT), records_pb2.UnitIntent(retry_requested_s=rig.clock.wall()))
        await until(lambda: not rig.unit().state)


@virtual_time
async def test_card_changed_without_a_reboot() -> None:
    async with ready() as (rig, devices):
        await broken(rig, devices)
        devices.faults.clear()
        devices.cards[UNIT] = C
        await until(lambda: rig.unit().state == FREE)
        assert rig.unit().identity == devices.identity(UNIT)


@virtual_time
async def test_quarantined_card_put_where_a_vm_still_holds_the_last_one() -> None:
    """Nothing may be concluded of that place before the VM is gone; then the card there is still quarantined."""
    async with ready() as (rig, devices):
        await broken(rig, devices, OTHER)
        devices.faults.clear()
        rig.allocate("j1.1")
        await rig.running("j1.1")
        devices.cards = {UNIT: B}
        await until(lambda: len(rig.agent.inventory.units) == 1)
        assert rig.unit(OTHER).state == QUARANTINED
        rig.stop("j1.1")
        await rig.ended("j1.1")
        rig.withdraw("j1.1")
        await until(lambda: rig.unit().state == QUARANTINED)
        assert "0xff throughout" in rig.unit().reason
        assert UNIT not in devices.reclaimed[-1:], "it is not reset either, before an operator says so"


@virtual_time
async def test_a_quarantined_card_of_which_a_function_died_is_quarantined_still() -> None:
    async with ready() as (rig, devices):
        devices.companions[UNIT] = "01"
        await until(lambda: "," in rig.unit().identity and rig.unit().state == FREE)
        await broken(rig, devices)
        devices.faults.clear()
        devices.companions.clear()
        await until(lambda: "," not in rig.agent.inventory.units[0].identity)
        await until(lambda: "," not in rig.unit().identity)
        assert rig.unit().state == QUARANTINED


@virtual_time
async def test_a_free_unit_that_gains_a_function_is_proven_anew() -> None:
    async with ready() as (rig, devices):
        before = len(devices.reclaimed)
        devices.companions[UNIT] = "01"
        await until(lambda: rig.unit().state != FREE)
        await until(lambda: rig.unit().state == FREE)
        assert devices.reclaimed[before:] == [UNIT]
        assert rig.unit().proof == "flr; fake checks"
        assert rig.unit().identity == devices.identity(UNIT)


@virtual_time
async def test_serial_number_of_two_cards_names_none_and_is_told() -> None:
    async with ready({UNIT: A, OTHER: A}) as (rig, _):
        inventory = rig.agent.describe().inventory
        assert any(f"serial number {A} is on {UNIT}, {OTHER}" in note for note in inventory.notes)
        assert len({unit.identity for unit in inventory.units}) == 2
