"""Carries remedies out, or shows what it would do. It never touches a device: what it writes is configuration.

A run that is cut off is finished by the next one: files are replaced whole, and commands that are owed for them are
noted before the first file changes. What is right already is left alone, so a second run does nothing.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .model import Remedy
from .remedies import Command, Put, parts, possible

STATE = "var/lib/gpupool/doctor"  # below the root: backups, and the commands that are owed
OWED = f"{STATE}/owed.json"


@dataclass(frozen=True, slots=True)
class Change:
    """A file that gets another text; `before` is None where there is none yet."""

    path: str
    before: str | None
    after: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order: files, then commands."""

    changes: tuple[Change, ...] = ()
    commands: tuple[Command, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes or self.commands)


def plan(remedies: Iterable[Remedy], system: str, root: Path) -> Plan:
    """What these remedies still ask for below `root`. Remedies that this system has no way for are left out."""
    contents: dict[str, str] = {}
    commands: dict[Command, None] = dict.fromkeys(_owed(root))

    def read(path: str) -> str | None:
        return contents.get(path) if path in contents else _read(root, path)

    for remedy in remedies:
        if not possible(remedy, system, read):
            continue
        for part in parts(remedy, system, read):
            if not isinstance(part, Put):
                commands[part.command] = None
            elif read(part.path) != part.content:
                contents[part.path] = part.content
                commands |= dict.fromkeys(part.then)
    changes = tuple(Change(path, _read(root, path), content) for path, content in sorted(contents.items()))
    return Plan(changes, tuple(commands))


def show(plan: Plan) -> str:
    """The plan as a diff and a list of commands."""
    lines: list[str] = []
    for change in plan.changes:
        before = (change.before or "").splitlines()
        name = f"/{change.path}" if change.before is not None else "/dev/null"
        lines += difflib.unified_diff(before, change.after.splitlines(), name, f"/{change.path}", lineterm="")
    return "\n".join([*lines, *(f"run: {' '.join(command)}" for command in plan.commands)])


def apply(plan: Plan, root: Path, run: Callable[[Command], str], stamp: str) -> list[str]:
    """Do it; returns what failed, in words. `run` returns what went wrong, "" for nothing.

    What is replaced is kept below STATE/backup/`stamp`. A command that fails stays owed. Raises OSError if a file
    cannot be written; then no command was run.
    """
    _note_owed(root, plan.commands)
    for change in plan.changes:
        if change.before is not None:
            _write(root / STATE / "backup" / stamp / change.path, change.before)
        _write(root / change.path, change.after)
    failed = {command: reason for command in plan.commands if (reason := run(command))}
    _note_owed(root, failed)
    return [f"{' '.join(command)}: {reason}" for command, reason in failed.items()]


def _owed(root: Path) -> list[Command]:
    """Commands that an earlier run did not finish; none if the note makes no sense."""
    return owed_in(_read(root, OWED))


def owed_in(text: str | None) -> list[Command]:
    """The commands in a note of what is owed."""
    try:
        noted = json.loads(text or "[]")
    except ValueError:
        return []
    commands = noted if isinstance(noted, list) else []
    return [tuple(map(str, command)) for command in commands if isinstance(command, list) and command]


def _note_owed(root: Path, commands: Iterable[Command]) -> None:
    if noted := [list(command) for command in commands]:
        _write(root / OWED, json.dumps(noted))
    else:
        (root / OWED).unlink(missing_ok=True)


def _read(root: Path, path: str) -> str | None:
    try:
        return (root / path).read_text(errors="replace")
    except OSError:
        return None


def _write(path: Path, content: str) -> None:
    """Replace the file as a whole, lasting through a power cut; a file's mode stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    try:
        with draft.open("w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
