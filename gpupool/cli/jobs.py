"""Commands that ask about jobs, or end them, with one answer: jobs, show, cancel, explain."""

from __future__ import annotations

import time

import click

from gpupool.client import select
from gpupool.client.requests import state_name
from gpupool.errors import GpupoolError
from gpupool.v1 import job_pb2

from . import queue_views, views
from .explaining import show as show_explanation
from .output import emit, examples, note, output_option, pairs, table
from .settings import complete_host, complete_job, connect, connection_options, job_id, job_ids

STATES = tuple(name.removeprefix("JOB_STATE_").lower() for name in job_pb2.JobState.keys()[1:])


def parse_labels(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`k=v`, several times, as a mapping."""
    labels: dict[str, str] = {}
    for value in values:
        name, equals, wanted = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is no label; write key=value")
        if labels.setdefault(name, wanted) != wanted:
            raise click.BadParameter(f"{value!r}: {name}={labels[name]} stands there too, and no label has two values")
    return labels


@click.command(
    epilog=examples(
        "gpupool jobs --state running --state starting", "gpupool jobs --name 'train-*' -l team=vision -o wide"
    )
)
@click.option("--state", "states", multiple=True, type=click.Choice(STATES, case_sensitive=False), help="Repeatable.")
@click.option("--name", default="", metavar="GLOB", help='Such as "train-*".')
@click.option("--host", default="", shell_complete=complete_host, help="Of the current or last attempt.")
@click.option("-l", "--label", "labels", multiple=True, callback=parse_labels, metavar="KEY=VALUE", help="Repeatable.")
@click.option("--elements", is_flag=True, help="One line for each element of an array or member of a gang, too.")
@output_option("table", "wide", "json", "yaml")
@connection_options
def jobs(*, states: tuple[str, ...], name: str, host: str, labels: dict[str, str], elements: bool, output: str) -> None:
    """List jobs by order of arrival; an array or a gang in one line, with how many of it are in which state."""
    with connect() as client:
        found = list(client.list(select(states=states, name=name, host=host, labels=labels)))
    if output in {"json", "yaml"}:
        emit(output, found)
    elif found:
        view = views.jobs if elements else queue_views.jobs
        table(*view(found, time.time(), wide=output == "wide"))
    else:
        note("no jobs" + (" like that" if states or name or host or labels else "; submit one with `gpupool submit`"))


@click.command(epilog=examples("gpupool show 7f3a", "gpupool show 7f3a -o json | jq .status.attempts"))
@click.argument("job", shell_complete=complete_job)
@output_option("table", "json", "yaml")
@connection_options
def show(job: str, output: str) -> None:
    """Show one job with its attempts. JOB is an id, or enough of its beginning."""
    with connect() as client:
        found = client.get(job_id(client, job))
    if output != "table":
        emit(output, found)
        return
    pairs([*views.job_facts(found, time.time()), *queue_views.job_facts(found)])
    if found.status.attempts:
        click.echo()
        table(*views.attempts(found, time.time()))


@click.command(epilog=examples('gpupool cancel 7f3a 81bc --reason "wrong data set"'))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)
@click.option("--reason", default="", help="Kept with the job.")
@output_option("table", "json", "yaml")
@connection_options
def cancel(ids: tuple[str, ...], reason: str, output: str) -> None:
    """Ask for the end of jobs. They end when their guests have stopped; `gpupool watch` shows it."""
    asked: list[job_pb2.Job] = []
    with connect() as client:
        try:
            # All names are made out before the first job is touched: a misspelt one cancels nothing.
            for full in [job for text in ids for job in job_ids(client, text)]:
                asked.append(client.cancel(full, reason))  # noqa: PERF401  (what was done is told below)
        except GpupoolError:
            _tell(asked, output)
            raise
    _tell(asked, output)


def _tell(asked: list[job_pb2.Job], output: str) -> None:
    if output != "table":
        emit(output, asked)
        return
    for job in asked:
        done = f"is finished already: {state_name(job.status.state)}" if job.status.finished_s else "is asked to end"
        click.echo(f"{job.id} {done}")


@click.command(epilog=examples("gpupool explain 7f3a", "gpupool explain 7f3a -o wide"))
@click.argument("job", shell_complete=complete_job)
@output_option("table", "wide", "json", "yaml")
@connection_options
def explain(job: str, output: str) -> None:
    """Say why a job waits: the nearest miss, and the reasons by number of hosts; with -o wide, host by host.

    A host is counted under the first reason that speaks against it; docs/operations.md says what each means. The
    nearest miss is the host that lacks least, with all that it lacks. `gpupool submit --dry-run` says the same before a
    job is submitted.
    """
    with connect() as client:
        found = client.explain(job_ids(client, job)[0])
    if output in {"json", "yaml"}:
        emit(output, found)
        return
    show_explanation(found, wide=output == "wide")


COMMANDS = (jobs, show, cancel, explain)
