"""Plans and the reservation as the API tells them; the core's own behaviour is in tests/golden."""

from __future__ import annotations

from copy import deepcopy

import grpc
import pytest

from gpupool.v1 import job_pb2, scheduler_pb2
from scheduler.api.failover_plan import FailoverPlans
from scheduler.api.intents import ApiError
from scheduler.api.view import View
from scheduler.core.state.cluster import Cluster
from scheduler.core.state.policy import Policy, ReservationPolicy
from tests.golden.runner import Player

KEPT = Policy(reservation=ReservationPolicy(hosts=1))
SCENE = """
host h1 2xa100
host h2 2xa100
ttl 8 h1 h2
submit a b
run
"""


class Committed:
    """A mirror of what a scenario has left."""

    def __init__(self, player: Player) -> None:
        self.player, self.revision, self.asked = player, 1, 0

    async def cluster_in_turns(self, policy: Policy) -> Cluster:
        return self.cluster(policy)

    def cluster(self, policy: Policy) -> Cluster:
        self.asked += 1
        copy = deepcopy(self.player.cluster)
        copy.policy = policy
        return copy

    def view(self, policy: Policy) -> View:
        return View(self.revision, policy, self.cluster(policy))


def known(name: str) -> None:
    if name not in {"h1", "h2"}:
        raise ApiError(grpc.StatusCode.NOT_FOUND, f"no host {name!r}")


def plans(script: str, policy: Policy) -> tuple[FailoverPlans, Committed]:
    player = Player(policy)
    player.play(script)
    committed = Committed(player)
    return FailoverPlans(committed, policy, known, lambda: player.now), committed


def asked(*hosts: str) -> scheduler_pb2.PlanFailoverRequest:
    return scheduler_pb2.PlanFailoverRequest(hosts=hosts)


async def test_a_plan_says_where_when_and_why() -> None:
    api, committed = plans(SCENE, Policy())
    before = deepcopy(committed.player.cluster)
    found = await api.plan(asked("h1", "h1"))
    assert [(vm.job, getattr(vm, "from"), vm.to, vm.after_s, vm.restartable) for vm in found.vms] == [
        ("a", "h1", "h2", 8, True),
        ("b", "h1", "h2", 8, True),
    ]
    assert [(e.host, e.evidence, e.after_s) for e in found.evidence] == [
        ("h1", job_pb2.EVIDENCE_LEASE_EXPIRED_GUARDED, 8)
    ]
    assert committed.player.cluster == before


async def test_a_plan_for_nobody_or_a_stranger_is_refused() -> None:
    api, _ = plans(SCENE, Policy())
    with pytest.raises(ApiError, match="name at least one"):
        await api.plan(asked())
    with pytest.raises(ApiError, match="no host 'h9'"):
        await api.plan(asked("h1", "h9"))


def test_the_reservation_tells_who_is_not_covered() -> None:
    api, committed = plans(SCENE + "unfit h2 10 why=fan", KEPT)
    found = api.reservation()
    assert found is not None
    assert [(u.domain, list(u.jobs), u.detail) for u in found.uncovered] == [
        ("host h1", ["b"], "no room for all of it")
    ]
    assert (api.reservation(), committed.asked) == (found, 1)  # computed once a revision
    committed.revision = 2
    api.reservation()
    assert committed.asked == 2


def test_no_reservation_is_told_where_none_is_kept() -> None:
    api, _ = plans(SCENE, Policy())
    assert api.reservation() is None
