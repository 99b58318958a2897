"""What others wrote, as the core sees it: agents of their hosts, operators of their wishes. Never changed here."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from .amounts import NO_LIMIT, NOTHING, Amounts
from .hugepages import HugepagesFact
from .quick import QuickEnum, fact


class GuardKind(QuickEnum):
    """What kills a host's VMs when its session cannot be renewed."""

    NONE = "NONE"
    SOFT = "SOFT"
    HARDWARE = "HARDWARE"  # behind an armed watchdog


class UnitState(QuickEnum):
    """As the unit's agent reports it."""

    FREE = "FREE"
    HELD = "HELD"
    DIRTY = "DIRTY"
    RESETTING = "RESETTING"
    QUARANTINED = "QUARANTINED"


@fact(frozen=True, slots=True)
class UnitFact:
    """A device unit, from the host's inventory. `node` is -1 where nobody knows it."""

    id: str
    model: str
    memory_mib: int
    node: int
    functions: tuple[str, ...]
    unfit: str = ""
    identity: str = ""  # what it is, whatever its address
    vendor: str = ""  # of its GPU: "nvidia", "amd", "intel", or a PCI vendor id
    root: str = ""  # the PCIe host bridge that it sits below; "": nobody knows
    nic: int = 0  # how near its own network adapter is, see rules.Nic


@fact(frozen=True, slots=True)
class UnitReport:
    """The agent's word on a unit. It counts only while `session` is the host's."""

    state: UnitState
    session: int
    allocation: str
    reason: str = ""
    sick: str = ""  # what is wrong with it while in use


@fact(frozen=True, slots=True)
class SessionFact:
    """A host's session key. `session` is its create revision."""

    session: int
    boot_id: str
    guard: GuardKind
    simulated: bool
    vms_found_dead: bool
    nonce: str = ""
    unguarded: str = ""  # why no guard is declared
    ttl_s: int = 0
    machine: str = ""  # "": unknown

    @property
    def declared(self) -> GuardKind:
        """The guard that stands for it; none if the agent gives a reason why there is none."""
        return GuardKind.NONE if self.unguarded else self.guard


@dataclass(frozen=True, slots=True)
class LastWord:
    """What a session said last of its guard. It outlives the session's key, and is written with it."""

    session: int
    guard: GuardKind
    machine: str = ""


@fact(frozen=True, slots=True)
class InventoryFact:
    """A host's inventory, as of `session`."""

    session: int
    units: tuple[UnitFact, ...]
    nodes: tuple[tuple[int, tuple[tuple[int, ...], ...], int], ...]  # id, cores, memory_mib
    images: frozenset[str]
    hugepages: tuple[HugepagesFact, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()  # by name


@dataclass(frozen=True, slots=True)
class Drain:
    """VMs of a host shall stop and start elsewhere. `at_once` 0: all; `wait`: only where there is a place.

    `paused`: it stops nothing yet, only takes nothing new.
    """

    at_s: float
    by: str = ""
    reason: str = ""
    grace_s: int = 0
    at_once: int = 0
    wait: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class HostIntent:
    """What an operator wants of a host."""

    cordoned: bool = False
    reason: str = ""
    confirmed_dead_session: int = 0
    confirmed_by: str = ""
    confirmed_reason: str = ""
    drain: Drain | None = None
    maintenance: bool = False
    maintenance_reason: str = ""
    uncordoned_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClusterIntent:
    """What an operator wants of all hosts together. A brake since before `brake_released_s` is over."""

    disarmed: bool = False
    reason: str = ""
    by: str = ""
    at_s: float = 0.0
    brake_released_s: float = 0.0
    brake_by: str = ""
    brake_reason: str = ""


@dataclass(frozen=True, slots=True)
class QueueIntent:
    """What operators want of a queue."""

    tenant: str
    weight: int = 1
    guaranteed: Amounts = NOTHING
    limit: Amounts = NO_LIMIT
    user_limit: Amounts = NO_LIMIT
    user_jobs: float = inf
    suspended: str = ""  # by whom, and why; "": it is not


@dataclass(frozen=True, slots=True)
class JobIntent:
    """A word on a job: a hold from before `released_s` is over, attempts up to `requeue_attempt` shall stop."""

    released_s: float = 0.0
    by: str = ""
    reason: str = ""
    held_s: float = 0.0
    held_by: str = ""
    held_reason: str = ""
    requeue_attempt: int = 0
    requeue_by: str = ""
    requeue_reason: str = ""
