"""What hosts have and tasks take, as plain numbers. A GPU is 1,000 thousandths; a slice is a part of one GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WHOLE = 1000  # thousandths of a GPU


class Shape(NamedTuple):
    """What one task takes. `gpu_milli` below 1,000 is a slice of one GPU, else whole GPUs. `models`: any if empty."""

    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    models: tuple[str, ...] = ()

    def allows(self, model: str) -> bool:
        """Whether the task may run on GPUs of this model."""
        return not self.models or model in self.models


class NodeSize(NamedTuple):
    """One NUMA node of an empty host."""

    cpu_milli: int
    memory_mib: int
    gpus: int


class Totals(NamedTuple):
    """What all hosts of a fleet have together."""

    gpu_milli: int
    cpu_milli: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class HostSize:
    """An empty host. A task has all from one of its `nodes`; one for more GPUs than any has, from all, evenly."""

    name: str
    model: str
    nodes: tuple[NodeSize, ...]

    @property
    def gpus(self) -> int:
        """All its GPUs."""
        return sum(node.gpus for node in self.nodes)


class Share(NamedTuple):
    """What a task has of one node: these GPUs, `gpu_milli` of each."""

    node: int
    cpu_milli: int
    memory_mib: int
    gpus: tuple[int, ...]
    gpu_milli: int


class Taken(NamedTuple):
    """What a task has of a host."""

    host: str
    shares: tuple[Share, ...]
