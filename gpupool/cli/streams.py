"""Commands whose answer goes on: watch, logs, events. Ctrl-C ends them."""

from __future__ import annotations

import click

from gpupool.client import Client, select
from gpupool.client.requests import finished
from gpupool.v1 import scheduler_pb2

from . import views
from .output import emit, emit_line, examples, output_option, safe
from .screen import screen
from .settings import FROM_ONE, complete_job, connect, connection_options, job_id


@click.command(epilog=examples("gpupool watch 7f3a", "gpupool watch -o json | jq -r .id"))
@click.argument("ids", metavar="[JOB]...", nargs=-1, shell_complete=complete_job)
@output_option("table", "wide", "json")
@connection_options
def watch(ids: tuple[str, ...], output: str) -> None:
    """Show jobs as they change: all of them, or those named until they are finished.

    A table on a terminal, else a line for each change; -o json writes one JSON document a line.
    """
    with connect() as client:
        full = [job_id(client, text) for text in ids]
        left = set(full)
        with screen(output) as show:
            for job in client.watch(select(ids=full)):
                show(job)
                left -= {job.id} if finished(job) else set()
                if full and not left:
                    return


@click.command(epilog=examples("gpupool logs -f 7f3a", "gpupool logs --tail 100 --attempt 1 7f3a"))
@click.argument("job", shell_complete=complete_job)
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt ends.")
@click.option("--tail", type=FROM_ONE, metavar="N", help="Only the last N lines.")
@click.option("--attempt", type=FROM_ONE, metavar="N", help="Of this attempt; default: the newest.")
@click.option("-t", "--timestamps", is_flag=True, help="Put the time before each line.")
@output_option("text", "json")
@connection_options
def logs(*, job: str, follow: bool, tail: int | None, attempt: int | None, timestamps: bool, output: str) -> None:
    """Print the output of a job's guest: its stdout to stdout, the rest to stderr. -o json writes lines of JSON."""
    with connect() as client:
        for chunk in client.logs(job_id(client, job), attempt or 0, follow=follow, tail=tail or 0):
            for line in chunk.lines:
                if output == "json":
                    emit_line(line)
                else:
                    print_line(line, timestamps=timestamps)


def print_line(line: scheduler_pb2.LogLine, *, timestamps: bool = False) -> None:
    """The guest's text as it is: a job's own colours and progress bars are wanted."""
    before = f"{views.moment(line.at_s)} " if timestamps else ""
    click.echo(before + line.text, err=line.stream != "stdout")


@click.command(epilog=examples("gpupool events -f", "gpupool events --last 20 -o json"))
@click.option("-f", "--follow", is_flag=True, help="Go on with what changes from now on.")
@click.option("--last", type=FROM_ONE, metavar="N", help="Only the last N kept; default: all.")
@output_option("table", "json", "yaml")
@connection_options
def events(follow: bool, last: int | None, output: str) -> None:
    """Show what changed lately: host, unit, allocation and job states, each with its reason.

    -o json writes an array; with -f, one JSON document a line.
    """
    if follow and output == "yaml":
        raise click.UsageError("a stream has no end, so no YAML document; use -o json")
    with connect() as client:
        if output == "table" or follow:
            _print_events(client, follow=follow, last=last or 0, as_json=output == "json")
        else:
            emit(output, list(client.events(last=last or 0)))


def _print_events(client: Client, *, follow: bool, last: int, as_json: bool) -> None:
    for event in client.events(follow=follow, last=last):
        if as_json:
            emit_line(event)
        else:
            click.echo(safe(views.event(event)))


COMMANDS = (watch, logs, events)
