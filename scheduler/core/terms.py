"""What a job asks of the queue, beside its shape: whom it waits for. Never changed once it is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class When(Enum):
    """Which end of another job is waited for. The values are those of gpupool.v1.Dependency.When."""

    OK = 1
    ANY = 2
    NOT_OK = 3


@dataclass(frozen=True, slots=True)
class Dependency:
    """Another job, by id, that must have ended so before the first start."""

    job: str
    when: When = When.OK


@dataclass(frozen=True, slots=True)
class Terms:
    """See the module docstring."""

    dependencies: tuple[Dependency, ...] = ()
