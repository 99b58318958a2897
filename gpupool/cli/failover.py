"""Commands about the loss of hosts: what one would do now, on a copy, and what past ones did (`failover_report`)."""

from __future__ import annotations

import click

from gpupool.v1 import job_pb2, scheduler_pb2

from .failover_report import report
from .output import emit, examples, note, output_option, table
from .settings import complete_host, connect, connection_options
from .views import View, enum_name

PLAN = ("JOB", "NAME", "FROM", "TO", "AFTER", "REASON")
PLAN_WIDE = ("JOB", "NAME", "ALLOCATION", "FROM", "TO", "UNITS", "AFTER", "REASON")
EVIDENCE = ("HOST", "EVIDENCE", "AFTER", "DETAIL")


@click.group("failover")
def failover() -> None:
    """What the loss of hosts would do, and did."""


@failover.command("plan", epilog=examples("gpupool failover plan gpu07", "gpupool failover plan gpu07 -o wide"))
@click.argument("host", shell_complete=complete_host)
@output_option("table", "wide", "json", "yaml")
@connection_options
def plan(host: str, output: str) -> int:
    """Say where each VM of HOST would restart if it died now, why it could not, and how long that would take.

    Changes nothing. Exit code 1 if a VM with restarts left would not be restarted without an operator.
    """
    return _plan([host], output)


@failover.command("simulate", epilog=examples("gpupool failover simulate gpu07 gpu08"))
@click.argument("hosts", nargs=-1, required=True, shell_complete=complete_host)
@output_option("table", "wide", "json", "yaml")
@connection_options
def simulate(hosts: tuple[str, ...], output: str) -> int:
    """Say what would happen if all of HOSTS died at once, on a copy of the cluster: the brake, evidence, restarts.

    Changes nothing. Exit code 1 if a VM with restarts left would not be restarted without an operator.
    """
    return _plan(list(hosts), output)


def _plan(hosts: list[str], output: str) -> int:
    with connect() as client:
        found = client.plan_failover(hosts)
    if output in {"json", "yaml"}:
        emit(output, found)
    else:
        _show(found, wide=output == "wide")
    return 1 if stuck(found) else 0


def _show(found: scheduler_pb2.FailoverPlan, *, wide: bool) -> None:
    table(*evidence(found))
    if found.brake:
        click.echo(f"\nthe mass failure brake would go on: {found.brake}")
    if found.vms:
        click.echo()
        table(*restarts(found, wide=wide))
    else:
        note(f"no VM runs on {', '.join(found.hosts)}")


def stuck(found: scheduler_pb2.FailoverPlan) -> list[str]:
    """Jobs with restarts left that would not be restarted without an operator."""
    unproven = {each.host for each in found.evidence if not each.evidence}
    return [vm.job for vm in found.vms if vm.restartable and (not vm.to or getattr(vm, "from") in unproven)]


def evidence(found: scheduler_pb2.FailoverPlan) -> View:
    """One row for each host: what would prove its VMs dead, and when."""
    rows = [
        [each.host, enum_name(job_pb2.Evidence, each.evidence) or "NONE", _after(each.after_s), each.detail]
        for each in found.evidence
    ]
    return EVIDENCE, rows


def restarts(found: scheduler_pb2.FailoverPlan, *, wide: bool = False) -> View:
    """One row for each VM, in the order in which they would be placed."""
    rows = []
    for vm in found.vms:
        row = [vm.job, vm.name, getattr(vm, "from"), vm.to, _after(vm.after_s), vm.reason]
        rows.append([*row[:2], vm.allocation, *row[2:4], ",".join(vm.units), *row[4:]] if wide else row)
    return PLAN_WIDE if wide else PLAN, rows


def _after(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds else ""


failover.add_command(report)
COMMANDS = (failover,)
