"""One measured quantity: several values, and the ceiling (or the lower bound) that they are to be read against."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """`ceiling`: what the same machine did in the same run without us, or a lower bound; `target`: our promise."""

    what: str
    unit: str
    values: Sequence[float]
    ceiling: float | None = None
    ceiling_is: str = ""
    target: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def ratio(self) -> float | None:
        return self.median / self.ceiling if self.ceiling else None


def as_json(rows: dict[str, list[Row]]) -> str:
    return json.dumps(
        {
            name: [
                {
                    "what": row.what,
                    "unit": row.unit,
                    "median": row.median,
                    "min": min(row.values),
                    "max": max(row.values),
                    "ceiling": row.ceiling,
                    "ceiling_is": row.ceiling_is,
                    "ratio": row.ratio,
                    "target": row.target,
                    "values": list(row.values),
                }
                for row in found
            ]
            for name, found in rows.items()
        },
        indent=2,
    )


def print_table(name: str, rows: list[Row]) -> None:
    table = Table(title=name, title_justify="left")
    for column in ("what", "unit", "n", "median", "min", "max", "ceiling", "ratio", "ceiling is", "target"):
        table.add_column(column, justify="left" if column in ("what", "unit", "ceiling is", "target") else "right")
    for row in rows:
        numbers = (row.median, min(row.values), max(row.values))
        table.add_row(
            row.what, row.unit, str(len(row.values)), *map(_number, numbers), _number(row.ceiling), _number(row.ratio),
            row.ceiling_is, row.target,
        )  # fmt: skip
    Console(width=170).print(table)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
