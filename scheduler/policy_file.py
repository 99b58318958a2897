"""The file that says what the site decides about failures: read and judged as a whole, before anything relies on it.

It refuses what it does not understand or what contradicts itself, with every fault, its line and the way out: a brake
that is misspelt would otherwise be found missing when half of the hosts are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from .core.failover.brake import LOSSES_KEPT
from .core.state.policy import CONSERVATIVE, EASY, MOST_KEPT, BackfillPolicy, Policy

SECTIONS = {
    "brake": "brake",
    "flap": "flap",
    "failover": "reservation",
    "fair_share": "fair_share",
    "preemption": "preemption",
    "backfill": "backfill",
}  # in the file, in the core
PLAIN = ("soft_guard_is_enough", "starts_at_once", "drain_on_quarantine", "keep_finished_s")
_ELSEWHERE = {
    "powered": "hosts that can be switched off are those of the file that --power names",
    "reservation": "the room that is kept for restarts is `failover: {hosts: 1}`",
}
_Given = dict[str, tuple[Any, int]]  # path -> value and line


class PolicyFileError(Exception):
    """The file is refused; `violations` has every fault."""

    def __init__(self, path: Path, violations: list[str]) -> None:
        self.violations = [f"{path}:{violation}" for violation in violations]
        super().__init__("; ".join(self.violations))


def load_policy(path: Path) -> tuple[Policy, frozenset[str]]:
    """The policy, and what the file itself says, such as `brake.share`, the rest being default. PolicyFileError."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise PolicyFileError(path, [f" cannot be read ({exc.strerror}); see --policy"]) from None
    except UnicodeDecodeError:
        raise PolicyFileError(path, [" is not text; YAML is wanted"]) from None
    return read_policy(text, path)


def as_document(policy: Policy) -> dict[str, Any]:
    """The whole policy under the names of the file, as `read_policy` takes it; `powered` is not in it."""
    sections = {name: asdict(getattr(policy, of)) for name, of in SECTIONS.items()}
    return {**{name: getattr(policy, name) for name in PLAIN}, **sections}


def read_policy(text: str, path: Path, *, whole: bool = False) -> tuple[Policy, frozenset[str]]:
    """As `load_policy`, of a text that comes from `path`.

    `whole`: nobody chose which values it says, as with `as_document`, so none is refused for meaning nothing.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as exc:
        raise PolicyFileError(path, [" " + " ".join(str(exc).split())]) from None
    reader = _Reader()
    policy = reader.policy(root)
    faults = reader.faults or ([] if whole else [*_contradictions(policy, reader.given)])
    if faults:
        raise PolicyFileError(path, [f"{line}: {fault}" for line, fault in sorted(faults)])
    return policy, frozenset(reader.given)


class _Reader:
    """Gathers faults, with their lines, instead of stopping at the first."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str]] = []
        self.given: _Given = {}

    def policy(self, root: yaml.Node | None) -> Policy:
        policy = Policy()
        for key, node, line in self._pairs(root, ""):
            if key in SECTIONS:
                name = SECTIONS[key]
                section = self._section(key, getattr(policy, name), node)
                policy = replace(policy, **{name: section})
            elif key in PLAIN:
                policy = replace(policy, **self._value(key, getattr(policy, key), node))
            else:
                self._unknown(line, "", key, [*PLAIN, *SECTIONS])
        return policy

    def _section(self, name: str, section: Any, node: yaml.Node) -> Any:
        known = {field.name: getattr(section, field.name) for field in fields(section)}
        values: dict[str, Any] = {}
        for key, value, line in self._pairs(node, name):
            if key in known:
                values.update(self._value(f"{name}.{key}", known[key], value))
            else:
                self._unknown(line, f"{name}.", key, list(known))
        return replace(section, **values)

    def _pairs(self, node: yaml.Node | None, where: str) -> Iterator[tuple[str, yaml.Node, int]]:
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            self.faults.append((line, f"{where or 'the file'} is {_shown(node)}; keys with values are wanted"))
            return
        seen: set[str] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                self.faults.append((line, f"{where and where + '.'}{name} stands twice; keep one of them"))
            elif isinstance(key, yaml.ScalarNode):
                yield name, value, line
            seen.add(name)

    def _unknown(self, line: int, where: str, key: str, known: list[str]) -> None:
        hint = _ELSEWHERE.get(key, f"known here are {', '.join(known)}")
        self.faults.append((line, f"{where}{key} is unknown; {hint}"))

    def _value(self, path: str, default: Any, node: yaml.Node) -> dict[str, Any]:
        """The value under its own name, if it is one of the kind of `default`."""
        line = node.start_mark.line + 1
        name, found = path.rpartition(".")[2], _converted(node, default)
        if found is None:
            kind = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}[type(default)]
            self.faults.append((line, f"{path} is {_shown(node)}; {kind} is wanted"))
            return {}
        if fault := _BOUNDS.get(path, lambda _: "")(found):
            self.faults.append((line, f"{path} is {found}; {fault}"))
            return {}
        self.given[path] = found, line
        return {name: found}


