"""Why a host cannot take a job now: a closed list, so that refusals can be counted, and translated, and tested."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Reason(Enum):
    """Mirrors gpupool.v1.Reason by name, in the order of the checks: a host is refused for its first fault."""

    HOST_NOT_READY = 1
    HOST_CORDONED = 2
    HOST_HELD_OUT = 17
    HOST_DRAINING = 18
    HOST_IN_MAINTENANCE = 19
    HOST_TAKEN_WHOLE = 40
    HOST_STARTS_ENOUGH = 20
    IMAGE_MISSING = 3
    HOST_LABELS = 41
    DRIVER_MISMATCH = 42
    HOST_NOT_EMPTY = 43
    APART_FROM_JOBS = 44
    NOT_NEAR_JOBS = 45
    VENDOR_MISMATCH = 46
    MODEL_MISMATCH = 4
    NIC_TOO_FAR = 49
    GPU_MEMORY_TOO_SMALL = 5
    UNITS_UNFIT = 6
    UNITS_QUARANTINED = 7
    UNITS_BUSY = 8
    TOO_FEW_UNITS = 9
    UNITS_SCATTERED = 47
    CPUS_BUSY = 10
    TOO_FEW_CPUS = 11
    MEMORY_BUSY = 12
    TOO_LITTLE_MEMORY = 13
    HUGEPAGES_BUSY = 15
    TOO_FEW_HUGEPAGES = 16
    NUMA_SPLIT = 14
    FAILED_BEFORE = 48
    GANG_PACK = 62
    GANG_SPREAD = 61
    RESERVED_FOR_FAILOVER = 21
    KEPT_FOR_ANOTHER = 60


@dataclass(frozen=True, slots=True)
class Refusal:
    """One host's no. `detail` has the figures, e.g. "needs 2 units, 1 of 4 is free"."""

    reason: Reason
    detail: str
