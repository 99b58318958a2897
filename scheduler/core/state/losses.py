"""What is kept of lost hosts: the evidence, the fence, the brake, what became of their VMs.

Records only: `fence.py`, `brake.py`, `power.py` and `failovers.py` decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Evidence(Enum):
    """Why we believe that a lost session's VMs are dead."""

    NOTHING_RAN = "NOTHING_RAN"
    AGENT_REPORTED_DEAD = "AGENT_REPORTED_DEAD"
    OTHER_BOOT = "OTHER_BOOT"
    LEASE_EXPIRED_GUARDED = "LEASE_EXPIRED_GUARDED"
    LEASE_EXPIRED_WATCHDOG = "LEASE_EXPIRED_WATCHDOG"
    POWER_OFF = "POWER_OFF"
    OPERATOR = "OPERATOR"


@dataclass(frozen=True, slots=True)
class Brake:
    """Too much failed at once: nothing is restarted, nothing switched off. `until_s` 0: an operator must end it."""

    since_s: float
    until_s: float
    reason: str
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviceOf:
    """That the fence device with this `mark` (see policy.Device) is of this machine; "": of one without an id."""

    mark: str
    machine: str


@dataclass(frozen=True, slots=True)
class PowerFencing:
    """Attempts to switch a host off, for its lost `session`. `error` "": the last one worked. `detail`: not stored.

    `machine`: that the device is of, as far as was known at the last try.
    """

    device: str
    session: int
    tries: int
    last_s: float
    next_s: float
    error: str = ""
    detail: str = ""
    machine: str = ""


@dataclass(slots=True)
class LostVm:
    """A VM that was lost with a host, and its job's next life. `outcome` is for people, once that is settled."""

    allocation: str
    job: str
    host: str = ""
    placed_s: float = 0.0
    started_s: float = 0.0
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class FenceRecord:
    """What was concluded about a lost session, from what, and when."""

    session: int
    evidence: Evidence
    detail: str
    lost_s: float
    fenced_s: float
    allocations: tuple[str, ...]


@dataclass(slots=True)
class Failover:
    """The history of one lost session."""

    host: str
    fence: FenceRecord
    vms: list[LostVm]
    brake: str = ""
    done_s: float = 0.0
