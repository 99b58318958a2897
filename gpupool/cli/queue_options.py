"""What `gpupool submit` can ask of the queue, as options; each changes the specs that were read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from gpupool.client import Client
from gpupool.v1.job_pb2 import Dependency, JobSpec

from .settings import COUNT, complete_job, job_ids, user

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Terms:
    """What was asked on the command line."""

    after_ok: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    after_not_ok: tuple[str, ...] = ()
    hold: bool = False
    time_limit: int | None = None
    start_within: int | None = None
    end_within: int | None = None
    keep: int | None = None
    array: tuple[int, int] | None = None
    gang: int | None = None
    spread_over: str | None = None
    pack_into: str | None = None
    queue: str | None = None
    preemptible: bool = False

    def apply(self, client: Client, spec: JobSpec) -> None:
        """Change `spec` accordingly. Raises NotFound for a job that nobody knows."""
        for jobs, when in (
            (self.after_ok, Dependency.OK),
            (self.after_any, Dependency.ANY),
            (self.after_not_ok, Dependency.NOT_OK),
        ):
            for job in jobs:
                spec.dependencies.extend(Dependency(job=each, when=when) for each in job_ids(client, job))
        spec.hold |= self.hold
        spec.preemptible |= self.preemptible
        if self.queue is not None:
            spec.queue = self.queue
        spec.user = spec.user or user()
        if self.array is not None:
            spec.array.count, spec.array.parallel = self.array
        if self.gang is not None:
            spec.gang.count = self.gang
        for name in ("spread_over", "pack_into"):
            if (kind := getattr(self, name)) is not None:
                setattr(spec.gang, name, "pcie_root" if kind == "pcie-root" else kind)
        for name in ("time_limit", "start_within", "end_within", "keep"):
            if (seconds := getattr(self, name)) is not None:
                setattr(spec, f"{name}_s", seconds)


def jobs_of(submitted: str, spec: JobSpec) -> list[str]:
    """The ids of the jobs that a submission has made."""
    return [f"{submitted}-{index}" for index in range(spec.array.count or spec.gang.count)] or [submitted]


def parse_array(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`COUNT` or `COUNT%PARALLEL`; how many are allowed is the scheduler's word."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})(?:%(\d{1,9}))?", value)
    if found is None:
        raise click.BadParameter(f"{value!r}: write how many elements, such as 100, or 100%8 for 8 at once")
    return int(found[1]), int(found[2] or 0)


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """Seconds, written as "90", "90s", "15m", "2h", "1d" or several of them, such as "1h30m"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole seconds."""
        parts = _PART.findall(value) if isinstance(value, str) else []
        if isinstance(value, int):
            return value
        if not parts or "".join(n + unit for n, unit in parts) != value.strip():
            self.fail(f"{value!r} is no duration; write 90s, 15m, 2h, 1d or 1h30m", param, ctx)
        if len(value) > _LONGEST or (seconds := sum(int(n) * _SECONDS[unit] for n, unit in parts)) > _MOST_S:
            self.fail(f"{value!r} is more than 100 years", param, ctx)
        return seconds


_PART = re.compile(r"([0-9]+)([smhd]?)")
_LONGEST, _MOST_S = 200, 100 * 365 * 86400
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_TIMES = {
    "keep": "Keep its record for this long once it is finished.",
    "end-within": "Its VM is gone this long after submission; the job has FAILED if it had not ended.",
    "start-within": "Give it up if it has not started this long after submission.",
    "time-limit": "Each attempt may run this long (2h, 1h30m); then it is stopped: checkpoint, grace, end.",
}


_GANG = (
    ("pack-into", "KIND", "All of the gang on one host, pcie-root, or value of a label of hosts, such as rack."),
    ("spread-over", "KIND", "Each of the gang on another host, pcie-root, or value of a label of hosts, such as rack."),
    ("gang", "COUNT", "So many VMs of it, which start all together or not at all."),
)


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
    with_terms = click.option("--preemptible", is_flag=True, help="Let it stop for any job of a higher priority.")(
        with_terms
    )
    with_terms = click.option("--queue", metavar="NAME", help='Instead of the queue in the file; else "default".')(
        with_terms
    )
    with_terms = click.option(
        "--array", callback=parse_array, metavar="COUNT[%PARALLEL]", help="So many jobs of it, PARALLEL at once."
    )(with_terms)
    for name, metavar, words in _GANG:
        kind = COUNT if name == "gang" else None
        with_terms = click.option(f"--{name}", metavar=metavar, type=kind, help=words)(with_terms)
    for time, words in _TIMES.items():
        with_terms = click.option(f"--{time}", type=Duration(), metavar="TIME", help=words)(with_terms)
    for end, words in ends:
        option = click.option(
            f"--after-{end}", multiple=True, metavar="JOB", shell_complete=complete_job,
            help=f"Start it once JOB {words}. Repeatable.",
        )  # fmt: skip
        with_terms = option(with_terms)
    return with_terms  # type: ignore[return-value]
