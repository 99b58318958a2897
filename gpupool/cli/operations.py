"""Commands for operators: hosts, units, cordon, uncordon, confirm-dead, retry-unit, status."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from gpupool.client import Client
from gpupool.errors import NotFound
from gpupool.v1 import scheduler_pb2

from . import details, host_views, planned_views, views
from .output import emit, examples, note, output_option, pairs, table
from .settings import complete_host, connect, connection_options, me


@click.command(epilog=examples("gpupool hosts -o wide", "gpupool hosts gpu07"))
@click.argument("host", required=False, default="", shell_complete=complete_host)
@output_option("table", "wide", "json", "yaml")
@connection_options
def hosts(host: str, output: str) -> None:
    """List hosts with their state and free units (free/all), or show HOST: NUMA nodes, NICs, what doctor found."""
    with connect() as client:
        found = list(client.hosts())
    if not host:
        _show_hosts(found, output)
        return
    chosen = next((each for each in found if each.name == host), None)
    if chosen is None:
        raise _no_host(host, found)
    if output in {"json", "yaml"}:
        emit(output, chosen)
        return
    pairs(details.host_facts(chosen, time.time()))
    _tables(details.nodes(chosen.inventory), details.findings(chosen.inventory), details.nics(chosen.inventory))


@click.command(epilog=examples("gpupool units gpu07 -o wide", "gpupool units gpu07 0000:21:00.0"))
@click.argument("host", required=False, default="", shell_complete=complete_host)
@click.argument("unit", required=False, default="")
@output_option("table", "wide", "json", "yaml")
@connection_options
def units(host: str, unit: str, output: str) -> None:
    """List device units, of all hosts or of HOST, or show one UNIT with its PCI functions.

    -o wide says why one is quarantined, sick or unfit, and what became of its resets.
    """
    with connect() as client:
        found = client.units(host)
        if host and not found:
            _must_know(client, host)
    if unit:
        _show_unit(host, unit, found, output)
    elif output in {"json", "yaml"}:
        emit(output, found)
    elif found:
        table(*views.units(found, wide=output == "wide"))
    else:
        note(f"no units on {host!r}" if host else "no units")


def _must_know(client: Client, host: str) -> None:
    """Raise NotFound for a host that nobody knows, which a list of its units does not tell from one without any."""
    known = client.hosts()
    if host not in [each.name for each in known]:
        raise _no_host(host, known)


def _no_host(host: str, known: Sequence[scheduler_pb2.Host]) -> NotFound:
    return NotFound(f"no host {host!r}; known hosts: {', '.join(each.name for each in known) or 'none'}")


def _show_unit(host: str, unit: str, found: Sequence[scheduler_pb2.UnitView], output: str) -> None:
    chosen = next((view for view in found if view.unit.id == unit), None)
    if chosen is None:
        have = ", ".join(view.unit.id for view in found) or "none"
        raise NotFound(f"host {host} has no unit {unit!r}; its units: {have}")
    if output in {"json", "yaml"}:
        emit(output, chosen)
        return
    pairs(details.unit_facts(chosen))
    _tables(details.functions(chosen))


def _tables(*shown: views.View) -> None:
    """Those with rows, each behind an empty line."""
    for header, rows in shown:
        if rows:
            click.echo()
            table(header, rows)


@click.command(epilog=examples('gpupool cordon gpu07 --reason "fan 3 is loud"'))
@click.argument("host", shell_complete=complete_host)
@click.option("--reason", required=True, help="For whoever finds the host cordoned.")
@output_option("table", "wide", "json", "yaml")
@connection_options
def cordon(host: str, reason: str, output: str) -> None:
    """Place nothing new on HOST. What runs there goes on."""
    with connect() as client:
        _show_host(client.cordon(host, reason, by=me()), output)


@click.command(epilog=examples("gpupool uncordon gpu07"))
@click.argument("host", shell_complete=complete_host)
@output_option("table", "wide", "json", "yaml")
@connection_options
def uncordon(host: str, output: str) -> None:
    """Let jobs be placed on HOST again."""
    with connect() as client:
        _show_host(client.uncordon(host, by=me()), output)


@click.command("confirm-dead", epilog=examples('gpupool confirm-dead gpu07 --reason "powered off at the PDU"'))
@click.argument("host", shell_complete=complete_host)
@click.option("--reason", required=True, help="How you know, such as: power cable pulled.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_option("table", "wide", "json", "yaml")
@connection_options
def confirm_dead(host: str, reason: str, yes: bool, output: str) -> None:
    """Vouch that no VM of HOST's lost session is alive.

    Its jobs then restart elsewhere. If a VM lives after all, its job runs twice and both write to the same volumes:
    pull the power first.
    """
    if not yes:
        question = f"Is it certain that no VM on {host} is alive? If one is, its job will run twice."
        click.confirm(question, abort=True, err=True)
    with connect() as client:
        _show_host(client.confirm_dead(host, reason, by=me()), output)


@click.command("retry-unit", epilog=examples('gpupool retry-unit gpu07 0000:21:00.0 --reason "reseated"'))
@click.argument("host", shell_complete=complete_host)
@click.argument("unit")
@click.option("--reason", default="", help="Kept with the request.")
@output_option("table", "wide", "json", "yaml")
@connection_options
def retry_unit(host: str, unit: str, reason: str, output: str) -> None:
    """Have a quarantined UNIT of HOST reset and proven once more. `gpupool units HOST` lists them."""
    with connect() as client:
        found = client.retry_unit(host, unit, reason, by=me())
    if output in {"json", "yaml"}:
        emit(output, found)
    else:
        table(*views.units([found], wide=output == "wide"))


@click.command(epilog=examples("gpupool status -o json"))
@output_option("table", "json", "yaml")
@connection_options
def status(output: str) -> None:
    """Summarise the cluster: leader, hosts, units, jobs by state."""
    with connect() as client:
        found = client.cluster()
    if output != "table":
        emit(output, found)
        return
    leader = found.leader
    since = f", for {views.age(leader.since_s, time.time())}" if leader.since_s else ""
    pairs(
        [
            ("leader", f"{leader.id} at {leader.address}{since}" if leader.id else "none: nothing new is decided"),
            ("answered by", f"{found.replica}, version {found.version}, revision {found.revision}"),
            ("hosts", f"{found.hosts_ready} of {found.hosts} ready"),
            ("units", f"{found.units_free} of {found.units} free"),
            *planned_views.safety(found, time.time()),
            *(("POLICY DIFFERS", text) for text in found.policy_differs),
            ("jobs", ", ".join(f"{found.jobs[state]} {state.lower()}" for state in sorted(found.jobs)) or "none"),
        ]
    )


def _show_host(host: scheduler_pb2.Host, output: str) -> None:
    if output in {"json", "yaml"}:
        emit(output, host)
    else:
        _show_hosts([host], output)


def _show_hosts(found: list[scheduler_pb2.Host], output: str) -> None:
    if output in {"json", "yaml"}:
        emit(output, found)
    elif found:
        table(*host_views.hosts(found, time.time(), wide=output == "wide"))
    else:
        note("no hosts; does an agent run, and against the same etcd?")


COMMANDS = (hosts, units, cordon, uncordon, confirm_dead, retry_unit, status)
