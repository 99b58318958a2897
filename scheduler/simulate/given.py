"""What the simulations are given on the command line and in files, read and judged; every fault says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from google.protobuf.json_format import ParseDict, ParseError

from gpupool.errors import InvalidSpec
from gpupool.store.keys import check_name
from gpupool.v1 import scheduler_pb2

from ..codec.decode import queue_intent_of
from ..core.state.facts import QueueIntent
from ..core.state.policy import Policy
from ..policy_file import PolicyFileError, load_policy

FILE = click.Path(path_type=Path, dir_okay=False, readable=False)
MOST_WEIGHT = 1e9  # so that no sum of them is infinite


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only in the newest click
    """A number of a range; unlike click's own, it takes no nan and says what is wanted."""

    name = "number"

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not self.low <= found <= self.high:
            self.fail(f"{value!r} is not a number from {self.low:g} to {self.high:g}", param, ctx)
        return found


class Shares(click.ParamType):  # type: ignore[type-arg]
    """`1:60,2:20`: names, each with its weight among all."""

    name = "shares"

    def __init__(self, convert: Callable[[str], Any], what: str) -> None:
        self.convert_name, self.what = convert, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[Any, float]:
        """Weights by name."""
        found: dict[Any, float] = {}
        for part in value.split(","):
            text, _, weight = part.strip().partition(":")
            try:
                name, share = self.convert_name(text), float(weight or 1)
            except ValueError as error:
                self.fail(f"{part!r}: {self.what}, then ':' and its weight ({error})", param, ctx)
            if not 0 <= share <= MOST_WEIGHT or name in found:
                self.fail(f"{part!r}: each name once, with a weight from 0 to {MOST_WEIGHT:g}", param, ctx)
            found[name] = share
        if not sum(found.values()):
            self.fail(f"{value!r}: no weight is above 0", param, ctx)
        return found


def gpus_name(text: str) -> int:
    """A number of GPUs."""
    if not 1 <= int(text) <= 64:
        raise ValueError(f"{text} is not from 1 to 64")
    return int(text)


def priority_name(text: str) -> int:
    """A priority."""
    if not -1000 <= int(text) <= 1000:
        raise ValueError(f"{text} is not from -1000 to 1000")
    return int(text)


def tenant_name(text: str) -> str:
    """A tenant, whose queue has its name."""
    return check_name(text, "queue")


def policy_of(path: Path | None) -> Policy:
    """The policy file, as the scheduler reads it; without one, what holds without one. Raises InvalidSpec."""
    if path is None:
        return Policy()
    try:
        return load_policy(path)[0]
    except PolicyFileError as error:
        raise InvalidSpec(error.violations) from None


def queues_of(path: Path | None) -> dict[str, QueueIntent]:
    """Queues as `gpupool queue list -o json` (or yaml) prints them. Raises InvalidSpec."""
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise InvalidSpec([f"{path}: not UTF-8 text"]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidSpec([f"{path}: {' '.join(str(error).split())}"]) from None
    except ValueError as error:  # what looks like a date and is none
        raise InvalidSpec([f"{path}: a value cannot be read ({error}); text belongs in quotes"]) from None
    if not isinstance(found, list):
        raise InvalidSpec([f"{path}: a list of queues is wanted, as `gpupool queue list -o json` prints it"])
    queues: dict[str, QueueIntent] = {}
    for number, each in enumerate(found):
        try:
            name, queue = _queue(each)
        except (ParseError, ValueError) as error:
            raise InvalidSpec([f"{path}: queue {number + 1} of {len(found)}: {error}"]) from None
        if name in queues:
            raise InvalidSpec([f"{path}: queue {number + 1} of {len(found)}: {name!r} stands there twice"])
        queues[name] = queue
    return queues


def _queue(found: Any) -> tuple[str, QueueIntent]:
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")  # noqa: TRY004  (the file is wrong, not the program)
    wire = ParseDict(found, scheduler_pb2.Queue())
    return check_name(wire.name, "queue"), queue_intent_of(wire.name, wire.settings)
