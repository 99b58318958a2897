"""Room for restarts, and plans for the loss of hosts, as the API shows them. Answered by any replica, from what is
committed; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import grpc

from gpupool.v1 import job_pb2, scheduler_pb2

from ..core.failover.plan import Expected, Restart, planning
from ..core.reservation.reserve import Gap
from ..core.state.cluster import Cluster
from ..core.state.policy import Policy
from ..turns import in_pauses
from .intents import ApiError
from .view import View


class Committed(Protocol):
    """What is committed, as far as plans need it: a mirror."""

    revision: int

    async def cluster_in_turns(self, policy: Policy) -> Cluster:
        """A copy of its own for whoever asks."""
        ...

    def view(self, policy: Policy) -> View:
        """As of `revision`, not to be changed."""
        ...


class FailoverPlans:
    """See the module docstring. `known` raises ApiError NOT_FOUND for a host that is not known."""

    def __init__(
        self, mirror: Committed, policy: Policy, known: Callable[[str], object], wall: Callable[[], float]
    ) -> None:
        self._mirror = mirror
        self._policy = policy
        self._known = known
        self._wall = wall
        self._reservation: tuple[int, scheduler_pb2.Reservation] | None = None  # as of a revision

    async def plan(self, request: scheduler_pb2.PlanFailoverRequest) -> scheduler_pb2.FailoverPlan:
        """What would happen if these hosts died now. ApiError NOT_FOUND, INVALID_ARGUMENT."""
        if not request.hosts:
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, "hosts is empty: name at least one")
        for name in request.hosts:
            self._known(name)
        cluster = await self._mirror.cluster_in_turns(self._policy)
        for name in request.hosts:
            cluster.host(name)  # one that no leader has seen yet has no VM either
        found = await in_pauses(planning(cluster, request.hosts, self._wall()))
        return scheduler_pb2.FailoverPlan(
            hosts=found.hosts,
            vms=[_restart(each) for each in found.restarts],
            evidence=[_expected(each) for each in found.evidence],
            brake=found.brake,
        )

    def reservation(self) -> scheduler_pb2.Reservation | None:
        """How it stands with room for restarts; None if the site keeps none. Costs time in proportion to all hosts."""
        kept = self._policy.reservation
        if not kept.hosts:
            return None
        if self._reservation is None or self._reservation[0] != self._mirror.revision:
            uncovered = [_uncovered(gap) for gap in self._mirror.view(self._policy).reserve.gaps()]
            wire = scheduler_pb2.Reservation(hosts=kept.hosts, domain_label=kept.domain_label, uncovered=uncovered)
            self._reservation = self._mirror.revision, wire
        return self._reservation[1]


def _uncovered(gap: Gap) -> scheduler_pb2.Uncovered:
    why = "no room for all of it" if gap.complete else "no room was found for all of it before the search was given up"
    return scheduler_pb2.Uncovered(domain=str(gap.domain), jobs=gap.jobs, detail=why)


def _restart(found: Restart) -> scheduler_pb2.PlannedRestart:
    wire = scheduler_pb2.PlannedRestart(
        job=found.job,
        name=found.name,
        allocation=found.allocation,
        to=found.to,
        units=found.units,
        reason=found.reason,
        after_s=found.after_s,
        restartable=found.restartable,
    )
    setattr(wire, "from", found.host)
    return wire


def _expected(found: Expected) -> scheduler_pb2.PlannedEvidence:
    wire = scheduler_pb2.PlannedEvidence(host=found.host, after_s=found.after_s, detail=found.detail)
    if found.evidence is not None:
        wire.evidence = job_pb2.Evidence.Value(f"EVIDENCE_{found.evidence.value}")
    return wire
