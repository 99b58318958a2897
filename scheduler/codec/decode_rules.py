"""From a job's spec to the Rules that placement knows. Pure; it must drop nothing that a spec demands."""

from __future__ import annotations

from collections.abc import Mapping

from gpupool.v1 import job_pb2

from ..core.state.rules import Labels, Nic, Rules, Within, meant

_WITHIN = {
    job_pb2.GPU_LOCALITY_NUMA_NODE: Within.NUMA_NODE,
    job_pb2.GPU_LOCALITY_PCIE_ROOT: Within.PCIE_ROOT,
}
_VENDORS = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
NAMED = frozenset(_VENDORS.values())


def labels_of(wire: Mapping[str, str]) -> Labels:
    """Labels, by name."""
    return tuple(sorted([(name, wire[name]) for name in wire])) if wire else ()


def models_of(gpus: job_pb2.GpuRequest) -> tuple[str, ...]:
    """Every model that will do, by name; empty: any."""
    model, models = gpus.model, gpus.models
    if not models:
        return (model,) if model else ()
    return tuple(sorted({*models, *([model] if model else [])}))


def rules_of(spec: job_pb2.JobSpec) -> Rules | None:
    """What the job demands beside amounts; None: nothing."""
    gpus, placement = spec.gpus, spec.placement
    if not (gpus.models or gpus.vendor or gpus.driver or gpus.within or gpus.nic or spec.HasField("placement")):
        return None  # as most do
    models = models_of(gpus)
    near, apart = labels_of(placement.near), labels_of(placement.apart)
    rules = Rules(
        models=models if len(models) > 1 else (),
        vendor=gpus.vendor.lower().removeprefix("0x"),
        driver=gpus.driver,
        within=_WITHIN.get(gpus.within, Within.ANY),
        nic=Nic(min(gpus.nic, Nic.SWITCH)),  # one of a newer version: no less than we know
        hosts=labels_of(placement.hosts),
        not_hosts=labels_of(placement.not_hosts),
        near=near,
        apart=apart,
        whole_host=placement.whole_host,
        own=meant((*near, *apart), spec.labels.items()) if near or apart else (),
    )
    return rules if rules != Rules() else None


def vendor_named(vendor_id: int) -> str:
    """A maker of GPUs by name, another by his PCI id; "": 0, unknown."""
    return _VENDORS.get(vendor_id) or (f"{vendor_id:04x}" if vendor_id else "")
