"""Shows jobs as they change: a table that redraws itself on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from gpupool.client.requests import state_name
from gpupool.v1 import job_pb2

from . import views
from .output import emit_line, rich_table, safe

Show = Callable[[job_pb2.Job], None]


@contextlib.contextmanager
def screen(output: str) -> Iterator[Show]:
    """What to call with each job that is new or changed. `output`: table, wide or json."""
    if output == "json":
        yield emit_line
    elif sys.stdout.isatty():
        with _live(wide=output == "wide") as show:
            yield show
    else:
        yield lambda job: click.echo(change(job))


def change(job: job_pb2.Job) -> str:
    """One line about a job's present state, such as "7f3a train: RUNNING on gpu07, attempt 2"."""
    status = job.status
    name = f" {job.spec.name}" if job.spec.name else ""
    last = status.attempts[-1] if status.attempts else None
    where = f" on {last.host}, attempt {last.number}" if last and not status.finished_s and not last.ended_s else ""
    code = f" with exit code {status.exit_code}" if status.HasField("exit_code") else ""
    message = f" ({status.message})" if status.message else ""
    return safe(f"{job.id}{name}: {state_name(status.state)}{where}{code}{message}")


@contextlib.contextmanager
def _live(*, wide: bool) -> Iterator[Show]:
    from rich.live import Live  # noqa: PLC0415  (only a terminal pays for it)

    jobs: dict[str, job_pb2.Job] = {}

    def draw() -> object:
        header, rows = views.jobs(list(jobs.values()), time.time(), wide=wide)
        return rich_table(header, [[safe(cell) for cell in row] for row in rows])

    def show(job: job_pb2.Job) -> None:
        jobs[job.id] = job

    # get_renderable is asked four times a second, so ages go on between changes.
    with Live(get_renderable=draw, refresh_per_second=4) as live:  # type: ignore[arg-type]
        yield show
        live.refresh()
