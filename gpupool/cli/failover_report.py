"""`gpupool failover report`: what became of hosts that were lost, and of their VMs."""

from __future__ import annotations

import time

import click

from gpupool.v1 import records_pb2

from . import failover_views as shown
from .output import emit, examples, note, output_option, pairs, table
from .settings import COUNT, complete_host, connect, connection_options
from .views import View

LAST = 5


@click.command("report", epilog=examples("gpupool failover report gpu07", "gpupool failover report --last 0 -o json"))
@click.argument("host", required=False, default="", shell_complete=complete_host)
@click.option("--last", type=COUNT, default=LAST, show_default=True, help="So many; 0: all kept.")
@output_option("table", "json", "yaml")
@connection_options
def report(host: str, last: int, output: str) -> None:
    """Tell of past losses of hosts, or of HOST, the newest first.

    For each: when it was lost, when and by which evidence its VMs were known to be dead, and for each VM where its job
    started again, and when. "+7.0s" is seconds after the loss. A host that is lost now and has no evidence yet comes
    first: its jobs wait.
    """
    with connect() as client:
        found = list(client.failovers(host, last=last))
        waiting = [each for each in client.hosts() if host in ("", each.name) and _lost(each.record)]
    if output in {"json", "yaml"}:
        emit(output, found)
        return
    now_s = time.time()
    blocks: list[tuple[shown.Pairs, View | None]] = [(shown.unproven(each, now_s), None) for each in waiting]
    blocks += [(shown.facts(record, now_s), shown.vms(record)) for record in found]
    if not blocks:
        note(f"{host} was never lost" if host else "no host was ever lost")
    for number, (facts, vms) in enumerate(blocks):
        click.echo("\n" if number else "", nl=False)
        pairs(facts)
        if vms and vms[1]:
            click.echo()
            table(*vms)


def _lost(record: records_pb2.HostRecord) -> bool:
    return record.state in (records_pb2.HOST_STATE_SUSPECT, records_pb2.HOST_STATE_FENCING)
