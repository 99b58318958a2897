"""The file that `gpupool cluster dump` writes: JSON, one record a line, with the names that the .proto files have.

It is of one version; a reader refuses every other, and says which record of which file it cannot read. A dump has no
secrets; what is left out is said in scheduler.proto, at StoredRecord.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError

from gpupool.errors import InvalidSpec, ServerFault
from gpupool.store.keys import Kind, parse
from gpupool.store.port import KeyValue
from gpupool.store.types import TYPES
from gpupool.v1 import scheduler_pb2

FORMAT, VERSION = "gpupool cluster dump", 1
_LARGEST = 1 << 63
_LATEST_S = 253_370_764_800  # the year 9999: beyond it there are no dates

KINDS = TYPES.keys() - {Kind.FAILOVER, Kind.LEADER}


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump that was read. `policy` is JSON text with the names of the policy file."""

    at_s: float
    revision: int
    policy: str
    powered: frozenset[str]
    machines: Mapping[str, str]  # of `powered`, by host: the machine that its fence device is of, where that is said
    items: tuple[KeyValue, ...]


def lines(parts: Iterable[scheduler_pb2.DumpPart]) -> Iterator[str]:
    """The file, line by line, without line ends. Raises ServerFault for a dump without a head."""
    before = ""
    for part in parts:
        if part.HasField("head"):
            yield from _head(part.head)
            before = "["
        elif not before:
            raise ServerFault("the scheduler's dump has no head; ask for another")
        for record in part.records:
            if (found := parse(record.key)) is None or found[0] not in KINDS:
                continue  # of a later version
            value = MessageToDict(TYPES[found[0]].FromString(record.value), preserving_proto_field_name=True)
            yield before + json.dumps({"key": record.key, "created": record.created, "value": value})
            before = ","
    yield "]}" if before == "," else "[]}"


def _head(head: scheduler_pb2.DumpHead) -> Iterator[str]:
    yield "{" + f'"format": {json.dumps(FORMAT)}, "version": {VERSION},'
    yield f'"at_s": {head.at_s!r}, "revision": {head.revision}, "scheduler": {json.dumps(head.version)},'
    yield f'"policy": {head.policy or "{}"},'
    yield f'"powered": {json.dumps(list(head.powered))}, "machines": {json.dumps(dict(sorted(head.machines.items())))},'
    yield '"records":'


def read(path: Path) -> Dump:
    """The dump in a file. Raises InvalidSpec that names the line, or the record and the field."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise InvalidSpec([f"{path}: not UTF-8 text; `gpupool cluster dump` writes JSON"]) from None
    except json.JSONDecodeError as error:
        raise InvalidSpec(
            [f"{path}, line {error.lineno}: {error.msg} (column {error.colno}); was the dump cut off? Make another"]
        ) from None
    except RecursionError:
        raise InvalidSpec([f"{path}: nested too deeply for a dump"]) from None
    except ValueError as error:
        raise InvalidSpec([f"{path}: {error}"]) from None  # a number of thousands of digits
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InvalidSpec([f"{path}: no dump of a cluster; `gpupool cluster dump -o FILE` makes one"])
    if found.get("version") != VERSION:
        raise InvalidSpec(
            [f"{path}: version is {found.get('version')!r}, this gpupool reads {VERSION}; make the dump anew with it"]
        )
    faults: list[str] = []
    at_s, revision = _number(found, "at_s", faults, _LATEST_S), _number(found, "revision", faults)
    policy, powered, records = found.get("policy"), found.get("powered"), found.get("records")
    if not isinstance(policy, dict):
        faults.append("policy: a mapping is wanted")
    if not isinstance(powered, list) or not all(isinstance(name, str) for name in powered):
        faults.append("powered: a list of hosts is wanted")
    machines = found.get("machines", {})  # an older gpupool wrote none
    if not isinstance(machines, dict) or not all(isinstance(value, str) for value in machines.values()):
        faults.append("machines: ids by host are wanted")
    if not isinstance(records, list):
        faults.append("records: a list is wanted")
    if faults or not isinstance(records, list):
        raise InvalidSpec([f"{path}: {fault}" for fault in faults])
    items = tuple(_item(path, number, record) for number, record in enumerate(records))
    return Dump(at_s, int(revision), json.dumps(policy), frozenset(powered or ()), machines, items)


def _number(found: Mapping[str, Any], name: str, faults: list[str], largest: int = _LARGEST) -> float:
    value = found.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < largest:
        return float(value)
    faults.append(f"{name}: {value!r} is no number from 0 to {largest}")
    return 0.0


def _item(path: Path, number: int, record: Any) -> KeyValue:
    where = f"{path}: records[{number}]"
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        raise InvalidSpec([f"{where}: a mapping with key, created and value is wanted"])
    key, created = record["key"], record.get("created")
    parsed = parse(key)
    if parsed is None or parsed[0] not in KINDS:
        raise InvalidSpec([f"{where}: this gpupool knows no key {key!r}"])
    if not isinstance(created, int) or isinstance(created, bool) or created < 0:
        raise InvalidSpec([f"{where} ({key}): created is {created!r}, not a whole number from 0"])
    try:
        message = ParseDict(record.get("value") or {}, TYPES[parsed[0]]())
    except (ParseError, DecodeError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InvalidSpec([f"{where} ({key}): {' '.join(str(error).split())}"]) from None
    return KeyValue(key, message.SerializeToString(), created, created)
