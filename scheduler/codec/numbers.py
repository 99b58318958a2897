"""The core's names for the numbers on the wire. A number of a later version is in none of these: KeyError."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from gpupool.v1 import job_pb2, records_pb2

from ..core.state import facts, losses
from ..core.state.jobs import NumaPolicy, Outcome
from ..core.state.tables import AllocationState, HostState, JobState

_Member = TypeVar("_Member", bound=Enum)


def _members(of: type[_Member], wire: type, prefix: str) -> dict[int, _Member]:
    """Our names by the numbers on the wire, as far as we know them."""
    numbers = wire.items()  # type: ignore[attr-defined]
    known = of.__members__
    return {number: known[name.removeprefix(prefix)] for name, number in numbers if name.removeprefix(prefix) in known}


JOB_STATE = _members(JobState, job_pb2.JobState, "JOB_STATE_")
OUTCOME = _members(Outcome, job_pb2.Outcome, "OUTCOME_")
EVIDENCE = _members(losses.Evidence, job_pb2.Evidence, "EVIDENCE_")
NUMA = _members(NumaPolicy, job_pb2.NumaPolicy, "NUMA_POLICY_")
NUMA[job_pb2.NUMA_POLICY_UNSPECIFIED] = NumaPolicy.PREFERRED
GUARD = _members(facts.GuardKind, records_pb2.GuardKind, "GUARD_KIND_")
UNIT_STATE = _members(facts.UnitState, records_pb2.UnitState, "UNIT_STATE_")
ALLOCATION_STATE = _members(AllocationState, records_pb2.AllocationState, "ALLOCATION_STATE_")
HOST_STATE = _members(HostState, records_pb2.HostState, "HOST_STATE_")