def _converted(node: yaml.Node, default: Any) -> Any:
    """The value as the type of `default`, or None if it is of another kind, or none that YAML can make."""
    try:
        return _typed(yaml.SafeLoader("").construct_object(node, deep=True), default)
    except (yaml.YAMLError, ValueError, OverflowError):  # such as a date that is none, or a number of 400 digits
        return None


def _typed(value: Any, default: Any) -> Any:
    if isinstance(default, bool) or isinstance(value, bool):
        return value if isinstance(value, bool) and isinstance(default, bool) else None
    if isinstance(default, float):
        return float(value) if isinstance(value, int | float) and isfinite(value) else None
    return value if isinstance(value, type(default)) else None


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value)
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a sequence"


def _between(low: float, high: float, why: str) -> Callable[[Any], str]:
    return lambda value: "" if low <= value <= high else why


def _none_or(low: float, high: float, why: str) -> Callable[[Any], str]:
    return lambda value: "" if value == 0 or low <= value <= high else why


_EVERY = "the loss of one host alone would stop all restarts; 2 or more, or 0 for no such bound"
_BOUNDS: dict[str, Callable[[Any], str]] = {
    "starts_at_once": _between(0, 10_000, "0 to 10000 are possible; 0 means any number"),
    "keep_finished_s": _none_or(60.0, 31_536_000.0, "60 to 31536000 seconds are possible; 0: finished jobs stay"),
    "fair_share.half_life_s": _none_or(60.0, 31_536_000.0, "60 to 31536000 seconds are possible; 0: no memory"),
    "backfill.mode": lambda mode: "" if mode in (EASY, CONSERVATIVE) else f"{EASY} or {CONSERVATIVE} is wanted",
    "backfill.reservations": _between(0, 100, "0 to 100 are possible; 0: any job may pass any other"),
    "brake.hosts": _none_or(2, 1_000_000, _EVERY),
    "brake.share": _between(0.0, 1.0, "it is a part of all hosts, such as 0.34 for a third; 0 for no such bound"),
    "brake.at_least": _between(2, 1_000_000, "the loss of one host alone would stop all restarts; 2 or more"),
    "brake.window_s": _between(1.0, 86_400.0, "1 to 86400 seconds are possible"),
    "brake.cooldown_s": _none_or(1.0, 86_400.0, "1 to 86400 seconds are possible; 0: only an operator ends it"),
    "flap.losses": _none_or(2, LOSSES_KEPT, f"2 to {LOSSES_KEPT}, or 0: hosts are never held out"),
    "flap.window_s": _between(1.0, 31_536_000.0, "1 to 31536000 seconds are possible"),
    "failover.hosts": _between(0, 1, "0 or 1: room is kept for the loss of one host, or of one domain, at a time"),
}


def _contradictions(policy: Policy, given: _Given) -> Iterator[tuple[int, str]]:
    """Values that are possible each by itself, and not together."""
    brake, kept = policy.brake, policy.reservation
    if not brake.share and "brake.at_least" in given:
        yield (
            given["brake.at_least"][1],
            "brake.at_least belongs to brake.share, which is 0; leave it out, or set a share",
        )
    if not policy.flap.losses and "flap.window_s" in given:
        yield given["flap.window_s"][1], "flap.window_s means nothing with flap.losses 0"
    if policy.backfill.conservative and policy.backfill.reservations != BackfillPolicy().reservations:
        yield (
            given["backfill.reservations"][1],
            f"backfill.reservations belongs to mode {EASY}; {CONSERVATIVE} keeps places for the first {MOST_KEPT}",
        )
    for key in ("domain_label", "warn"):
        if not kept.hosts and given.get(f"failover.{key}", ("", 0))[0]:
            yield given[f"failover.{key}"][1], f"failover.{key} means nothing with failover.hosts 0; set it to 1"
