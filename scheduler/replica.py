"""One scheduler replica: it mirrors what is committed, and campaigns; while it leads, it decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from gpupool.store.keys import Kind
from gpupool.store.port import Restored, Store, StoreError
from gpupool.v1 import records_pb2

from .core.state.policy import Policy
from .deathwatch import Gone, never
from .election import TermLostError, lead
from .fencing.port import FenceDevice
from .leader import Leader
from .mirror.mirror import Mirror
from .policy_told import differences, told

_log = logging.getLogger(__name__)

DEFAULT_TTL_S = 30  # of a host whose session nobody knows
PAUSE_S = 0.5  # before campaigning again after a term that failed


@dataclass(slots=True)
class Replica:
    """See the module docstring. `wall` gives Unix time; `leader` is the loop of the present term, while it leads."""

    name: str
    address: str
    store: Store
    mirror: Mirror
    policy: Policy
    wall: Callable[[], float]
    leader_ttl_s: int = 3
    leader: Leader | None = None
    power: Mapping[str, FenceDevice] = field(default_factory=dict)  # by host; their names are policy.powered
    gone: Gone = never  # how a standby learns that the leader's process has died, before the lease says so

    _hold_until: float = 0.0  # on the loop's clock

    async def run(self) -> None:
        """Serve until cancelled. What comes out of here, in a group, is a bug: InvariantBrokenError above all."""
        self.mirror.on_restored = self._hold
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mirror.run(), name=f"{self.name}: mirror")
            tasks.create_task(self._campaign(), name=f"{self.name}: campaign")

    async def _campaign(self) -> None:
        first = True
        while True:
            try:
                await self._term(first=first)
            except (StoreError, TermLostError) as exc:
                _log.warning("%s leads no longer: %s", self.name, exc)
                if isinstance(exc, Restored):
                    self._hold()
            first = False
            await asyncio.sleep(PAUSE_S)

    def _hold(self) -> None:
        """The store was restored from a backup: VMs may run of which it does not know. Their agents notice, or their
        guards end them, within the time of a lease: until then, decide nothing.
        """
        sessions = self.mirror.all(Kind.SESSION, records_pb2.Session).values()
        wait_s = max((session.ttl_s or DEFAULT_TTL_S for session in sessions), default=DEFAULT_TTL_S)
        now = asyncio.get_running_loop().time()
        if now >= self._hold_until:  # else this one is known
            _log.error("%s: the store was restored from a backup; nothing is decided for %d s", self.name, wait_s)
            self._hold_until = now + wait_s

    def _compare(self, leader: records_pb2.Leader) -> None:
        """Another leads: whoever reads this replica's log should know that its policy is not what counts."""
        if found := differences(self.policy, self.name, leader):
            _log.warning("%s has another policy than the leader's, which counts: %s", self.name, "; ".join(found))

    async def _term(self, *, first: bool) -> None:
        me = records_pb2.Leader(
            id=self.name, address=self.address, since_s=self.wall(), policy=told(self.policy)
        )  # fmt: skip
        async with lead(
            self.store, me, ttl_s=self.leader_ttl_s, gone=self.gone, first=first, other=self._compare
        ) as term:
            _log.info("%s leads, term %d", self.name, term.revision)
            # Held as the leader: a replica that has just begun knows nothing of a restore, and would decide.
            await asyncio.sleep(max(0.0, self._hold_until - asyncio.get_running_loop().time()))
            self.leader = Leader(
                self.store, term, wall=self.wall, policy=self.policy, power=self.power, seen=self.mirror.revision,
                mirror=self.mirror,
            )  # fmt: skip
            try:
                await self.leader.run()
            finally:
                self.leader = None


async def run_until(replica: Replica, stop: asyncio.Event) -> None:
    """Run the replica until `stop` is set."""
    running = asyncio.create_task(replica.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if running.done():
        running.result()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
