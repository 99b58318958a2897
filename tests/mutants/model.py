"""What a mutant is: a few lines of the source said otherwise, and who must notice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALL = "all"
"""Every kind of fault, as the simulation's own seeds have them."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace `old`, which must stand in the file exactly once, by `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Sim:
    """The simulation must fail within `seeds`, under these faults alone (comma-separated kinds), saying `words`.

    `settle`: also run on until everything must have come to its end.
    """

    faults: str = ALL
    words: str = ""
    settle: bool = False
    seeds: int = 60

    def command(self) -> list[str]:
        """The program's arguments; it exits with 1 once a seed has failed."""
        wanted = [
            "-m",
            "tests.mutants.hunt",
            "--faults",
            self.faults,
            "--words",
            self.words,
            "--seeds",
            str(self.seeds),
        ]
        return [*wanted, "--settle"] if self.settle else wanted

    def __str__(self) -> str:
        return f"simulation ({self.faults.replace(',', ', ')})"


@dataclass(frozen=True, slots=True)
class Suite:
    """These tests must fail: pytest's names of files, or of tests in them."""

    names: Sequence[str]

    def command(self) -> list[str]:
        """The program's arguments; pytest exits with 1 once a test has failed."""
        return ["-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=line", *self.names]

    def __str__(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`breaks` says in one line what is no longer so."""

    name: str
    breaks: str
    edits: Sequence[Edit]
    catch: Sim | Suite
    fast: bool = False  # seen within a few seconds: `make test` plants it too


def tests(*names: str) -> Suite:
    """Tests that must fail; names are below tests/."""
    return Suite([f"tests/{name}" for name in names])
