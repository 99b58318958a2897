"""Commands that let failures be acted on, or not: disarm, arm, brake, release."""

from __future__ import annotations

import time

import click

from gpupool.v1 import job_pb2, scheduler_pb2

from . import planned_views as shown
from .output import emit, examples, output_option, pairs
from .settings import complete_job, connect, connection_options, job_ids, me
from .wishes import wish


@click.command(epilog=examples('gpupool disarm --reason "etcd moves to new disks"', "gpupool status", "gpupool arm"))
@click.option("--reason", required=True, help="The work, for whoever finds it disarmed.")
@output_option("table", "json", "yaml")
@connection_options
def disarm(reason: str, output: str) -> None:
    """Act on no failure for a while: no host is switched off, and no job of a lost host restarts.

    For planned work on etcd or the network. What runs goes on, jobs that end are cleaned up after, and new jobs start.
    Agents still end their VMs if they lose etcd for too long, since the scheduler could not tell it from a death. Do
    not forget to `gpupool arm`: `gpupool status` and every waiting job's `explain` say that it is disarmed.
    """
    with connect() as client:
        _show(client.disarm(reason, by=me()), output)


@click.command(epilog=examples("gpupool arm"))
@output_option("table", "json", "yaml")
@connection_options
def arm(output: str) -> None:
    """Act on failures again: hosts that were lost meanwhile are fenced now, and their jobs restart."""
    with connect() as client:
        _show(client.arm(by=me()), output)


@click.group(
    invoke_without_command=True,
    epilog=examples("gpupool brake", 'gpupool brake release --reason "the switch is back, nothing burns"'),
)
@output_option("table", "json", "yaml")
@connection_options
@click.pass_context
def brake(ctx: click.Context, output: str) -> None:
    """Show the mass failure brake: when too many hosts vanish at once, nothing restarts and nothing is switched off.

    It ends by itself once no other host was lost for the site's cooldown, or by `gpupool brake release`.
    """
    if ctx.invoked_subcommand is None:
        with connect() as client:
            _show(client.cluster(), output)


@brake.command(epilog=examples('gpupool brake release --reason "it was the switch of rack 3; its hosts are off"'))
@click.option("--reason", required=True, help="Why restarts may go on; kept.")
@output_option("table", "json", "yaml")
@connection_options
def release(reason: str, output: str) -> None:
    """End the mass failure brake now: lost jobs restart, on evidence as always."""
    with connect() as client:
        _show(client.release_brake(reason, by=me()), output)


def _show(cluster: scheduler_pb2.Cluster, output: str) -> None:
    if output == "table":
        pairs(shown.safety(cluster, time.time()))
    else:
        emit(output, cluster)


@click.command("release", epilog=examples("gpupool release 7f3a", 'gpupool release 7f3a --reason "host 5 had bad RAM"'))
@click.argument("job", shell_complete=complete_job)
@click.option("--reason", default="", help="Kept with the request.")
@output_option("table", "json", "yaml")
@connection_options
def release_job(job: str, reason: str, output: str) -> None:
    """Let a held JOB start again, such as one with which several hosts died in a row.

    `gpupool show JOB` says why it is held. If it really kills hosts, it may kill the next one.
    """
    found: list[job_pb2.Job] = []
    with connect() as client:
        wish(job_ids(client, job), lambda each: client.release(each, reason, by=me()), found)
    if output == "table":
        for each in found:
            click.echo(f"{each.id} is let go; `gpupool explain {each.id}` says what it waits for")
    else:
        emit(output, found[0] if len(found) == 1 else found)


COMMANDS = (disarm, arm, brake, release_job)
