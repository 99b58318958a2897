"""What a job demands beside amounts, as `gpupool show` says it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from gpupool.v1 import job_pb2

_WITHIN = {
    job_pb2.GPU_LOCALITY_NUMA_NODE: "on one NUMA node",
    job_pb2.GPU_LOCALITY_PCIE_ROOT: "below one PCIe root",
}
_NIC = {
    job_pb2.NIC_LOCALITY_ANY: "each with a NIC",
    job_pb2.NIC_LOCALITY_NUMA_NODE: "each with a NIC on its NUMA node",
    job_pb2.NIC_LOCALITY_PCIE_ROOT: "each with a NIC below its PCIe root",
    job_pb2.NIC_LOCALITY_SWITCH: "each with a NIC behind its switch",
}


def gpus(wanted: job_pb2.GpuRequest) -> str:
    """Such as "2 nvidia-a100-80gb or nvidia-h100-80gb, with 81920 MiB each, below one PCIe root"."""
    if not wanted.count:
        return "none"
    models = sorted({*wanted.models, wanted.model} - {""})
    parts = [f"{wanted.count} {' or '.join(models) or 'of any model'}"]
    parts += [f"by {wanted.vendor}"] if wanted.vendor else []
    parts += [f"with {wanted.memory_mib} MiB each"] if wanted.memory_mib else []
    parts += [f"for driver {wanted.driver}"] if wanted.driver else []
    parts += [_WITHIN[wanted.within]] if wanted.within in _WITHIN else []
    parts += [_NIC[wanted.nic]] if wanted.nic in _NIC else []
    return ", ".join(parts)


def placement(wanted: job_pb2.Placement) -> list[tuple[str, str]]:
    """Where it may go: names and values, some of them empty."""
    return [
        ("hosts with", _labels(wanted.hosts)),
        ("hosts without", _labels(wanted.not_hosts)),
        ("near jobs", _labels(wanted.near)),
        ("apart from jobs", _labels(wanted.apart)),
        ("whole host", "yes" if wanted.whole_host else ""),
        ("failures a host", str(wanted.max_failures_per_host or "")),
    ]


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
