"""Reads clusters and task lists from CSV files with the columns of openb, Alibaba's cluster-trace-gpu-v2023.

A file that is not as it must be is refused with the number of the line; nothing is guessed or passed over.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gpupool.errors import InvalidSpec

from ..core.packing import HostSize, NodeSize, Shape
from ..core.packing.sizes import WHOLE

NODES = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
PODS = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")  # and gpu_spec, which some lists lack
LARGEST = 1 << 40


def read_hosts(path: Path) -> list[HostSize]:
    """The hosts, each of one NUMA node, since the trace does not tell of more."""
    hosts = []
    seen: dict[str, int] = {}
    for line, row in rows(path, NODES):
        name = row["sn"]
        if not name:
            raise bad(path, line, "sn is empty")
        if name in seen:
            raise bad(path, line, f"{name!r} is on line {seen[name]} too")
        seen[name] = line
        gpus = number(path, line, row, "gpu")
        if gpus > 1024:
            raise bad(path, line, f"gpu is {gpus}, which no host has")
        node = NodeSize(number(path, line, row, "cpu_milli"), number(path, line, row, "memory_mib"), gpus)
        hosts.append(HostSize(name, row["model"], (node,)))
    if not any(host.gpus for host in hosts):
        raise InvalidSpec([f"{path}: no host has a GPU"])
    return hosts


def read_tasks(path: Path) -> list[Shape]:
    """The tasks, in the order of the file."""
    tasks = [task(path, line, row) for line, row in rows(path, PODS)]
    if not any(found.gpu_milli for found in tasks):
        raise InvalidSpec([f"{path}: no task asks for a GPU"])
    return tasks


def task(path: Path, line: int, row: dict[str, str]) -> Shape:
    """The task of one row. Raises InvalidSpec."""
    count, milli = number(path, line, row, "num_gpu"), number(path, line, row, "gpu_milli")
    if count == 1 and not 0 < milli <= WHOLE:
        raise bad(path, line, f"gpu_milli is {milli} for one GPU; it must be 1 to {WHOLE}")
    if count > 1024:
        raise bad(path, line, f"num_gpu is {count}, which no host has")
    gpu = milli if count == 1 else count * WHOLE
    models = tuple(sorted({model for model in (row.get("gpu_spec") or "").split("|") if model}))
    return Shape(gpu, number(path, line, row, "cpu_milli"), number(path, line, row, "memory_mib"), models)


def rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row with the number of the line that it ends on."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        named = Counter(reader.fieldnames or ())
        for name in columns:
            if named[name] != 1:
                many = "there is no column" if not named[name] else f"{named[name]} columns are called"
                raise bad(path, 1, f"{many} {name}; it has {', '.join(map(repr, named)) or 'none'}")
        for row in reader:
            if None in row or None in row.values():
                raise bad(path, reader.line_num, "it has not as many fields as line 1")
            yield reader.line_num, row
    except csv.Error as error:
        raise bad(path, reader.reader.line_num, str(error)) from None


def _text(path: Path) -> str:
    """The file's. Raises InvalidSpec."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidSpec([f"{path}: {error.strerror}"]) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise bad(path, line, f"not UTF-8 text: {error.object[error.start : error.end]!r}") from None


def number(path: Path, line: int, row: dict[str, str], column: str) -> int:
    """The whole number in a column. Raises InvalidSpec."""
    text = row[column].strip()
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= LARGEST and len(text) <= 20):
        raise bad(path, line, f"{column} is {row[column]!r}, not a whole number from 0 to {LARGEST}")
    return int(text)


def bad(path: Path, line: int, why: str) -> InvalidSpec:
    """A fault of a line."""
    return InvalidSpec([f"{path}, line {line}: {why}"])
