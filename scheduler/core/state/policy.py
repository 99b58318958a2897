"""What the site decides about failures: read from the policy file, validated there; the core only looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EASY, CONSERVATIVE = "easy", "conservative"
MOST_KEPT = 50  # places that conservative backfill keeps: each is looked at anew in every turn


@dataclass(frozen=True, slots=True)
class BrakePolicy:
    """When too much has failed at once. `hosts` 0 or `share` 0: that bound is off; both off: there is no brake.

    It goes on when, within `window_s`, at least `hosts` hosts were lost, or `share` of all known ones and no fewer than
    `at_least`; and off after `cooldown_s` without another loss (0: only an operator ends it).
    """

    hosts: int = 0
    share: float = 0.34
    at_least: int = 3
    window_s: float = 120.0
    cooldown_s: float = 300.0


@dataclass(frozen=True, slots=True)
class FlapPolicy:
    """A host that was lost `losses` times within `window_s` is held out until an operator uncordons it; 0: never."""

    losses: int = 3
    window_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class ReservationPolicy:
    """Room kept free so that all restartable jobs of any one failure domain can restart; `hosts` 0: none is kept.

    `domain_label` names the host label whose equal values die together; "": each host by itself. With `warn` a job that
    would break it is placed all the same, and the gap shown.
    """

    hosts: int = 0
    domain_label: str = ""
    warn: bool = False


@dataclass(frozen=True, slots=True)
class FairSharePolicy:
    """How long what a tenant used counts against it: half as much after each `half_life_s`; 0: the past is nothing."""

    half_life_s: float = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class PreemptionPolicy:
    """Whether any job stops for one of a higher priority that waits; else only those that say so themselves."""

    lower_priority: bool = False


@dataclass(frozen=True, slots=True)
class BackfillPolicy:
    """How many of the first jobs that fit nowhere have a place kept, from declared limits of time; 0: none.

    With the mode "conservative" each has one of whom it is known when it could start, up to MOST_KEPT.
    """

    reservations: int = 1  # with the mode "easy"
    mode: str = EASY

    @property
    def conservative(self) -> bool:
        """Whether nobody may delay any job that waits and comes before."""
        return self.mode == CONSERVATIVE

    @property
    def kept(self) -> int:
        """So many jobs at most have a place kept."""
        return MOST_KEPT if self.conservative else self.reservations


@dataclass(frozen=True, slots=True)
class Device:
    """What the power file says of one host's fence device. `mark`: which one it is, by its address. `machine`: that it
    switches, by its id; "": not said.
    """

    mark: str = ""
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the site decides.

    `soft_guard_is_enough`: a lost lease under a soft guard proves real hosts' VMs dead. `powered`: the fence
    device of each host that has one. `starts_at_once`: VMs that may be starting on one host; 0: any number.
    `keep_finished_s`: how long a finished job is kept that does not say so itself; 0: for ever. `drain_on_quarantine`:
    a host that has a quarantined unit takes nothing new, and its VMs move where there is a place.
    """

    soft_guard_is_enough: bool = False
    powered: Mapping[str, Device] = field(default_factory=dict)
    starts_at_once: int = 8
    brake: BrakePolicy = field(default_factory=BrakePolicy)
    flap: FlapPolicy = field(default_factory=FlapPolicy)
    reservation: ReservationPolicy = field(default_factory=ReservationPolicy)
    keep_finished_s: float = 7 * 86400.0
    preemption: PreemptionPolicy = field(default_factory=PreemptionPolicy)
    backfill: BackfillPolicy = field(default_factory=BackfillPolicy)
    fair_share: FairSharePolicy = field(default_factory=FairSharePolicy)
    drain_on_quarantine: bool = False
