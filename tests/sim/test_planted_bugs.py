"""Each safety property, broken on purpose: the simulation must see it within a few seeds, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent import deadline, riding
from agent.work.ledger import Ledger
from gpupool.store.port import Sight
from scheduler import leader
from scheduler.core import step
from scheduler.core.failover import fence, retry
from scheduler.core.state import facts
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.hosts import Allocation, Host
from scheduler.core.state.jobs import Job, Outcome
from tests.fakes.vms import FakeGuard
from tests.sim import hardware
from tests.sim.cluster import scenario
from tests.sim.faults import Kind
from tests.sim.world import World

Plant = Callable[[pytest.MonkeyPatch], None]


def guard_asleep(patch: pytest.MonkeyPatch) -> None:
    """The guard does not kill at its deadline."""
    patch.setattr(FakeGuard, "_look", lambda _: None)


def deadline_too_generous(patch: pytest.MonkeyPatch) -> None:
    """The agent reckons the deadline from the answer's arrival plus a minute, not from the request's departure."""
    renewed = deadline.Deadline.renewed
    patch.setattr(deadline.Deadline, "renewed", lambda self, sent, ttl_s: renewed(self, sent + 60.0, ttl_s))


def dirty_units_offered(patch: pytest.MonkeyPatch) -> None:
    """The scheduler takes a unit as free as soon as its VM has ended, and the agent does not insist."""

    def release_at_once(cluster: Cluster, host: Host, allocation: Allocation) -> None:
        if allocation.state.value == "ENDED":
            cluster.release(allocation)
            cluster.dirty.deleted[allocation.id] = allocation
            host.reports.update(
                {u: facts.UnitReport(facts.UnitState.FREE, host.session, allocation.id) for u in allocation.units}
            )

    async def no_reset(_: object, unit: Any, **how: Any) -> str:
        del unit, how
        return "believed"

    patch.setattr(step, "_release_if_clean", release_at_once)
    patch.setattr(hardware.Devices, "reclaim", no_reset)


def unit_shared(patch: pytest.MonkeyPatch) -> None:
    """The scheduler forgets that a unit is held."""
    patch.setattr(Host, "unit_state", lambda *_: facts.UnitState.FREE)
    patch.setattr(leader, "CHECK_LIMIT", -1)


def job_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A lost attempt is closed, and nobody queues the job again."""

    def end(cluster: Cluster, job: Job, outcome: Outcome, now: float, **_: Any) -> None:
        if outcome is Outcome.HOST_LOST:
            job.attempts[-1].ended_s = now
            return
        retry.end_attempt(cluster, job, outcome, now, **_)

    patch.setattr(fence, "end_attempt", end)
    patch.setattr(leader, "CHECK_LIMIT", -1)


def use_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The agent does not put on record that a VM is about to have a unit, so it is proven without a reset."""
    patch.setattr(Ledger, "touches", lambda *_: None)


def silence_is_absence(patch: pytest.MonkeyPatch) -> None:
    """The agent takes a member that does not answer for one that does not lead."""
    patch.setattr(riding, "_refusal", lambda poll, *_: "leads" if Sight.LEADER in dict(poll.members).values() else "")


PARTITIONS = {Kind.PARTITION: 1.0}
POWER = {Kind.POWER_CUT: 1.0}

# The plant, the faults under which it shows soonest, and the words in which it is seen.
PLANTS: dict[str, tuple[Plant, dict[Kind, float], str]] = {
    "guard asleep": (guard_asleep, PARTITIONS, "which is fenced"),
    "deadline too generous": (deadline_too_generous, PARTITIONS, "which is fenced"),
    "silence is absence": (silence_is_absence, PARTITIONS, "which is fenced"),
    "dirty units offered": (dirty_units_offered, POWER, "unproven"),
    "use forgotten": (use_forgotten, POWER, "unproven"),
    "unit shared": (unit_shared, POWER, "reserved for"),
    "job forgotten": (job_forgotten, POWER, "is lost"),
}
SEEDS = 40


@pytest.mark.parametrize("name", PLANTS)
def test_planted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, faults, seen = PLANTS[name]
    plant(monkeypatch)
    for seed in range(SEEDS):
        with World(seed) as world:
            try:
                scenario(world, faults, settle=seen == "is lost", harsh=True)
            except AssertionError as exc:
                if seen in str(exc):
                    return
    pytest.fail(f"{SEEDS} seeds did not see it")
