"""Prints answers: tables for people, JSON and YAML for programs. On a terminal rich lays tables out, without colours
when NO_COLOR is set; elsewhere they are plain text, so that awk and grep see what people see.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

if TYPE_CHECKING:
    from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])
Rows = Iterable[Sequence[str]]

STYLES = {
    "RUNNING": "green", "SUCCEEDED": "green", "READY": "green", "FREE": "green", "FAILED": "red", "FENCING": "red",
    "QUARANTINED": "red", "SUSPECT": "yellow", "PENDING": "yellow", "STARTING": "cyan", "HELD": "cyan",
    "CANCELLED": "dim", "CORDONED": "yellow", "UNFIT": "red", "SICK": "red", "PROBLEM": "red", "WARNING": "yellow",
}  # fmt: skip


def examples(*lines: str) -> str:
    """The end of a command's help. The backspace tells click to keep the lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def output_option(*kinds: str) -> Callable[[F], F]:
    """Adds -o with these kinds; the first is the default."""
    return click.option("-o", "--output", type=click.Choice(kinds), default=kinds[0], show_default=True, help="Format.")


def document(message: Message) -> dict[str, Any]:
    """The message with the names that the .proto has; what is unset is left out."""
    return MessageToDict(message, preserving_proto_field_name=True)


def emit(kind: str, value: Message | Sequence[Message]) -> None:
    """Print one JSON or YAML document: an object for a message, an array for several."""
    data = document(value) if isinstance(value, Message) else [document(item) for item in value]
    if kind == "json":
        click.echo(json.dumps(data, indent=2))
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)


def emit_line(message: Message) -> None:
    """Print one line of JSON, at once: for streams."""
    click.echo(json.dumps(document(message)))
    sys.stdout.flush()


def safe(text: str) -> str:
    """Text on one line that cannot drive the terminal: names and messages are other people's."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def table(header: Sequence[str], rows: Rows) -> None:
    """Print a table."""
    cells = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  (costs 50 ms that pipes need not pay)

        Console(highlight=False).print(rich_table(header, cells))
    else:
        click.echo(plain_table(header, cells), nl=False)


def plain_table(header: Sequence[str], rows: Rows) -> str:
    """Columns two blanks apart, "-" for nothing, so that every row has as many fields as the header."""
    cells = [list(header), *([cell or "-" for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def rich_table(header: Sequence[str], rows: Rows) -> Table:
    """The same for a terminal: states coloured, the last column folded to the width."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        made.add_column(name, no_wrap=name != header[-1], overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell or "-", style=STYLES.get(cell, "")) for cell in row))  # Text: "[x]" is no markup
    return made


def pairs(items: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line; empty values are left out."""
    kept = [(name, safe(value)) for name, value in items if value]
    width = max((len(name) for name, _ in kept), default=0) + 1
    for name, value in kept:
        click.echo(f"{name + ':':<{width}} {value}")


def note(text: str) -> None:
    """Say something beside the answer, on stderr."""
    click.echo(safe(text), err=True)
