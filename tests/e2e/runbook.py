"""Runbooks that run: the commands of docs/runbooks are executed, and what they print must be what the page shows.

A page is Markdown. What it asks of the reader stands in blocks of these kinds; text beside them is left alone:

    ```console        `$ command` lines, each with its output below; asked again until it prints that
    ```console once   run once, and must succeed: commands that change something, whose output depends on the moment
    ```sh             shown, not run: what only a real host has, such as journalctl
    <!-- stage: name argument ... -->   what happens behind the scenes, unseen by readers: a method of the test's stage

Outputs are compared without what differs from run to run (numbers, ids, times, the width of columns). `...` alone on a
line stands for any lines. What the stage has a name for, such as a job's id, stands in a command in capitals, as JOB.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).parents[2]
PATIENCE_S = 90.0
_PARTS = re.compile(
    r"^```console(?P<once> once)?\n(?P<body>.*?)^```$|^<!-- stage: (?P<stage>.+?) -->$", re.MULTILINE | re.DOTALL
)
_CHANGING = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (re.compile(r"\bj[0-9a-z]{13}\b"), "JOB"),
    (re.compile(r"#[0-9a-f]{16}\b"), "#SERIAL"),
    (re.compile(r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}|\b\d{2}:\d{2}:\d{2}\b"), "TIME"),
    (re.compile(r"127\.0\.0\.1:\d+"), "ADDRESS"),
    (re.compile(r"(?<![a-z0-9.])(\d+(\.\d+)? ?(ms|s|m|h|d)(?![a-z]))+"), "TIME"),
    (re.compile(r"\b\d+\.\d+\b|\b([3-9]|\d{2,})\b(?!/)"), "N"),  # small numbers count: of VMs, units, attempts
    (re.compile(r"[-─━]{3,}"), "---"),
    (re.compile(r"\s+"), " "),
)


@dataclass(slots=True)
class Step:
    """One `$ command` with the lines it should print, or a word to the stage. `line` is the page's."""

    line: int
    command: str = ""
    expected: list[str] = field(default_factory=list)
    once: bool = False
    stage: str = ""


def steps(page: str) -> Iterator[Step]:
    """What the page does, in order. Raises ValueError for output without a command."""
    for part in _PARTS.finditer(page):
        line = page.count("\n", 0, part.start()) + 1
        if part["stage"]:
            yield Step(line, stage=part["stage"])
            continue
        step: Step | None = None
        for offset, text in enumerate(part["body"].splitlines(), 1):
            if text.startswith("$ "):
                if step is not None:
                    yield step
                step = Step(line + offset, command=text[2:], once=bool(part["once"]))
            elif step is None:
                raise ValueError(f"line {line + offset}: output without a command")
            else:
                step.expected.append(text)
        if step is not None:
            yield step


def normal(line: str) -> str:
    """A line of output without what differs from run to run."""
    for pattern, instead in _CHANGING:
        line = pattern.sub(instead, line)
    return line.strip()


def matches(expected: list[str], printed: list[str]) -> bool:
    """Whether what was printed is what the page shows."""
    want = [normal(line) for line in expected if line.strip()]
    have = [normal(line) for line in printed if line.strip()]
    pattern = "".join("(?:.*\n)*" if line == "..." else re.escape(line) + "\n" for line in want)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in have)) is not None


class Shell:
    """Runs commands as an operator would: with `gpupool` in PATH, and the cluster in GPUPOOL_SERVER."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        for daemon in ("scheduler", "agent"):  # commands of their own only where the wheel is installed
            command = folder / f"gpupool-{daemon}"
            command.write_text(f'#!/bin/sh\ncd {REPO} && exec {sys.executable} -m {daemon} "$@"\n')
            command.chmod(0o755)
        path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        plain = {"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb", "USER": "ann", "LOGNAME": "ann"}
        self._environment = {**os.environ, **plain, **environment, "PATH": path}

    async def run(self, command: str) -> tuple[int, list[str]]:
        """Its exit code and the lines that it prints, standard error included."""
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", command, env=self._environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"{command!r} does not end") from None
        return process.returncode or 0, output.decode(errors="replace").splitlines()


async def perform(
    step: Step, shell: Shell, names: Mapping[str, str], patience_s: float = PATIENCE_S
) -> tuple[bool, list[str]]:
    """Run a command of a page, again until it does as the page says; returns whether it did, and what it printed."""
    command = step.command
    for name, value in names.items():
        command = re.sub(rf"\b{name.upper()}\b", value, command)
    give_up = asyncio.get_running_loop().time() + patience_s
    while True:
        code, printed = await shell.run(command)
        right = code == 0 if step.once else matches(step.expected, printed)
        if right or step.once or asyncio.get_running_loop().time() > give_up:
            return right, printed
        await asyncio.sleep(0.3)


def rewritten(page: str, outputs: Mapping[int, list[str]]) -> str:
    """The page with new outputs, by the line of their command. What `...` stood for stays hidden."""
    lines = page.splitlines()
    fresh: list[str] = []
    number = 0
    while number < len(lines):
        fresh.append(lines[number])
        number += 1
        if number not in outputs:
            continue
        old = []
        while number < len(lines) and not lines[number].startswith(("$ ", "```")):
            old.append(lines[number])
            number += 1
        fresh += (
            old if matches(old, outputs[number - len(old)]) else [line.rstrip() for line in outputs[number - len(old)]]
        )
    return "\n".join(fresh) + "\n"
