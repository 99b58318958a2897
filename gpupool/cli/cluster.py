"""`gpupool cluster`: what is said of the cluster as a whole, to be kept."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from gpupool import dumpfile
from gpupool.v1 import scheduler_pb2

from .output import examples, note
from .settings import connect, connection_options


@click.group()
def cluster() -> None:
    """The cluster as a whole."""


@cluster.command(epilog=examples("gpupool cluster dump -o cluster.json", "gpupool simulate whatif cluster.json"))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help='Write it to this file, not to stdout; "json", a format elsewhere, is no file.',
)
@connection_options
def dump(output: Path | None) -> None:
    """Save what the scheduler knows, for `gpupool simulate whatif`.

    Hosts with inventory, units, labels and intents; jobs that are not over; queues, shares, policy: JSON, as of one
    moment. Commands, environments, user data and what agents prove themselves with are left out.
    """
    with connect() as client:
        if output is None or str(output) == "json":  # `./json` is a file
            for line in dumpfile.lines(client.dump()):
                click.echo(line)
            sys.stdout.flush()
            return
        records = _write(output, client.dump())
    note(f"{output} has {records:,} records")


def _write(path: Path, parts: Iterable[scheduler_pb2.DumpPart]) -> int:
    """All or nothing: what is broken off leaves an older file as it is. Raises UsageError if it cannot be written."""
    part, records = path.with_name(f"{path.name}.part"), 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for line in dumpfile.lines(parts):
                file.write(f"{line}\n")
                records += line[:1] in "[," and line != "[]}"
        part.replace(path)
    except OSError as error:
        raise click.UsageError(f"-o {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return records


COMMANDS = (cluster,)
