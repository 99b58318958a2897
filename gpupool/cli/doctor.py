"""`gpupool doctor`: shows what is wrong with a host and how to mend it. The agent's package judges; this only asks.

This host is judged by a process of its own, since the library knows nothing of the agent's insides; others through the
scheduler.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
from google.protobuf.json_format import Parse, ParseError

from gpupool.embedded.daemons import DaemonError, module_of
from gpupool.errors import GpupoolError
from gpupool.v1 import inventory_pb2, scheduler_pb2

from . import views
from .output import emit, examples, output_option, safe
from .settings import complete_host, connect, connection_options

WARNINGS, PROBLEMS = 10, 11  # exit codes
PLAIN_WIDTH, LEAST_WIDTH, MOST_WIDTH = 100, 40, 120
LEVELS = (
    (inventory_pb2.FINDING_LEVEL_PROBLEM, "PROBLEM", "bold red"),
    (inventory_pb2.FINDING_LEVEL_WARNING, "WARNING", "yellow"),
    (inventory_pb2.FINDING_LEVEL_UNKNOWN, "UNKNOWN", "cyan"),
    (inventory_pb2.FINDING_LEVEL_NOTE, "NOTE", "bold"),
    (inventory_pb2.FINDING_LEVEL_OK, "OK", "green"),
)
SYSTEMS = {"debian": "Debian, Ubuntu", "rhel": "RHEL, Fedora"}

Line = tuple[str, str]  # text, style


EXIT_CODES = """\b
Exit codes, beside the usual ones:
    0  nothing that is wrong (notes and unknown things may be)
   10  warnings: the host works, but costs safety, speed or comfort
   11  problems: units are kept out of placement
