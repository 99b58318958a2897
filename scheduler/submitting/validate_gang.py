"""Whether a gang makes sense, and its start fits into one transaction of the store. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpupool.v1 import job_pb2

OPS_OF_MEMBER = 2  # its status and its allocation
MAX_GANG_BYTES = 512 * 1024  # of all members' specs, which allocations repeat; as much is left for what else they hold

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


def gang_faults(spec: job_pb2.JobSpec, max_ops: int) -> Iterator[str]:
    """All that is wrong with the gang of `spec`, if it asks for one. `max_ops`: what the store takes at once."""
    gang = spec.gang
    if gang.id or gang.index:
        yield "gang.id and gang.index are set by the scheduler; leave them out"
    if not gang.count:
        if gang.spread_over or gang.pack_into or gang.on_member_loss:
            yield "gang.count is 0: say how many members there are"
        return
    yield from _size(spec, max_ops)
    if spec.array.count:
        yield f"gang.count is {gang.count} and array.count {spec.array.count}: a job is of a gang or of an array"
    if gang.on_member_loss not in job_pb2.Gang.OnLoss.values():
        yield f"gang.on_member_loss is {gang.on_member_loss}: it must be restart_all or restart_member"
    yield from _where(spec)


def _size(spec: job_pb2.JobSpec, max_ops: int) -> Iterator[str]:
    count, most = spec.gang.count, max_ops // OPS_OF_MEMBER
    size = spec.ByteSize()
    if count > most:
        yield (
            f"gang.count is {count}: at most {most} members are allowed, as a gang starts in one transaction of the "
            f"store, which takes {max_ops} operations; ask for fewer and larger VMs"
        )
    elif count * size > MAX_GANG_BYTES:
        yield (
            f"gang.count is {count}: with specs of {size} bytes at most {MAX_GANG_BYTES // size} are allowed, as a "
            "gang starts in one transaction of the store; keep data in a volume, not in env"
        )


def _where(spec: job_pb2.JobSpec) -> Iterator[str]:
    spread, pack = spec.gang.spread_over, spec.gang.pack_into
    for name, kind in (("spread_over", spread), ("pack_into", pack)):
        if kind and not _KIND.fullmatch(kind):
            yield f"gang.{name} {kind!r}: write host, pcie_root, or the name of a label of hosts, such as rack"
    if "pcie_root" in (spread, pack) and not spec.gpus.count:
        yield "gang: members without GPUs (gpus.count is 0) are on no PCIe root; write host, or a label of hosts"
    finer = {"host": {"pcie_root"}, "pcie_root": set[str]()}.get(pack)  # what there are several of on one such
    if spread and (spread == pack or (finer is not None and spread not in finer)):
        yield f"gang.spread_over {spread}: members that are all on one {pack} cannot be; leave one of the two out"
    near, labels = spec.placement.near, spec.labels
    if mine := sorted(name for name, value in near.items() if name in labels and value in ("*", labels[name])):
        yield f"placement.near means the gang's own label {mine[0]!r}: to keep it together write gang.pack_into: host"
