"""What an operator wants of all hosts together: to end the mass failure brake, to disarm fencing and to arm it again.

It writes `intents/cluster`, which the leader and the agents turn into decisions; it never changes a state itself.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from gpupool.store import keys
from gpupool.store.keys import Kind
from gpupool.store.port import Store
from gpupool.v1 import records_pb2, scheduler_pb2

from ..mirror.mirror import Mirror
from .intents import ApiError, change_intent, need


class ClusterIntents:
    """See the module docstring."""

    def __init__(self, store: Store, mirror: Mirror, wall: Callable[[], float]) -> None:
        self._store = store
        self._mirror = mirror
        self._wall = wall

    async def release_brake(self, request: scheduler_pb2.ReleaseBrakeRequest) -> None:
        """The mass failure brake is over. ApiError FAILED_PRECONDITION where it is not on."""
        record = self._mirror.get(Kind.CLUSTER, records_pb2.ClusterRecord)
        if record is None or not record.HasField("brake"):
            raise ApiError(grpc.StatusCode.FAILED_PRECONDITION, "the mass failure brake is not on")
        need(request.reason, "reason is missing: say why restarts may go on")

        def change(intent: records_pb2.ClusterIntent) -> None:
            intent.brake_released_s = record.brake.since_s  # it names the brake: this clock may be another
            intent.brake_by, intent.brake_reason = request.by or "operator", request.reason

        await self._intend(change)

    async def set_armed(self, request: scheduler_pb2.SetArmedRequest) -> None:
        """Fencing, and restarts of what is lost, stop or go on."""
        if not request.armed:
            need(request.reason, "reason is missing: say what the work is, so that others know when to arm again")

        def change(intent: records_pb2.ClusterIntent) -> None:
            intent.disarmed = not request.armed
            intent.reason, intent.by, intent.at_s = request.reason, request.by or "operator", self._wall()

        await self._intend(change)

    async def _intend(self, change: Callable[[records_pb2.ClusterIntent], None]) -> None:
        await change_intent(self._store, self._mirror, keys.CLUSTER_INTENT, records_pb2.ClusterIntent, change)
