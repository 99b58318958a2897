"""When VMs may live on through an outage of the store. Each refusal stands for a way in which a job could run twice."""

from __future__ import annotations

import pytest

from agent.riding import ride
from agent.timing import Timing
from gpupool.store.memory import MemoryBackend
from gpupool.store.port import Poll, Sight
from gpupool.v1 import records_pb2
from tests.fakes.agent_rig import Rig
from tests.fakes.virtual_time import until, virtual_time

YES, NO, GONE, MUTE = Sight.LEADER, Sight.NO_LEADER, Sight.NOT_RUNNING, Sight.SILENT


def poll(*sights: Sight, doubt: str = "") -> Poll:
    return Poll(tuple((f"m{number}", sight) for number, sight in enumerate(sights, 1)), doubt)


def kill_at(seen: Poll, *, now: float = 106.0, ended: float = 102.0, ttl_s: float = 8.0, age_s: float = 5.0) -> float:
    return ride(seen, now, 101.0, ended, ttl_s=ttl_s, margin_s=2.0, list_age_s=age_s).kill_at_s


@pytest.mark.parametrize("sights", [(NO, NO, NO), (NO, GONE, GONE), (NO, NO, GONE), (NO,), (NO, NO, NO, NO, GONE)])
def test_every_member_accounted_for_counts_as_a_renewal_sent_when_the_poll_began(sights: tuple[Sight, ...]) -> None:
    assert kill_at(poll(*sights)) == 101.0 + 8.0 - 2.0


@pytest.mark.parametrize(
    "sights",
    [
        (NO, NO, MUTE),  # the third may lead, and be followed again in the same term
        (NO, NO, YES),
        (MUTE, MUTE, MUTE),  # we are cut off
        (NO, GONE, MUTE),
        (GONE, GONE, GONE),  # or a firewall refuses in their names
        (),
    ],
)
def test_anything_less_proves_nothing(sights: tuple[Sight, ...]) -> None:
    made = ride(poll(*sights), 106.0, 101.0, 102.0, ttl_s=8.0, margin_s=2.0, list_age_s=0.0)
    assert made.kill_at_s == 106.0
    assert made.refusal


def test_a_deadline_that_has_passed_stays_passed() -> None:
    seen = poll(NO, NO, NO)
    assert kill_at(seen, now=103.0, ended=102.9) == 107.0
    assert kill_at(seen, now=103.0, ended=103.0) == 103.0


def test_never_backwards() -> None:
    assert kill_at(poll(NO, NO, NO), now=120.0) == 120.0


def test_a_ttl_that_etcd_may_checkpoint() -> None:
    assert kill_at(poll(NO), ttl_s=300.0) == 101.0 + 300.0 - 2.0
    assert kill_at(poll(NO), ttl_s=301.0) == 106.0


def test_members_that_may_not_be_all() -> None:
    assert kill_at(poll(NO, NO, NO, doubt="a fourth")) == 106.0
    assert kill_at(poll(NO, NO, NO), age_s=61.0) == 106.0


async def outage(*sights: Sight) -> tuple[Rig, MemoryBackend]:
    """A host that runs a VM, and a store that is away from now on, with members that say this."""
    rig = Rig(timing=Timing(ttl_s=8, renew_s=2.0, kill_margin_s=2.0))
    await rig.ready()
    rig.allocate()
    await rig.running()
    await until(lambda: rig.agent.keeper.left_s() > 5.9)
    rig.store.away = True
    rig.backend.members = {f"m{number}": sight for number, sight in enumerate(sights)}
    return rig, rig.backend


@virtual_time
async def test_vms_outlive_an_outage_and_none_starts_in_it() -> None:
    rig, _ = await outage(NO, GONE, GONE)
    began = rig.clock.boot()
    await until(lambda: rig.clock.boot() > began + 30.0)
    assert rig.guard.kills == 0
    assert rig.agent.keeper.left_s() > 2.0
    assert not rig.agent.keeper.fresh()
    rig.backend.members = {"m0": YES, "m1": YES, "m2": YES}
    await until(lambda: rig.guard.kills == 1, 30.0)
    await rig.close()


@pytest.mark.parametrize("sights", [(NO, NO, MUTE), (MUTE, MUTE, MUTE), (GONE, GONE, GONE)])
def test_vms_die_at_the_deadline_of_the_last_renewal(sights: tuple[Sight, ...]) -> None:
    @virtual_time
    async def run() -> None:
        rig, _ = await outage(*sights)
        deadline = rig.guard.deadline
        await until(lambda: rig.guard.kills == 1, 60.0)
        assert rig.guard.deadline == deadline
        assert rig.vm().state == records_pb2.ALLOCATION_STATE_RUNNING  # nobody could be told
        await rig.close()

    run()
