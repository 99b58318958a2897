"""What `gpupool submit` can ask of the queue, as options; each changes the specs that were read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from gpupool.client import Client
from gpupool.v1.job_pb2 import Dependency, JobSpec

from .settings import complete_job, job_id

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked on the command line."""

    after_ok: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    after_not_ok: tuple[str, ...] = ()
    hold: bool = False

    def apply(self, client: Client, spec: JobSpec) -> None:
        """Change `spec` accordingly. Raises NotFound for a job that nobody knows."""
        for jobs, when in (
            (self.after_ok, Dependency.OK),
            (self.after_any, Dependency.ANY),
            (self.after_not_ok, Dependency.NOT_OK),
        ):
            for job in jobs:
                spec.dependencies.add(job=job_id(client, job), when=when)
        spec.hold |= self.hold


def queue_options(command: F) -> F:
    """Adds the options; the command gets them as `terms`."""

    @wraps(command)
    def with_terms(*args: Any, **kwargs: Any) -> Any:
        asked = {name: kwargs.pop(name) for name in Terms.__dataclass_fields__}
        return command(*args, terms=Terms(**asked), **kwargs)

    ends = (("any", "has ended, however"), ("not-ok", "has failed or was cancelled"), ("ok", "has succeeded"))
    with_terms = click.option("--hold", is_flag=True, help="Submit it on hold: `gpupool release` lets it start.")(
        with_terms
    )
    for end, words in ends:
        option = click.option(
            f"--after-{end}", multiple=True, metavar="JOB", shell_complete=complete_job,
            help=f"Start it once JOB {words}. Repeatable.",
        )  # fmt: skip
        with_terms = option(with_terms)
    return with_terms  # type: ignore[return-value]
