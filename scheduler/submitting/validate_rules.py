"""What is wrong with a spec's demands on GPUs, hosts and neighbours. Pure; `validate.py` has the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpupool.v1 import job_pb2

from ..codec.decode_rules import NAMED

MODELS_MAX, LABELS_MAX, TEXT_MAX = 16, 16, 128
FAILURES_MAX = 16  # attempts that a job's status keeps
_VENDOR_ID = re.compile(r"(0[xX])?[0-9a-fA-F]{4}")


def faults_of_rules(spec: job_pb2.JobSpec) -> Iterator[str]:
    """Each with its path, its value and the way out."""
    yield from _gpus(spec)
    placement = spec.placement
    for where in ("hosts", "not_hosts", "near", "apart"):
        yield from _labels(f"placement.{where}", dict(getattr(placement, where)))
    for name, value in sorted(placement.hosts.items()):
        if placement.not_hosts.get(name) == value:
            yield f"placement.not_hosts.{name} {value!r}: placement.hosts wants the same; no host can have it both ways"
    for name, value in sorted(placement.near.items()):
        if placement.apart.get(name) in (value, "*"):
            yield f"placement.apart.{name}: placement.near wants such a job on the same host; keep one of them"
    if placement.whole_host and placement.near:
        yield "placement.whole_host lets no other VM onto the host, placement.near needs one there; keep one of them"
    if placement.max_failures_per_host > FAILURES_MAX:
        yield f"placement.max_failures_per_host is {placement.max_failures_per_host}: it must be 0 to {FAILURES_MAX}"


def _gpus(spec: job_pb2.JobSpec) -> Iterator[str]:
    gpus = spec.gpus
    if len(gpus.models) > MODELS_MAX:
        yield f"gpus.models has {len(gpus.models)} names: at most {MODELS_MAX}; gpus.vendor or gpus.memory_mib say more"
    for n, model in enumerate(gpus.models):
        if not model or len(model) > TEXT_MAX or _control(model):
            yield f"gpus.models[{n}] {model[:TEXT_MAX]!r}: a name as `gpupool units` shows it"
    if gpus.vendor and gpus.vendor.lower() not in NAMED and not _VENDOR_ID.fullmatch(gpus.vendor):
        yield f"gpus.vendor {gpus.vendor!r}: {', '.join(sorted(NAMED))}, or a PCI vendor id of four hex digits"
    if len(gpus.driver) > TEXT_MAX or _control(gpus.driver):
        yield f"gpus.driver {gpus.driver[:TEXT_MAX]!r}: a glob of at most {TEXT_MAX} printable characters, e.g. '550.*'"
    if gpus.within not in job_pb2.GpuLocality.values():
        yield f"gpus.within is {gpus.within}: it must be one of {', '.join(map(str, job_pb2.GpuLocality.values()))}"
    if gpus.within == job_pb2.GPU_LOCALITY_ANY and spec.numa == job_pb2.NUMA_POLICY_REQUIRED and gpus.count:
        yield "gpus.within is any, but numa is required, which keeps everything on one node; drop one of them"
    if gpus.nic not in job_pb2.NicLocality.values():
        yield f"gpus.nic is {gpus.nic}: it must be one of {', '.join(map(str, job_pb2.NicLocality.values()))}"
    if gpus.count == 0 and (gpus.models or gpus.vendor or gpus.driver or gpus.within or gpus.nic):
        yield (
            "gpus.count is 0 but gpus has models, vendor, driver, within or nic: set gpus.count to 1 or more, or drop "
            "them"
        )


def _labels(where: str, labels: dict[str, str]) -> Iterator[str]:
    if len(labels) > LABELS_MAX:
        yield f"{where} has {len(labels)} labels: at most {LABELS_MAX}"
    for name, value in sorted(labels.items()):
        if not name or len(name) > TEXT_MAX or len(value) > TEXT_MAX or _control(name + value):
            shown = f"{name[:TEXT_MAX]}={value[:TEXT_MAX]}"
            yield f"{where} {shown!r}: a name and a value of at most {TEXT_MAX} printable characters each"


def _control(text: str) -> bool:
    return any(ord(c) < ord(" ") for c in text)
