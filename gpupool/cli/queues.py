"""`gpupool queue`: operators make, change, suspend and delete queues, and see how they stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpupool.errors import NotFound
from gpupool.v1 import records_pb2, scheduler_pb2

from . import queue_views
from .output import emit, examples, note, output_option, pairs, table
from .settings import connect, connection_options, me

F = TypeVar("F", bound=Callable[..., Any])
GIB = 1024
_NUMBER = click.IntRange(min=-1, max=2**31 - 1)
_PRIORITY = click.IntRange(min=-(2**31), max=2**31 - 1)  # of which are allowed the scheduler says


@click.group(epilog=examples("gpupool queue list", "gpupool queue create vision --guaranteed-gpus 8 --max-gpus 16"))
def queue() -> None:
    """Queues: who may use how much at once, and whose turn it is.

    Every job is in one: `submit --queue NAME`, else in "default".
    """


def settings_options(command: F) -> F:
    """Adds an option for each setting; -1 takes a limit away."""
    options: tuple[tuple[str, Any, str], ...] = (
        ("--tenant", str, "Whose it is: shares are fair between tenants (the queue's name)."),
        ("--weight", click.IntRange(1, 2**31 - 1), "Of its tenant's share (1)."),
        ("--guaranteed-gpus", _NUMBER, "What others may use while it is idle, and must give back (0)."),
        ("--guaranteed-cpus", _NUMBER, "The same for CPUs."),
        ("--guaranteed-memory-gib", _NUMBER, "The same for memory."),
        ("--max-gpus", _NUMBER, "What its jobs may use at once (no limit; -1 takes one away)."),
        ("--max-cpus", _NUMBER, "The same for CPUs."),
        ("--max-memory-gib", _NUMBER, "The same for memory."),
        ("--user-gpus", _NUMBER, "What one user's jobs may use at once (no limit)."),
        ("--user-cpus", _NUMBER, "The same for CPUs."),
        ("--user-memory-gib", _NUMBER, "The same for memory."),
        ("--user-jobs", _NUMBER, "How many jobs of one user may run at once (no limit)."),
        ("--min-priority", _PRIORITY, "Lowest priority that a job may have."),
        ("--max-priority", _PRIORITY, "Highest priority that a job may have."),
    )
    for name, kind, words in reversed(options):
        command = click.option(name, type=kind, help=words)(command)
    return command


@queue.command(
    epilog=examples("gpupool queue create vision --guaranteed-gpus 8 --max-gpus 16 --user-gpus 4 --weight 2")
)
@click.argument("name")
@settings_options
@output_option("table", "json", "yaml")
@connection_options
def create(name: str, output: str, **given: Any) -> None:
    """Make the queue NAME."""
    settings, fields = _settings(given)
    with connect() as client:
        _show(client.set_queue(name, settings, fields, create=True, by=me()), output)


@queue.command(
    "set", epilog=examples("gpupool queue set vision --max-gpus 24", "gpupool queue set vision --user-gpus -1")
)
@click.argument("name")
@settings_options
@output_option("table", "json", "yaml")
@connection_options
def set_(name: str, output: str, **given: Any) -> None:
    """Change settings of the queue NAME; the others stay. What runs is not stopped by a lower limit.

    Amounts go together: --max-gpus keeps the limits of CPUs and memory as they are.
    """
    with connect() as client:
        settings, fields = _settings(given, _find(client.queues(), name).settings)
        if not fields:
            raise click.UsageError("nothing to change: give a setting, such as --max-gpus 8")
        _show(client.set_queue(name, settings, fields, by=me()), output)


@queue.command("list", epilog=examples("gpupool queue list -o wide"))
@output_option("table", "wide", "json", "yaml")
@connection_options
def list_(output: str) -> None:
    """List queues with what they use; -o wide has every setting."""
    with connect() as client:
        found = list(client.queues())
    if output in {"json", "yaml"}:
        emit(output, found)
    else:
        table(*queue_views.queues(found, wide=output == "wide"))


@queue.command(epilog=examples("gpupool queue show vision"))
@click.argument("name")
@output_option("table", "json", "yaml")
@connection_options
def show(name: str, output: str) -> None:
    """Show one queue."""
    with connect() as client:
        _show(_find(client.queues(), name), output)


@queue.command(epilog=examples('gpupool queue suspend vision --reason "its data is being moved"'))
@click.argument("name")
@click.option("--reason", required=True, help="For whoever waits in it.")
@output_option("table", "json", "yaml")
@connection_options
def suspend(name: str, reason: str, output: str) -> None:
    """Start nothing of the queue NAME. What runs goes on, and jobs may be submitted."""
    settings = records_pb2.QueueIntent(suspended=True, suspended_reason=reason)
    with connect() as client:
        _show(client.set_queue(name, settings, ["suspended", "suspended_reason"], by=me()), output)


@queue.command(epilog=examples("gpupool queue resume vision"))
@click.argument("name")
@output_option("table", "json", "yaml")
@connection_options
def resume(name: str, output: str) -> None:
    """Start jobs of the queue NAME again."""
    with connect() as client:
        _show(client.set_queue(name, records_pb2.QueueIntent(), ["suspended"], by=me()), output)


@queue.command(epilog=examples("gpupool queue delete vision"))
@click.argument("name")
@connection_options
def delete(name: str) -> None:
    """Delete the queue NAME, which must have no unfinished jobs."""
    with connect() as client:
        client.delete_queue(name, by=me())
    note(f"queue {name} is deleted")


def _find(found: Any, name: str) -> scheduler_pb2.Queue:
    for each in found:
        if each.name == name:
            return scheduler_pb2.Queue.FromString(each.SerializeToString())
    raise NotFound(f"no queue {name!r}; known queues: {', '.join(each.name for each in found)}")


def _settings(
    given: dict[str, Any], before: records_pb2.QueueIntent | None = None
) -> tuple[records_pb2.QueueIntent, list[str]]:
    """The settings that options ask for, over those before, and the names of those that change."""
    settings = before or records_pb2.QueueIntent()
    fields: set[str] = set()
    for option, value in given.items():
        if value is not None:
            fields.add(_put(settings, option, value))
    return settings, sorted(fields)


def _put(settings: records_pb2.QueueIntent, option: str, value: Any) -> str:
    kind, _, what = option.partition("_")
    group = {"guaranteed": "guaranteed", "max": "limit", "user": "user_limit"}.get(kind, "")
    if what == "priority":
        field = f"priority_{kind}"
    elif group and what != "jobs":
        amounts = getattr(settings, group)
        name, unit = (what, 1) if not what.endswith("_gib") else ("memory_mib", GIB)
        amounts.ClearField(name)
        if value >= 0:
            setattr(amounts, name, value * unit)
        return group
    else:
        field = option
    settings.ClearField(field)  # type: ignore[arg-type]
    if field != "user_jobs" or value >= 0:
        setattr(settings, field, value)
    return field


def _show(found: scheduler_pb2.Queue, output: str) -> None:
    if output == "table":
        pairs(queue_views.queue_facts(found))
    else:
        emit(output, found)


COMMANDS = (queue,)
