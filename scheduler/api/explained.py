"""An explanation of the core, as the API shows it. Pure."""

from __future__ import annotations

from gpupool.v1 import scheduler_pb2

from ..core.explain import Explanation
from ..core.state.reasons import Refusal

VERDICTS_MAX = 1000


def explained(found: Explanation) -> scheduler_pb2.Explanation:
    """Without the job's id and state."""
    wire = scheduler_pb2.Explanation(
        summary=found.summary,
        queue_position=found.position,
        estimated_start_s=found.start_s,
        reasons=[
            scheduler_pb2.ReasonCount(reason=scheduler_pb2.Reason.Value(f"REASON_{reason.name}"), hosts=count)
            for reason, count in found.counts
        ],
        hosts=[_verdict(host, refusal) for host, refusal in found.verdicts[:VERDICTS_MAX]],
        wait=scheduler_pb2.JobWait.Value(f"JOB_WAIT_{found.wait.name if found.wait else 'UNSPECIFIED'}"),
    )
    if (miss := found.nearest) is not None:
        lacks = [lack.words for lack in miss.lacks]
        wire.nearest.CopyFrom(scheduler_pb2.NearestMiss(host=miss.host, lacks=lacks, summary=str(miss)))
    return wire


def _verdict(host: str, refusal: Refusal | None) -> scheduler_pb2.HostVerdict:
    if refusal is None:
        return scheduler_pb2.HostVerdict(host=host, detail="it would fit")
    reason = scheduler_pb2.Reason.Value(f"REASON_{refusal.reason.name}")
    return scheduler_pb2.HostVerdict(host=host, reason=reason, detail=refusal.detail)
