"""What the session's record says of the guard, and what may be done because the store has it.

Two promises hang on that record. If it declares a guard, the lease's end is evidence, so the guard's deadline must not
lie beyond the last acknowledged renewal's. If it declares none ("unguarded"), the lease's end proves nothing, and the
guard's deadline may be moved on although the store is away: by a site's policy, or while an operator has disarmed the
cluster. So the order is: say that there is no guard; only once that is acknowledged, relax. And back: relax no more;
wait until a renewal has caught up with the guard's deadline; only then declare the guard. Each write is of the record's
last revision, so that one which was sent earlier and arrives late cannot undo the order.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.v1 import records_pb2

from .ports import Guard
from .timing import Timing

_NONE = records_pb2.GUARD_KIND_UNSPECIFIED
_HARDWARE = records_pb2.GUARD_KIND_HARDWARE
_SAME_S = 0.001  # the guard counts in nanoseconds
KEPT = "the site's policy keeps VMs while the store is away: only power fencing proves them dead"


@dataclass(frozen=True, slots=True)
class Said:
    """What the record says of the guard."""

    guard: records_pb2.GuardKind.ValueType
    watchdog_s: int = 0
    unguarded: str = ""
    refused: str = ""  # to the guard, by the system: it stands, but not as firmly as it might


class Declaration:
    """One agent's. `policy`: why no guard is ever declared; "": one is."""

    def __init__(self, guard: Guard, timing: Timing, policy: str = "") -> None:
        self._guard = guard
        self._timing = timing
        self._policy = policy
        self.disarmed = ""  # why, by an operator's wish
        self._hardware = False  # the store may say that a hardware watchdog is armed
        self._relaxed = False

    @property
    def relaxed(self) -> bool:
        """Whether the guard's deadline may be moved on without a renewal: the store says that there is no guard, and
        still should.
        """
        return self._relaxed and bool(self._policy or self.disarmed)

    def may_start(self) -> bool:
        """Whether what the store may say of the guard is so, and a VM may start behind it."""
        return self._guard.alive() and (not self._hardware or self._guard.watchdog_s() > 0)

    def due(self, kill_at: float) -> Said:
        """What the record should say now. `kill_at` is the deadline that the last acknowledged renewal allows."""
        if reason := self._policy or self.disarmed:
            return Said(_NONE, unguarded=reason)
        if not self._guard.alive():
            return Said(_NONE, unguarded="the guard does not answer")
        if self._guard.deadline > kill_at + _SAME_S:
            return Said(_NONE, unguarded="no renewal has caught up yet with the deadline that was in force")
        watchdog_s = self._guard.watchdog_s()
        if self._timing.allows_watchdog(watchdog_s):
            return Said(_HARDWARE, watchdog_s=round(watchdog_s), refused=self._guard.refused())
        return Said(records_pb2.GUARD_KIND_SOFT, refused=self._guard.refused())

    def sending(self, said: Said) -> None:
        """The record is about to be sent: from now on the store may say so."""
        self._hardware = self._hardware or said.guard == _HARDWARE
        if said.guard != _NONE:
            self._relaxed = False

    def acknowledged(self, said: Said) -> None:
        """The store says this, and nothing that was sent before can change it."""
        self._hardware = said.guard == _HARDWARE
        self._relaxed = said.guard == _NONE

    def forget(self) -> None:
        """No session, no record."""
        self._hardware = self._relaxed = False