With --fix: 0 done, or nothing to do; 1 something failed."""


@click.command(
    epilog="\n\n".join(
        (
            EXIT_CODES,
            examples(
                "gpupool doctor",
                "gpupool doctor --host gpu07 -o json | jq '.findings[] | select(.units)'",
                "sudo gpupool doctor --fix --dry-run",
            ),
        )
    )
)
@click.option(
    "--host", default="", shell_complete=complete_host, help="Ask this host's agent.  [default: this machine]"
)
@click.option("--all", "show_all", is_flag=True, help="Show what is fine too.")
@click.option("--system", type=click.Choice(list(SYSTEMS)), help="Show the fixes for this one.  [default: the host's]")
@click.option("--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Judge a copied file tree.")
@click.option("--etcd", default="", metavar="HOST:PORT", help="Time this etcd too; several with commas.")
@click.option("--ttl-s", type=float, help="The agent's lease, for judging etcd's answers (8).")
@click.option("--reserved-cpus", help="What the agent keeps for the host, e.g. 0-3.")
@click.option(
    "--gpu", multiple=True, metavar="vvvv:dddd", help="Ids that count as a GPU, as told to the agent; repeatable."
)
@click.option(
    "--nic",
    multiple=True,
    metavar="ADDRESS|IDS",
    help="A network function that the agent pools, as told to it; repeatable.",
)
@click.option("--accept", multiple=True, metavar="CHECK", help="Take a check's problem for a warning; repeatable.")
@click.option("--fix", is_flag=True, help="Mend what can be mended without harm; asks first.")
@click.option("--dry-run", is_flag=True, help="With --fix: only show what it would do.")
@click.option("-y", "--yes", is_flag=True, help="With --fix: do not ask.")
@click.option("--hugepages", type=click.IntRange(min=0), help="With --fix: 2 MiB pages for every NUMA node.")
@output_option("table", "json", "yaml")
@connection_options
def doctor(host: str, show_all: bool, output: str, **options: object) -> int:
    """Say whether a host can hand out its GPUs safely, and how to mend what is wrong.

    Judges this machine, best as root, or with --host the machine of an agent. Problems keep units out of placement.
    """
    system = str(options["system"] or "")
    if host:
        _refuse_local(options)
        with connect() as client:
            found = client.doctor(host)
    elif options["fix"]:
        if output != "table":
            raise click.UsageError(f"--fix prints a diff and commands, no {output}; leave -o out, or --fix")
        return subprocess.run(_command(options), check=False).returncode
    else:
        if wrong := [name for name in ("dry_run", "yes", "hugepages") if options[name]]:
            raise click.UsageError(f"{_flag(wrong[0])} goes with --fix")
        found = _judge_here(options)
    if output == "table":
        _print(lines(found, system or found.system, _width(), show_all=show_all))
    else:
        emit(output, found)
    return exit_code(found.findings)


def exit_code(findings: Iterable[inventory_pb2.Finding]) -> int:
    """For automation: by the worst finding."""
    levels = {finding.level for finding in findings}
    if inventory_pb2.FINDING_LEVEL_PROBLEM in levels:
        return PROBLEMS
    return WARNINGS if inventory_pb2.FINDING_LEVEL_WARNING in levels else 0


def lines(report: scheduler_pb2.DoctorReport, system: str, width: int, *, show_all: bool) -> Iterator[Line]:
    """The report by level, worst first. Steps are never broken: they are to be copied."""
    known = {level for level, _, _ in LEVELS}
    counts = []
    yield f"{report.host or 'host'}, {views.moment(report.at_s)}".rstrip(", "), ""
    for level, name, style in LEVELS:
        unspecified = level == inventory_pb2.FINDING_LEVEL_UNKNOWN  # where a newer agent's levels go
        found = [f for f in report.findings if f.level == level or (unspecified and f.level not in known)]
        counts += [f"{len(found)} {name}"] if found else []
        if found and (show_all or level != inventory_pb2.FINDING_LEVEL_OK):
            yield "", ""
            yield name, style
            for finding in found:
                yield from _finding(finding, system, width)
    yield "", ""
    hidden = "" if show_all or not any(count.endswith(" OK") for count in counts) else " (--all shows it)"
    yield (", ".join(counts) or "nothing was judged") + hidden, ""


def _finding(finding: inventory_pb2.Finding, system: str, width: int) -> Iterator[Line]:
    for number, text in enumerate(_wrap(f"{finding.check}: {finding.seen}", width - 4)):
        yield f"{'    ' if number else '  '}{text}", "" if number else "bold"
    if finding.risk:
        for text in _wrap(f"Risk: {finding.risk}", width - 6):
            yield f"    {text}", ""
    shown = [fix for fix in finding.fixes if not system or fix.system in (system, "any")]
    for fix in shown:
        yield f"    Fix{_when(finding, fix, system)}:", "green"
        for step in fix.steps.splitlines():
            yield f"      {safe(step)}".rstrip(), ""


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(safe(text), width, break_on_hyphens=False)


def _when(finding: inventory_pb2.Finding, fix: inventory_pb2.Fix, system: str) -> str:
    told = [] if system or fix.system == "any" else [SYSTEMS.get(fix.system, fix.system)]
    told += ["gpupool doctor --fix does it"] if finding.fixable else []
    told += ["takes a reboot"] if finding.reboot else []
    return f" ({safe(', '.join(told))})" if told else ""


def _judge_here(options: dict[str, object]) -> scheduler_pb2.DoctorReport:
    done = subprocess.run(_command(options), stdout=subprocess.PIPE, check=False)
    if done.returncode == 2:  # it has said what is wrong with the options
        raise click.exceptions.Exit(2)
    try:
        return Parse(done.stdout, scheduler_pb2.DoctorReport(), ignore_unknown_fields=True)
    except ParseError:
        raise GpupoolError(f"the judgement failed: it ended with {done.returncode} and no report") from None


def _command(options: dict[str, object]) -> list[str]:
    """The agent's own program, with what it is told. Raises GpupoolError if it is not installed."""
    try:
        module = module_of("agent")
    except DaemonError:
        raise GpupoolError(
            "to judge this machine the agent is needed; install it with: pip install 'gpupool[agent]'. "
            "`gpupool doctor --host HOST` asks a host's own agent"
        ) from None
    words: list[str] = []
    for name, value in options.items():
        given: Sequence[object] = value if isinstance(value, tuple) else (value,)
        for each in given:
            if each is True:
                words.append(_flag(name))
            elif each not in (None, False, "", 0):
                words += [_flag(name), str(each)]
    return [sys.executable, "-m", f"{module}.doctor", *words]


def _refuse_local(options: dict[str, object]) -> None:
    """Raise UsageError for options that make sense on this machine only."""
    if wrong := [name for name, value in options.items() if value and name != "system"]:
        raise click.UsageError(f"{_flag(wrong[0])} does not go with --host: it is for the machine that it runs on")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _width() -> int:
    if not sys.stdout.isatty():
        return PLAIN_WIDTH
    return min(max(shutil.get_terminal_size().columns, LEAST_WIDTH), MOST_WIDTH)


def _print(found: Iterable[Line]) -> None:
    if not sys.stdout.isatty():
        for text, _ in found:
            click.echo(text)
        return
    from rich.console import Console  # noqa: PLC0415 - as in output
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    for text, style in found:
        console.print(Text(text, style=style))


COMMANDS = (doctor,)
