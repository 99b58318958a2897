"""What a job demands beside amounts: of its GPUs, of its host, of whoever is there. Part of its shape.

Only data and the meaning of a label's pattern. Whether a host is as demanded is `ruled.py`'s word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from fnmatch import fnmatchcase

Label = tuple[str, str]
Labels = tuple[Label, ...]  # by name

HOST = "host"  # the label that every host has: its name
DRIVER = "gpu-driver"  # the label by which a site tells what driver its GPUs there are for


class Within(Enum):
    """How near to each other the units of a job must be."""

    ANY = "ANY"
    NUMA_NODE = "NUMA_NODE"
    PCIE_ROOT = "PCIE_ROOT"


class Nic(IntEnum):
    """How near a unit's own network adapter is to its GPU; as a demand: at least so near. Mirrors NicLocality."""

    NONE = 0
    ANY = 1
    NUMA_NODE = 2
    PCIE_ROOT = 3
    SWITCH = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """See the module docstring. What is empty demands nothing; a job that demands nothing has no Rules at all.

    `own`: those of the job's own labels that its `near` and `apart` mean. They make it one of those that it seeks or
    shuns, so they belong to the shape; its other labels do not.
    """

    models: tuple[str, ...] = ()  # any of these, two or more; a single one is the request's own
    vendor: str = ""
    driver: str = ""  # a glob
    within: Within = Within.ANY
    nic: Nic = Nic.NONE
    hosts: Labels = ()  # values are globs
    not_hosts: Labels = ()  # values are globs
    near: Labels = ()  # values are literal, or "*"
    apart: Labels = ()  # values are literal, or "*"
    whole_host: bool = False
    own: Labels = ()


def means(pattern: Label, label: Label) -> bool:
    """Whether a label of a job is one that `pattern` means."""
    return pattern[0] == label[0] and pattern[1] in ("*", label[1])


def meant(patterns: Labels, labels: Iterable[Label]) -> Labels:
    """Those of `labels` that any pattern means, by name."""
    return tuple(sorted(label for label in labels if any(means(pattern, label) for pattern in patterns)))


def has(labels: Labels, pattern: Label) -> bool:
    """Whether a host with these labels has one that `pattern`, whose value is a glob, means."""
    return any(name == pattern[0] and fnmatchcase(value, pattern[1]) for name, value in labels)


def shown(label: Label) -> str:
    """As people write it."""
    return "=".join(label)
