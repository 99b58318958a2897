"""What an operator wants of one host: cordon, drain, maintenance, and the word that it is dead.

It writes `intents/hosts/<h>`, which the leader turns into decisions; it never changes a state itself.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from gpupool.store import keys
from gpupool.store.port import Store
from gpupool.v1 import records_pb2, scheduler_pb2

from ..core.state.skew import answers
from ..mirror.mirror import Mirror
from .intents import ApiError, change_intent, need

GRACE_MAX_S = 7 * 24 * 3600  # of a drain: a longer one is a slip of the finger


class HostIntents:
    """See the module docstring. `show` gives a host as the API shows it, or raises ApiError NOT_FOUND."""

    def __init__(
        self, store: Store, mirror: Mirror, show: Callable[[str], scheduler_pb2.Host], wall: Callable[[], float]
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._show = show
        self._wall = wall

    async def cordon(self, host: str, reason: str, by: str) -> scheduler_pb2.Host:
        """Nothing new is placed on the host."""

        def change(intent: records_pb2.HostIntent) -> None:
            intent.cordoned, intent.reason, intent.by, intent.at_s = True, reason, by, self._wall()

        return await self._intend(host, change)

    async def uncordon(self, host: str, by: str) -> scheduler_pb2.Host:
        """The host takes jobs again, whether an operator or the leader kept it out."""
        record = self._show(host).record

        def change(intent: records_pb2.HostIntent) -> None:
            intent.cordoned, intent.reason, intent.by, intent.at_s = False, "", by, self._wall()
            if record.lost_s or record.held_out_s:
                intent.uncordoned_s = answers(*record.lost_s, record.held_out_s)

        return await self._intend(host, change)

    async def drain(self, host: str, wanted: records_pb2.Drain) -> scheduler_pb2.Host:
        """The host's VMs stop and start elsewhere. A drain that is under way keeps its beginning."""
        if wanted.grace_s > GRACE_MAX_S:
            message = f"drain.grace_s {wanted.grace_s} is more than {GRACE_MAX_S} (7 days)"
            raise ApiError(grpc.StatusCode.INVALID_ARGUMENT, message)

        def change(intent: records_pb2.HostIntent) -> None:
            began_s = intent.drain.at_s
            intent.drain.CopyFrom(wanted)
            intent.drain.at_s = began_s or self._wall()

        return await self._intend(host, change)

    async def undrain(self, host: str, by: str) -> scheduler_pb2.Host:
        """Nothing more is stopped for the drain; what was asked to stop stops all the same."""

        def change(intent: records_pb2.HostIntent) -> None:
            intent.ClearField("drain")
            intent.by, intent.at_s = by, self._wall()

        return await self._intend(host, change)

    async def maintenance(self, request: scheduler_pb2.SetMaintenanceRequest) -> scheduler_pb2.Host:
        """The host is kept out, over reboots, until this is taken back."""

        def change(intent: records_pb2.HostIntent) -> None:
            intent.maintenance, intent.maintenance_by = request.on, request.by
            intent.maintenance_reason = request.reason if request.on else ""

        return await self._intend(request.host, change)

    async def confirm_dead(self, host: str, reason: str, by: str) -> scheduler_pb2.Host:
        """An operator vouches that no VM of the host's lost session is alive."""
        shown = self._show(host)
        if shown.record.state not in (records_pb2.HOST_STATE_SUSPECT, records_pb2.HOST_STATE_FENCING):
            state = records_pb2.HostState.Name(shown.record.state).removeprefix("HOST_STATE_")
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"host {host} is {state}; a death is confirmed only for a host in SUSPECT or FENCING",
            )
        need(reason, "reason is missing: say how you know that it is dead")

        def change(intent: records_pb2.HostIntent) -> None:
            intent.confirmed_dead_session = shown.record.session
            intent.confirmed_by, intent.confirmed_reason, intent.at_s = by or "operator", reason, self._wall()

        return await self._intend(host, change)

    async def _intend(self, host: str, change: Callable[[records_pb2.HostIntent], None]) -> scheduler_pb2.Host:
        self._show(host)
        await change_intent(self._store, self._mirror, keys.host_intent(host), records_pb2.HostIntent, change)
        return self._show(host)
