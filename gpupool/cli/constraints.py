"""Options of `gpupool submit` that say where a job may go; each stands for what the file says of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpupool.v1 import job_pb2

from .jobs import parse_labels
from .settings import COUNT

Command = TypeVar("Command", bound=Callable[..., Any])
WITHIN = {
    "pcie-root": job_pb2.GPU_LOCALITY_PCIE_ROOT,
    "numa-node": job_pb2.GPU_LOCALITY_NUMA_NODE,
    "any": job_pb2.GPU_LOCALITY_ANY,
}
NIC = {
    "switch": job_pb2.NIC_LOCALITY_SWITCH,
    "pcie-root": job_pb2.NIC_LOCALITY_PCIE_ROOT,
    "numa-node": job_pb2.NIC_LOCALITY_NUMA_NODE,
    "any": job_pb2.NIC_LOCALITY_ANY,
}
_KEPT = "gpupool.constraints"  # where the options leave their values for `constrain`


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.meta.setdefault(_KEPT, {})[parameter.name] = value


def _keep_labels(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
    _keep(context, parameter, parse_labels(context, parameter, values))


_OPTIONS = (
    click.option(
        "--model", "models", multiple=True, metavar="NAME", expose_value=False, callback=_keep,
        help="A GPU model that will do, as `gpupool units` shows it; repeatable. All GPUs of a job are of one model.",
    ),
    click.option(
        "--vendor", metavar="NAME", expose_value=False, callback=_keep,
        help="Only GPUs of nvidia, amd, intel, or of a PCI vendor id such as 10de.",
    ),
    click.option(
        "--gpu-memory-mib", type=COUNT, expose_value=False, callback=_keep,
        help="Only GPUs with at least this much memory.",
    ),
    click.option(
        "--driver", metavar="GLOB", expose_value=False, callback=_keep,
        help='Only hosts whose label gpu-driver is like this, e.g. "550.*".',
    ),
    click.option(
        "--within", type=click.Choice(list(WITHIN)), expose_value=False, callback=_keep,
        help="How near the GPUs must be to each other: below one PCIe root, on one NUMA node, anywhere in the host.",
    ),
    click.option(
        "--nic", type=click.Choice(list(NIC)), expose_value=False, callback=_keep,
        help="A network adapter for each GPU, at least so near: behind its switch, below its PCIe root, on its node.",
    ),
    click.option(
        "--whole-host", is_flag=True, default=None, expose_value=False, callback=_keep,
        help="No other VM on the host while this one is there.",
    ),
    click.option(
        "--require", "hosts", multiple=True, metavar="LABEL=GLOB", expose_value=False, callback=_keep_labels,
        help='Only hosts with this label, e.g. zone=a or "host=h1?"; repeatable.',
    ),
    click.option(
        "--forbid", "not_hosts", multiple=True, metavar="LABEL=GLOB", expose_value=False, callback=_keep_labels,
        help="No hosts with this label; repeatable.",
    ),
    click.option(
        "--near", multiple=True, metavar="LABEL=VALUE", expose_value=False, callback=_keep_labels,
        help="Only hosts with a VM whose job has this label; the first of its kind goes anywhere. Repeatable.",
    ),
    click.option(
        "--apart", multiple=True, metavar="LABEL=VALUE", expose_value=False, callback=_keep_labels,
        help="No hosts with a VM whose job has this label, and none of these joins it later. Repeatable.",
    ),
    click.option(
        "--max-failures-per-host", type=COUNT, metavar="N", expose_value=False, callback=_keep,
        help="Do not use a host again where N attempts of this job failed; 0: use it last.",
    ),
)  # fmt: skip


def constraint_options(command: Command) -> Command:
    """Give a command these options; it calls `constrain` for each spec."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def constrain(spec: job_pb2.JobSpec) -> None:
    """Let what the options of the running command say stand in the spec."""
    said = click.get_current_context().meta.get(_KEPT, {})
    if said.get("models"):
        spec.gpus.model = ""
        spec.gpus.models[:] = said["models"]
    if said.get("within") is not None:
        spec.gpus.within = WITHIN[said["within"]]
    if said.get("nic") is not None:
        spec.gpus.nic = NIC[said["nic"]]
    for option, part, field in (
        ("vendor", spec.gpus, "vendor"),
        ("driver", spec.gpus, "driver"),
        ("gpu_memory_mib", spec.gpus, "memory_mib"),
        ("whole_host", spec.placement, "whole_host"),
        ("max_failures_per_host", spec.placement, "max_failures_per_host"),
    ):
        if said.get(option) is not None:
            setattr(part, field, said[option])
    for where in ("hosts", "not_hosts", "near", "apart"):
        getattr(spec.placement, where).update(said.get(where, {}))
