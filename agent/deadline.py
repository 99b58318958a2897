"""When the guard kills: what renewals, an outage of the store and a record without a guard allow, on the boot clock.

A renewal sent at boot-clock time s and acknowledged means that the store keeps the session until at least D = s + TTL.
The guard kills the VMs at D - kill margin. This module moves the guard's deadline, and nothing else does. It must never
move it on by more than its caller vouches for, nor back.
"""

from __future__ import annotations

from gpupool.store.port import Store

from .outage import Outage
from .ports import Clock, Guard
from .timing import Timing


class Deadline:
    """See the module docstring. `kill_at` is 0.0 until something is renewed; `renew_at`: when the next is due."""

    def __init__(self, store: Store, guard: Guard, clock: Clock, timing: Timing) -> None:
        self.kill_at = 0.0
        self.renew_at = 0.0
        self._sure_until = 0.0  # as kill_at, by renewals alone: what an outage adds lets VMs live, and none start
        self._ttl_s = timing.ttl_s
        self._guard = guard
        self._clock = clock
        self._timing = timing
        self._outage = Outage(store, clock)

    def left_s(self) -> float:
        """Seconds until the guard kills, if nothing follows."""
        return max(0.0, self.kill_at - self._clock.boot())

    def may_start(self) -> bool:
        """Whether renewals alone leave a VM the time to start."""
        return self._sure_until - self._clock.boot() > self._timing.start_margin_s

    def renewed(self, sent: float, ttl_s: int) -> None:
        """A renewal of a session that is ours was sent at `sent`, and is acknowledged."""
        self._sure_until = max(self._sure_until, sent + ttl_s - self._timing.kill_margin_s)
        self.kill_at = max(self.kill_at, self._sure_until)
        self._ttl_s = ttl_s
        self.renew_at = sent + self._timing.renew_s
        self._extend(sent + ttl_s)

    async def answered(self) -> None:
        """The store answers."""
        await self._outage.renewed()

    async def ride(self) -> None:
        """A renewal failed: if no member of the store leads, VMs may live on. See riding.py."""
        margin_s = self._timing.kill_margin_s
        kill_at = await self._outage.kill_at(self.kill_at, ttl_s=self._ttl_s, margin_s=margin_s)
        if kill_at > self.kill_at:
            self.kill_at = kill_at
            self._extend(kill_at + margin_s)

    def relax(self) -> None:
        """The store says that there is no guard: let VMs live though no renewal says so. See declare.py."""
        self._extend(self._clock.boot() + self._timing.ttl_s)

    def _extend(self, lease_end: float) -> None:
        """Let VMs live as if the lease cannot end before `lease_end`."""
        self._guard.extend(lease_end - self._timing.kill_margin_s, lease_end - self._timing.reset_margin_s)
