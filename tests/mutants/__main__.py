"""Plant each mutant in a copy of the tree and see it caught: python -m tests.mutants [-k NAME] [--list] [--table].

The checks are seen to pass on the clean tree first. Exit codes: 0 all were caught, 1 one survived, its lines are no
longer in the source, or a check fails on the clean tree.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.model import Mutant, Sim, Suite
from tests.mutants.plants import ALL_MUTANTS

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "testing.md"
BEGIN, END = "<!-- mutants: `python -m tests.mutants --table` writes what follows -->\n", "<!-- end of mutants -->\n"
_COPIED = ("agent", "gpupool", "scheduler", "tests", "proto", "deploy", "examples", "docs", "tools", "bench", "lab")


class StaleError(Exception):
    """The source no longer says what the mutant would change."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. `said`: the last line of who caught it, or of who did not."""

    mutant: Mutant
    caught: bool
    seconds: float
    said: str


def plant(mutant: Mutant, root: Path) -> None:
    """Change the tree at `root`. Raises StaleError."""
    for edit in mutant.edits:
        path = root / edit.file
        text = path.read_text() if path.exists() else ""
        if text.count(edit.old) != 1:
            raise StaleError(f"{edit.file} has {text.count(edit.old)} times: {edit.old.strip()[:80]!r}")
        path.write_text(text.replace(edit.old, edit.new))


def copy_tree(target: Path) -> None:
    """What the checks need of the tree; the virtual environment stays where it is."""
    for name in _COPIED:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("var", ".venv", "images"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy2(path, target / path.name)


def run(mutant: Mutant, limit_s: float) -> Verdict:
    """Plant, and see whether it is caught. The check of a mutant that hangs it is ended, which is no catch."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        try:
            plant(mutant, tree)
        except StaleError as exc:
            return Verdict(mutant, False, time.monotonic() - began, f"STALE: {exc}")
        command = [sys.executable, *mutant.catch.command()]
        environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return Verdict(mutant, False, time.monotonic() - began, f"no verdict within {limit_s:.0f} s")
    said = _word(mutant, done.stdout, done.stderr)
    return Verdict(mutant, done.returncode == 1, time.monotonic() - began, said)


def baseline(mutants: Sequence[Mutant], jobs: int) -> list[str]:
    """Commands of checks that fail on the tree as it is: such a check would catch anything."""
    names = sorted({name for mutant in mutants if isinstance(mutant.catch, Suite) for name in mutant.catch.names})
    suites = [Suite(names).command()] if names else []
    sims = [list(words) for words in sorted({tuple(m.catch.command()) for m in mutants if isinstance(m.catch, Sim)})]
    with ThreadPoolExecutor(jobs) as pool:
        ran = pool.map(lambda words: (words, _code(words)), [*suites, *sims])
        return [" ".join(words) for words, code in ran if code]


def _code(words: Sequence[str]) -> int:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode


def _word(mutant: Mutant, out: str, err: str) -> str:
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    if isinstance(mutant.catch, Sim):
        return lines[-1] if lines else err.strip()[-200:]
    failed = [line for line in lines if line.startswith(("FAILED tests", "ERROR tests"))]
    return (failed or lines or [err.strip()[-200:]])[0]


def rows(mutants: Sequence[Mutant]) -> str:
    """The table of the docs."""
    head = "| mutant | what it breaks | caught by |\n|---|---|---|\n"
    return head + "".join(f"| {m.name} | {m.breaks} | {m.catch} |\n" for m in mutants)


def write_table(path: Path) -> None:
    """Put the table into the docs anew."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(before + BEGIN + "\n" + rows(ALL_MUTANTS) + "\n" + END + rest.partition(END)[2])


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("-k", default="", metavar="NAME", help="only those with this in their name")
    parser.add_argument("--list", action="store_true", help="name them, and run none")
    parser.add_argument("--table", action="store_true", help="write the table of docs/testing.md, and run none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-s", type=float, default=600.0, help="for each")
    options = parser.parse_args()
    chosen = [mutant for mutant in ALL_MUTANTS if options.k in mutant.name]
    if options.list:
        for mutant in chosen:
            say(f"{mutant.name}: {mutant.breaks} -> {mutant.catch}")
        return 0
    if options.table:
        write_table(TABLE)
        return 0
    if failing := baseline(chosen, options.jobs):
        say("fails without any mutant, so it says nothing of them:\n  " + "\n  ".join(failing))
        return 1
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = []
        for done in as_completed([pool.submit(run, mutant, options.limit_s) for mutant in chosen]):
            verdicts.append(verdict := done.result())
            word = "caught  " if verdict.caught else "SURVIVED"
            say(f"{word} {verdict.seconds:6.1f} s  {verdict.mutant.name}: {verdict.said[:160]}")
    survivors = [verdict.mutant.name for verdict in verdicts if not verdict.caught]
    say(f"{len(verdicts) - len(survivors)} of {len(verdicts)} caught" + (f"; not: {survivors}" if survivors else ""))
    return 1 if survivors or not verdicts else 0


def say(text: str) -> None:
    """Print a line, now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
