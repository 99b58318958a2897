"""`python -m agent.doctor`: judges this host, or a copy of one's files; with --fix, mends what can be mended.

Prints a DoctorReport as JSON, for `gpupool doctor` to show. Needs neither libvirt nor a running agent.
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from google.protobuf.json_format import MessageToJson

from gpupool.store.port import Store

from ..config import ConfigError, parse_cpus, parse_ids, parse_nics
from ..devices import holders
from ..inventory.read import read_inventory
from ..inventory.sysfs import RealSysfs
from . import fixes
from .examine import ACCEPTABLE, diagnose, message, report
from .facts import DEFAULT_TTL_S, Context, Facts
from .machine import LiveMachine, NoMachine
from .model import OK, SYSTEMS, Found, SetHugepages
from .remedies import Command
from .vfio import has_host_driver

HUGEPAGE_KIB, KIB_PER_MIB = 2048, 1024
MOST_IN_HUGEPAGES = 0.9  # of a node's memory: the rest of the system lives there too


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    root: Path
    system: str
    etcd: str
    ttl_s: float
    accept: tuple[str, ...]
    reserved_cpus: str | None
    gpu: tuple[str, ...]
    nic: tuple[str, ...]
    fix: bool
    dry_run: bool
    yes: bool
    hugepages: int


@click.command()
@click.option("--root", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("/"))
@click.option("--system", type=click.Choice(SYSTEMS), default=None)
@click.option("--etcd", default="")
@click.option("--ttl-s", type=click.FloatRange(min=0, min_open=True), default=DEFAULT_TTL_S)
@click.option("--accept", multiple=True, type=click.Choice(ACCEPTABLE))
@click.option("--reserved-cpus", envvar="GPUPOOL_AGENT_RESERVED_CPUS", default=None)
@click.option("--gpu", multiple=True, envvar="GPUPOOL_AGENT_GPUS")
@click.option("--nic", multiple=True, envvar="GPUPOOL_AGENT_NICS")
@click.option("--fix", is_flag=True)
@click.option("--dry-run", is_flag=True)
@click.option("--yes", is_flag=True)
@click.option("--hugepages", type=click.IntRange(min=0), default=0)
def main(system: str | None, **rest: object) -> None:
    """Judge this host; `gpupool doctor --help` explains the options."""
    options = Options(system=system or "", **rest)  # type: ignore[arg-type]  # click has checked them
    try:
        sys.exit(asyncio.run(run(options)))
    except ConfigError as exc:
        click.echo(f"error: {exc}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)


async def run(options: Options) -> int:
    """Report, or mend; the exit code."""
    context = make_context(options)
    try:
        found = await diagnose(context)
    finally:
        if context.store is not None:
            await context.store.close()
    if options.fix:
        return mend(options, Facts(context), found)
    facts = Facts(context)
    findings = [message(each, facts) for each in found]
    click.echo(MessageToJson(report(_name(options), time.time(), context, findings), preserving_proto_field_name=True))
    return 0


def make_context(options: Options) -> Context:
    """The context of a host without an agent's help. Raises ConfigError."""
    root = RealSysfs(options.root)
    is_here = options.root.resolve() == Path("/")
    reserved = None if options.reserved_cpus is None else parse_cpus(options.reserved_cpus)
    nics = parse_nics(options.nic)
    inventory = read_inventory(
        RealSysfs(options.root / "sys"), reserved_cpus=reserved or (), allow=parse_ids(options.gpu), nics=nics
    )
    endpoints = tuple(filter(None, options.etcd.split(",")))
    store = _open_store(endpoints) if endpoints else None
    return Context(
        root,
        LiveMachine() if is_here else NoMachine(),
        inventory,
        store=store,
        endpoints=endpoints,
        ttl_s=options.ttl_s,
        accept=frozenset(options.accept),
        reserved_cpus=reserved,
        in_use=holders.in_use(root, [unit for unit in inventory.units if has_host_driver(unit)], {}, ()),
        nics=nics,
        system=options.system,
    )


def _open_store(endpoints: tuple[str, ...]) -> Store:
    try:
        from gpupool.store.etcd import EtcdStore  # noqa: PLC0415 - a host can be judged without it
    except ModuleNotFoundError as exc:
        raise ConfigError(f"--etcd needs {exc.name}; install it with: pip install 'gpupool[agent]'") from exc
    return EtcdStore(endpoints)


def mend(options: Options, facts: Facts, found: list[Found]) -> int:
    """Show what can be mended; unless it is a dry run, ask and do it. The exit code."""
    remedies = [remedy for each in found if each.level != OK for remedy in each.remedies]
    if options.hugepages:
        remedies.append(hugepages(options.hugepages, facts))
    plan = fixes.plan(remedies, facts.system, options.root)
    if not plan:
        click.echo("nothing to do: what is left needs a person; `gpupool doctor` says what")
        return 0
    click.echo(fixes.show(plan))
    if options.dry_run:
        click.echo("dry run: nothing was changed")
        return 0
    is_here = options.root.resolve() == Path("/")
    if is_here and os.geteuid() != 0:
        click.echo("error: only root may change the host; run it with sudo", err=True)
        return 1
    if not options.yes:
        click.confirm("Do this?", abort=True, err=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    try:
        failed = fixes.apply(plan, options.root, run_command if is_here else leave_command, stamp)
    except OSError as exc:
        click.echo(f"error: {exc}; run it again once that is mended", err=True)
        return 1
    for line in failed:
        click.echo(f"error: {line}", err=True)
    _tell(options, found, plan, stamp)
    return 1 if failed else 0


def hugepages(count: int, facts: Facts) -> SetHugepages:
    """That many pages on each node with memory. Raises ConfigError if that would starve a node."""
    nodes = sorted((node for node in facts.inventory.numa_nodes if node.memory_mib), key=lambda node: node.id)
    for node in nodes:
        there = sum(pages.size_kib * pages.total // KIB_PER_MIB for pages in node.hugepages)
        most = int((node.memory_mib + there) * MOST_IN_HUGEPAGES) * KIB_PER_MIB // HUGEPAGE_KIB
        if count > most:
            raise ConfigError(f"--hugepages {count}: NUMA node {node.id} can spare {most} at most")
    return SetHugepages(HUGEPAGE_KIB, count, tuple(node.id for node in nodes))


def _tell(options: Options, found: list[Found], plan: fixes.Plan, stamp: str) -> None:
    if any(change.before is not None for change in plan.changes):
        click.echo(f"what was replaced is kept in {options.root / fixes.STATE / 'backup' / stamp}")
    if late := sorted({each.check for each in found if each.reboot and each.remedies and each.level != OK}):
        click.echo(f"takes effect at the next boot: {', '.join(late)}")


def run_command(command: Command) -> str:
    """Run it; what went wrong, "" for nothing. Building every initramfs takes minutes, so there is no time limit."""
    click.echo(f"run: {' '.join(command)}")
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as exc:
        return str(exc)
    return f"ended with {code}" if code else ""


def leave_command(command: Command) -> str:
    """A copied tree is not the system that runs here."""
    click.echo(f"not run, since the root is not this system's: {' '.join(command)}")
    return ""


def _name(options: Options) -> str:
    return (RealSysfs(options.root).read("etc/hostname") or "") if options.root != Path("/") else platform.node()


def entry() -> None:
    """Run the command line; what is wrong with it is one line, as everywhere in gpupool."""
    try:
        main(standalone_mode=False)
    except click.ClickException as exc:
        click.echo(f"error: {exc.format_message()}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    entry()
