"""Commands that say what is wanted of one job: hold, requeue. `release` is in `safety`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from gpupool.errors import Conflict, GpupoolError
from gpupool.v1 import job_pb2

from .output import emit, examples, note, output_option
from .settings import complete_job, connect, connection_options, job_ids, me


@click.command(epilog=examples("gpupool hold 7f3a", 'gpupool hold 7f3a 81bc --reason "the data set is being mended"'))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)
@click.option("--reason", default="", help="Kept with the job.")
@output_option("table", "json", "yaml")
@connection_options
def hold(ids: tuple[str, ...], reason: str, output: str) -> None:
    """Keep pending jobs from starting until `gpupool release`. What runs already is not touched."""
    done: list[job_pb2.Job] = []
    with connect() as client:
        try:
            for named in [job_ids(client, text) for text in ids]:
                wish(named, lambda job: client.hold(job, reason, by=me()), done)
        except GpupoolError:
            _tell(done, "is held", output)
            raise
    _tell(done, "is held; `gpupool release` lets it go", output)


@click.command(epilog=examples("gpupool requeue 7f3a", 'gpupool requeue 7f3a --hold --reason "needs a newer image"'))
@click.argument("ids", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)
@click.option("--hold", "held", is_flag=True, help="Hold it once it is back in the queue.")
@click.option("--reason", default="", help="Kept with the attempt.")
@output_option("table", "json", "yaml")
@connection_options
def requeue(ids: tuple[str, ...], held: bool, reason: str, output: str) -> None:
    """Stop jobs' VMs and put the jobs back into the queue: they keep their place and lose no restart.

    Their guests are asked for a checkpoint first, and have the job's stop grace to end.
    """
    done: list[job_pb2.Job] = []
    with connect() as client:
        try:
            for named in [job_ids(client, text) for text in ids]:
                wish(named, lambda job: client.requeue(job, reason, hold=held, by=me()), done)
        except GpupoolError:
            _tell(done, "is asked to stop", output)
            raise
    _tell(done, "is asked to stop, and starts again" + (" once it is released" if held else ""), output)


def wish(named: Sequence[str], ask: Callable[[str], job_pb2.Job], done: list[job_pb2.Job]) -> None:
    """Ask it for each job; `done` gets the answers. Of many (an array, a gang) those are passed over that refuse.

    Raises Conflict where it makes sense for none.
    """
    refused: list[Conflict] = []
    for job in named:
        try:
            done.append(ask(job))
        except Conflict as error:
            refused.append(error)
    if len(refused) == len(named):
        raise refused[0]
    if refused:
        note(f"{len(refused)} of {len(named)} are passed over, such as: {refused[0]}")


def _tell(done: list[job_pb2.Job], what: str, output: str) -> None:
    if output != "table":
        emit(output, done)
        return
    for job in done:
        click.echo(f"{job.id} {what}")


COMMANDS = (hold, requeue)
