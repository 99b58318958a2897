"""What a job asks of the queue, beside its shape: whom it waits for, its limits. Never changed once it is submitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

DEFAULT_QUEUE = "default"  # which always exists


class When(Enum):
    """Which end of another job is waited for. The values are those of gpupool.v1.Dependency.When."""

    OK = 1
    ANY = 2
    NOT_OK = 3


@dataclass(frozen=True, slots=True)
class Dependency:
    """Another job, by id, that must have ended so before the first start."""

    job: str
    when: When = When.OK


@dataclass(frozen=True, slots=True)
class Element:
    """One of an array's jobs; `parallel` of them run at once, 0: any number. The one with index 0 is written last."""

    array: str
    index: int
    parallel: int = 0


class OnLoss(Enum):
    """What follows when a gang has lost one member's VM. The values are those of gpupool.v1.Gang.OnLoss."""

    RESTART_ALL = 1
    RESTART_MEMBER = 2


@dataclass(frozen=True, slots=True)
class Member:
    """One of a gang's jobs. `spread`, `pack`: "host", "pcie_root" or a label of hosts; "": anywhere."""

    gang: str
    index: int
    count: int
    on_loss: OnLoss = OnLoss.RESTART_ALL
    spread: str = ""
    pack: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """See the module docstring."""

    dependencies: tuple[Dependency, ...] = ()
    time_limit_s: int = 0  # of one attempt; 0: none
    start_within_s: int = 0  # of submission; 0: any time
    end_within_s: int = 0  # of submission, the grace included; 0: any time
    keep_s: int = 0  # once finished; 0: as the site says
    stop_grace_s: int = 15  # from a stop request to the end of its VM
    element: Element | None = None
    queue: str = DEFAULT_QUEUE
    user: str = ""
    preemptible: bool = False  # stops for any job of a higher priority
    member: Member | None = None
    plain: bool = field(default=True, init=False, compare=False, repr=False)  # nobody and no time minds, until it ends

    def __post_init__(self) -> None:
        """Of most jobs nothing is to be kept track of: found out once for all that are alike."""
        minded = self.dependencies or self.preemptible or self.element or self.member
        timed = self.time_limit_s or self.start_within_s or self.end_within_s
        object.__setattr__(self, "plain", not (minded or timed))
